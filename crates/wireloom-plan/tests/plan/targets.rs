//! Which peers the prober asks: those to whom an echo request goes through the tunnel, and who answers through it.

use std::collections::{BTreeMap, BTreeSet};

use wireloom_plan::{
    cluster::Cluster,
    observed::Observed,
    paths::{Target, targets},
    routing::{Route, RouteKind},
    standing::Standings,
};
use wireloom_types::PublicKey;

use crate::world::{Machine, all_proven, ip, key, net, three_nodes};

/// Node a with its kernel as it shall be. Node b has a tunnel address, and c a bridge with an address of its workloads.
struct World {
    cluster: Cluster,
    kernel: Observed,
    standings: Standings,
}

impl World {
    fn new() -> Self {
        let mut cluster = three_nodes();
        for (name, address) in [("a", "10.161.1.1"), ("b", "10.161.2.1")] {
            cluster.nodes.get_mut(name).unwrap().tunnel_addresses.insert(ip(address));
        }
        cluster.nodes.get_mut("c").unwrap().addresses.insert(ip("10.161.3.1"));
        let mut machine = Machine::new("a", key(1), &cluster);
        machine.reconcile(&cluster);
        let standings = all_proven("a", &cluster);
        Self { cluster, kernel: machine.kernel, standings }
    }

    fn targets(&self) -> BTreeMap<PublicKey, Target> {
        let in_session = [key(2), key(3)].into();
        targets(&self.cluster, "a", &self.standings, &self.kernel, &in_session)
    }

    fn asked(&self) -> BTreeSet<String> {
        self.targets().values().map(|target| target.to.to_string()).collect()
    }
}

#[test]
fn peers_are_asked_by_their_addresses_inside_of_the_tunnel() {
    let world = World::new();
    assert_eq!(world.asked(), ["10.161.2.1", "10.161.3.1"].map(str::to_owned).into());
    assert!(world.targets().values().all(|target| target.from == ip("10.161.1.1")));
    let nobody = targets(&world.cluster, "a", &world.standings, &world.kernel, &BTreeSet::new());
    assert!(nobody.is_empty(), "nobody is in a session");
}

#[test]
fn nobody_is_asked_for_a_node_that_is_not_in_force() {
    // It vanished: what it gave up is still in the mesh, without a key, and the device has not lost it yet.
    let mut world = World::new();
    world.cluster.nodes.get_mut("c").unwrap().public_key = None;
    assert_eq!(world.asked(), ["10.161.2.1".to_owned()].into());
    // It has a new key, which it has not proved.
    world.cluster.nodes.get_mut("c").unwrap().public_key = Some(key(9));
    assert_eq!(world.asked(), ["10.161.2.1".to_owned()].into());
    // It leaves: it answers in plaintext from some moment on.
    let mut world = World::new();
    world.cluster.nodes.get_mut("b").unwrap().encrypt = false;
    assert_eq!(world.asked(), ["10.161.3.1".to_owned()].into());
    // So do the others once we leave.
    let mut world = World::new();
    world.cluster.nodes.get_mut("a").unwrap().encrypt = false;
    assert_eq!(world.asked(), BTreeSet::new());
}

#[test]
fn nobody_is_asked_where_our_table_does_not_lead_through_the_tunnel() {
    let at = |world: &World, destination: &str| {
        let found = world.kernel.routes_to(net(destination)).next().cloned();
        found.unwrap_or_else(|| panic!("no route to {destination}"))
    };
    let mut world = World::new();
    let lost = at(&world, "10.161.2.0/24");
    world.kernel.routes.remove(&lost);
    assert_eq!(world.asked(), ["10.161.3.1".to_owned()].into(), "there is no route to b");
    // The longest prefix decides: the address was lent to a node that does not encrypt.
    let mut world = World::new();
    let throw = RouteKind::Throw;
    let lent = Route::ours(net("10.161.2.1/32"), throw.clone());
    world.kernel.routes.insert(lent);
    assert_eq!(world.asked(), ["10.161.3.1".to_owned()].into(), "the address is another node's");
    let mut world = World::new();
    let direct = at(&world, "10.161.3.0/24");
    world.kernel.routes.remove(&direct);
    world.kernel.routes.insert(Route { kind: throw, ..direct });
    assert_eq!(world.asked(), ["10.161.2.1".to_owned()].into(), "c is direct");
}

#[test]
fn the_other_family_is_taken_where_one_is_not_routed() {
    let mut world = World::new();
    for (name, address) in [("a", "fd61:0:0:1::1"), ("b", "fd61:0:0:2::1")] {
        world.cluster.nodes.get_mut(name).unwrap().tunnel_addresses.insert(ip(address));
    }
    world.kernel.addresses.insert(net("fd61:0:0:1::1/128"));
    world.kernel.routes.retain(|route| route.destination != net("10.161.2.0/24"));
    assert_eq!(world.asked(), ["10.161.3.1", "fd61:0:0:2::1"].map(str::to_owned).into());
}
