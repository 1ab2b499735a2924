//! What becomes of records that are bad, that vanish, and that claim the same.

use std::net::IpAddr;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::record::Spelling;

const SECOND: Duration = Duration::from_secs(1);

/// A mesh, its clock, and what was delivered of it.
struct World {
    mesh: Mesh,
    now: Instant,
    born: u64,
}

impl World {
    fn new() -> Self {
        Self::from(None)
    }

    fn from(recorded: Option<Cluster>) -> Self {
        Self { mesh: Mesh::new(recorded), now: Instant::now(), born: 0 }
    }

    fn put(&mut self, name: &str, node: &Node) {
        self.put_text(name, &record::write(node, Spelling::Snake));
    }

    /// A later record is a younger one, unless one of that name is there already.
    fn put_text(&mut self, name: &str, value: &str) {
        self.born += 1;
        let known = self.mesh.members.get(name).map(|member| member.born);
        let object = object(value, known.unwrap_or(self.born));
        self.mesh.record(name, Some(&object), self.now);
    }

    fn delete(&mut self, name: &str) {
        self.mesh.record(name, None, self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn node(&mut self, name: &str) -> Option<Node> {
        self.mesh.deliver(self.now);
        self.mesh.delivered().nodes.get(name).cloned()
    }

    fn complaints(&mut self) -> Vec<String> {
        self.mesh.deliver(self.now);
        self.mesh.complaints().iter().map(ToString::to_string).collect()
    }
}

fn object(value: &str, born: u64) -> Object {
    Object { value: value.to_owned(), born, uid: String::new() }
}

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

fn workloads(cidrs: &[&str]) -> Node {
    Node { workloads: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(), ..Node::default() }
}

fn cidrs(node: Option<Node>) -> Vec<String> {
    node.unwrap().workloads.iter().map(ToString::to_string).collect()
}

#[test]
fn the_newcomers_cidr_alone_is_left_out() {
    let mut world = World::new();
    world.put("b", &workloads(&["10.1.0.0/24"]));
    world.mesh.deliver(world.now);
    // Older or not: the established one keeps it.
    world.mesh.record("a", Some(&object(r#"{"workloads": ["10.1.0.0/24", "10.2.0.0/24"]}"#, 0)), world.now);
    world.put("c", &workloads(&["10.1.0.0/16", "10.3.0.0/24"]));
    world.put("d", &workloads(&["10.1.0.128/25"]));
    assert_eq!(cidrs(world.node("b")), ["10.1.0.0/24"]);
    assert_eq!(cidrs(world.node("a")), ["10.2.0.0/24"]);
    assert_eq!(cidrs(world.node("c")), ["10.3.0.0/24"]);
    assert_eq!(cidrs(world.node("d")), Vec::<String>::new());
    assert_eq!(
        world.complaints(),
        [
            "\"a\": it claims 10.1.0.0/24, which \"b\" has; give each block to one node",
            "\"c\": it claims 10.1.0.0/16, which holds 10.1.0.0/24 that \"b\" has; give each block to one node",
            "\"d\": it claims 10.1.0.128/25, which lies inside 10.1.0.0/24 that \"b\" has; give each block to one node",
        ]
    );
    // Once it is free, the oldest of the others gets it.
    world.put("b", &workloads(&[]));
    assert_eq!(cidrs(world.node("a")), ["10.1.0.0/24", "10.2.0.0/24"]);
    assert_eq!(world.complaints().len(), 2);
}

#[test]
fn between_newcomers_the_older_record_decides_and_then_the_name() {
    let mut world = World::new();
    let text = r#"{"workloads": ["10.1.0.0/24"]}"#;
    let records = [("a", 7), ("b", 5), ("c", 5)].map(|(name, born)| (name.to_owned(), object(text, born)));
    world.mesh.records(records.into(), world.now);
    assert_eq!(cidrs(world.node("b")), ["10.1.0.0/24"]);
    assert_eq!(cidrs(world.node("a")), Vec::<String>::new());
    assert_eq!(cidrs(world.node("c")), Vec::<String>::new());
}

#[test]
fn single_addresses_are_borrowed_only_where_that_is_allowed_and_in_a_pool() {
    let mut world = World::new();
    world.put("a", &workloads(&["10.1.0.0/24", "10.1.0.7/32", "10.9.0.0/24"]));
    world.put("b", &workloads(&["10.1.0.9/32", "10.9.0.9/32"]));
    assert_eq!(cidrs(world.node("b")), Vec::<String>::new());
    assert_eq!(cidrs(world.node("a")), ["10.1.0.0/24", "10.1.0.7/32", "10.9.0.0/24"]);
    world.mesh.allow_borrowing(true);
    world.mesh.pools(&["10.1.0.0/16".parse().unwrap()].into(), world.now);
    assert_eq!(cidrs(world.node("b")), ["10.1.0.9/32"]);
    assert_eq!(
        world.complaints(),
        [
            "\"b\": it claims 10.9.0.9/32, which lies inside 10.9.0.0/24 that \"a\" has; give each block to one node"
        ]
    );
    // The same single address has one owner.
    world.put("c", &workloads(&["10.1.0.9/32"]));
    assert_eq!(cidrs(world.node("c")), Vec::<String>::new());
}

#[test]
fn of_two_with_one_key_the_established_one_keeps_it_and_the_other_stays_without() {
    let mut world = World::new();
    let node = |cidr| Node { public_key: Some(key(1)), ..workloads(&[cidr]) };
    world.put("b", &node("10.1.0.0/24"));
    world.put("a", &node("10.2.0.0/24"));
    assert_eq!(world.node("b").unwrap().public_key, Some(key(1)));
    assert_eq!(world.node("a"), Some(workloads(&["10.2.0.0/24"])));
    assert_eq!(world.complaints().len(), 1);
    // The store's own entry decides where there is one.
    world.mesh.key_claims([(key(1), "a".to_owned())].into());
    assert_eq!(world.node("a").unwrap().public_key, Some(key(1)));
    assert_eq!(world.node("b").unwrap().public_key, None);
    // Who has vanished gives it up to who is there.
    world.mesh.key_claims([].into());
    world.delete("a");
    assert_eq!(world.node("b").unwrap().public_key, Some(key(1)));
    assert_eq!(world.node("a"), Some(workloads(&["10.2.0.0/24"])));
}

#[test]
fn duplicate_addresses_and_foreign_tunnel_addresses_are_left_out_alone() {
    let mut world = World::new();
    let node = |number: u8, tunnel: [u8; 4]| Node {
        addresses: [[192, 0, 2, 1].into(), [192, 0, 2, 10 + number].into()].into(),
        link_addresses: [[10, 9, 9, 1].into()].into(),
        tunnel_addresses: [tunnel.into()].into(),
        ..workloads(&[&format!("10.1.{number}.0/24")])
    };
    world.put("a", &node(1, [10, 1, 1, 1]));
    world.put("b", &node(2, [10, 1, 1, 2]));
    assert_eq!(world.node("a"), Some(node(1, [10, 1, 1, 1])));
    let b = world.node("b").unwrap();
    assert_eq!(b.addresses, [[192, 0, 2, 12].into()].into());
    assert_eq!((b.link_addresses.len(), b.tunnel_addresses.len(), b.workloads.len()), (0, 0, 1));
    assert_eq!(
        world.complaints(),
        [
            "\"b\": it claims the address 192.0.2.1, which \"a\" has; remove it from one of the two",
            "\"b\": it claims the link address 10.9.9.1, which \"a\" has; remove it from one of the two",
            "\"b\": its tunnel address 10.1.1.2 lies in none of its workload CIDRs; choose one of its workload \
             addresses \
         that no workload has",
        ]
    );
}

#[test]
fn an_address_that_is_another_nodes_workload_is_left_out_alone() {
    let mut world = World::new();
    world.put("a", &workloads(&["10.1.0.0/24"]));
    world.put("b", &workloads(&["10.1.1.0/24"]));
    let greedy = Node {
        addresses: [[10, 1, 0, 7].into(), [10, 1, 1, 1].into(), [192, 0, 2, 1].into()].into(),
        link_addresses: [[10, 1, 0, 8].into()].into(),
        ..workloads(&["10.1.1.0/24"])
    };
    world.put("b", &greedy);
    let b = world.node("b").unwrap();
    assert_eq!(b.addresses, [[10, 1, 1, 1].into(), [192, 0, 2, 1].into()].into());
    assert_eq!((b.link_addresses.len(), b.workloads.len()), (0, 1));
    assert_eq!(cidrs(world.node("a")), ["10.1.0.0/24"]);
    assert_eq!(
        world.complaints(),
        [
            "\"b\": it claims the address 10.1.0.7, which lies inside 10.1.0.0/24, workloads that \"a\" has; remove it",
            "\"b\": it claims the link address 10.1.0.8, which lies inside 10.1.0.0/24, workloads that \"a\" has; \
             remove it",
        ]
    );
    world.put("a", &workloads(&[]));
    assert_eq!(world.node("b"), Some(greedy));
}

#[test]
fn an_address_in_anothers_block_may_be_borrowed_unless_it_comes_later_than_the_block() {
    let mut world = World::new();
    let borrower = |last| Node { addresses: [[10, 1, 0, last].into()].into(), ..Node::default() };
    world.mesh.allow_borrowing(true);
    world.mesh.pools(&["10.1.0.0/16".parse().unwrap()].into(), world.now);
    world.put("a", &borrower(7));
    world.mesh.deliver(world.now);
    world.put("b", &workloads(&["10.1.0.0/24"]));
    assert_eq!(world.node("a"), Some(borrower(7)));
    assert_eq!(cidrs(world.node("b")), ["10.1.0.0/24"]);
    world.put("a", &borrower(8));
    assert_eq!(world.node("a"), Some(Node::default()), "it could be any workload's");
    // Who has borrowed it for a workload has it.
    world.put("a", &Node { addresses: borrower(8).addresses, ..workloads(&["10.1.0.8/32"]) });
    assert_eq!(world.node("a").unwrap().addresses.len(), 1);
    assert_eq!(world.complaints(), Vec::<String>::new());
}

#[test]
fn a_cidr_that_holds_other_nodes_hosts_is_left_out_alone() {
    let host = |last, cidr| Node { addresses: [[192, 0, 2, last].into()].into(), ..workloads(&[cidr]) };
    let mut world = World::new();
    world.put("a", &host(1, "10.1.1.0/24"));
    world.put("b", &Node { endpoint: Some(([198, 51, 100, 1], 7).into()), ..Node::default() });
    world.mesh.deliver(world.now);
    world.put("c", &workloads(&["192.0.2.0/28", "198.51.100.1/32", "192.0.2.128/28", "10.1.3.0/24"]));
    assert_eq!(cidrs(world.node("c")), ["10.1.3.0/24", "192.0.2.128/28"]);
    assert_eq!(world.node("a"), Some(host(1, "10.1.1.0/24")));
    assert_eq!(
        world.complaints(),
        [
            "\"c\": it claims 192.0.2.0/28, which holds 192.0.2.1 that is an address of the host \"a\"; claim what \
             only workloads have",
            "\"c\": it claims 198.51.100.1/32, which holds 198.51.100.1 that is an address of the host \"b\"; claim \
             what only workloads have",
        ]
    );
    // A host's addresses in its own block say nothing.
    world.put("a", &host(1, "192.0.2.0/28"));
    world.put("c", &workloads(&[]));
    assert_eq!(cidrs(world.node("a")), ["192.0.2.0/28"]);
}

#[test]
fn where_nobody_is_established_two_hosts_are_needed_to_take_a_cidr_away() {
    let host = |last| Node { addresses: [[10, 1, 1, last].into()].into(), ..Node::default() };
    let mut world = World::new();
    world.put("a", &workloads(&["10.1.1.0/24"]));
    world.put("b", &host(1));
    assert_eq!(cidrs(world.node("a")), ["10.1.1.0/24"]);
    assert_eq!(world.node("b"), Some(Node::default()));
    let mut world = World::new();
    world.put("a", &workloads(&["10.0.0.0/8"]));
    world.put("b", &host(1));
    world.put("c", &host(2));
    assert_eq!(cidrs(world.node("a")), Vec::<String>::new());
    assert_eq!((world.node("b"), world.node("c")), (Some(host(1)), Some(host(2))));
    // In a pool are workloads.
    let mut world = World::new();
    world.mesh.pools(&["10.1.0.0/16".parse().unwrap()].into(), world.now);
    world.put("b", &host(1));
    world.mesh.deliver(world.now);
    world.put("a", &workloads(&["10.1.1.0/24"]));
    assert_eq!(cidrs(world.node("a")), ["10.1.1.0/24"]);
    assert_eq!(world.node("b"), Some(Node::default()));
}

#[test]
fn a_pool_in_which_hosts_are_does_not_make_their_addresses_claimable() {
    let host = |last| Node { addresses: [[10, 1, 1, last].into()].into(), ..Node::default() };
    let mut world = World::new();
    world.mesh.pools(&["10.0.0.0/8".parse().unwrap()].into(), world.now);
    world.put("b", &host(1));
    world.put("c", &host(2));
    world.mesh.deliver(world.now);
    world.put("a", &workloads(&["10.1.1.0/24", "10.1.1.2/32", "10.2.0.0/24"]));
    assert_eq!(cidrs(world.node("a")), ["10.2.0.0/24"]);
    assert_eq!((world.node("b"), world.node("c")), (Some(host(1)), Some(host(2))));
    assert_eq!(
        world.complaints(),
        [
            "\"a\": it claims 10.1.1.0/24, which holds 10.1.1.1 that is an address of the host \"b\"; claim what only \
             workloads have",
            "\"a\": it claims 10.1.1.2/32, which holds 10.1.1.2 that is an address of the host \"c\"; claim what only \
             workloads have",
        ]
    );
}

#[test]
fn no_new_cidr_around_the_store_is_in_force_outside_of_pools() {
    let mut world = World::new();
    world.put("a", &workloads(&["192.0.2.10/32"]));
    world.mesh.deliver(world.now);
    world.mesh.protect(["10.1.1.7", "192.0.2.10", "192.0.2.11"].map(|it| it.parse().unwrap()).into());
    world.mesh.pools(&["10.1.0.0/16".parse().unwrap()].into(), world.now);
    world.put("a", &workloads(&["192.0.2.10/32", "192.0.2.11/32", "10.2.0.0/24"]));
    world.put("b", &workloads(&["10.1.1.0/24"]));
    assert_eq!(cidrs(world.node("a")), ["10.2.0.0/24", "192.0.2.10/32"], "what is established stays");
    assert_eq!(cidrs(world.node("b")), ["10.1.1.0/24"], "the store is in a pod");
    assert_eq!(
        world.complaints(),
        [
            "\"a\": it claims 192.0.2.11/32, which holds 192.0.2.11 that is an address of the store; claim what only \
          workloads have"
        ]
    );
}

#[test]
fn a_recorded_pool_that_vanished_meanwhile_stays_for_ten_minutes() {
    let pool = |text: &str| text.parse::<IpNet>().unwrap();
    let recorded = Cluster { pools: [pool("10.1.0.0/16"), pool("10.2.0.0/16")].into(), ..Cluster::default() };
    let mut world = World::from(Some(recorded.clone()));
    world.mesh.records(BTreeMap::new(), world.now);
    world.mesh.pools(&[pool("10.1.0.0/16")].into(), world.now);
    world.mesh.deliver(world.now);
    assert_eq!(world.mesh.delivered().pools, recorded.pools);
    world.pass(GRACE);
    world.mesh.deliver(world.now);
    assert_eq!(world.mesh.delivered().pools, [pool("10.1.0.0/16")].into());
    // What this node's own settings say is so at once.
    let mut world = World::from(Some(recorded));
    world.mesh.declare_pools(&[pool("10.1.0.0/16")].into(), world.now);
    world.mesh.deliver(world.now);
    assert_eq!(world.mesh.delivered().pools, [pool("10.1.0.0/16")].into());
}

#[test]
fn a_tunnel_address_goes_with_its_block() {
    let mut world = World::new();
    let node = Node { tunnel_addresses: [[10, 1, 1, 1].into()].into(), ..workloads(&["10.1.1.0/24"]) };
    world.put("a", &workloads(&["10.1.1.0/24"]));
    world.put("b", &node);
    assert_eq!(world.node("b"), Some(Node::default()));
}

#[test]
fn a_bad_record_stays_as_it_was_when_it_was_good() {
    let mut world = World::new();
    world.put("a", &workloads(&["10.1.0.0/24"]));
    world.put_text("a", "no json");
    world.put_text("b", "[]");
    world.put_text("a/b", "{}");
    assert_eq!(cidrs(world.node("a")), ["10.1.0.0/24"]);
    assert_eq!(world.node("b"), None);
    let complaints = world.complaints();
    assert!(complaints[0].starts_with("\"a\": not a record: "), "{complaints:?}");
    assert!(complaints[0].ends_with("; its last good version stays in force"), "{complaints:?}");
    assert!(complaints[1].starts_with("\"a/b\": the name of a node has "), "{complaints:?}");
    assert!(complaints[2].ends_with("; the node is left out"), "{complaints:?}");
    world.delete("a/b");
    world.delete("b");
    world.put("a", &workloads(&["10.2.0.0/24"]));
    assert_eq!(world.complaints(), Vec::<String>::new());
    assert_eq!(cidrs(world.node("a")), ["10.2.0.0/24"]);
}

#[test]
fn who_vanishes_stays_for_ten_minutes_but_for_what_another_one_claims() {
    let mut world = World::new();
    world.put("a", &workloads(&["10.1.0.0/24", "10.2.0.0/24"]));
    world.put("b", &workloads(&[]));
    world.delete("a");
    assert_eq!(cidrs(world.node("a")), ["10.1.0.0/24", "10.2.0.0/24"]);
    world.pass(GRACE - SECOND);
    world.put("b", &workloads(&["10.2.0.0/25"]));
    assert_eq!(cidrs(world.node("a")), ["10.1.0.0/24"]);
    assert_eq!(cidrs(world.node("b")), ["10.2.0.0/25"]);
    assert_eq!(world.complaints(), Vec::<String>::new(), "that is as it should be");
    assert_eq!(world.mesh.expires(), Some(world.now + SECOND));
    world.pass(SECOND);
    assert_eq!(world.node("a"), None);
    assert_eq!(world.mesh.expires(), None);
}

#[test]
fn who_comes_back_is_there_for_good_and_who_left_is_gone_at_once() {
    let mut world = World::new();
    world.put("a", &workloads(&["10.1.0.0/24"]));
    world.delete("a");
    world.pass(GRACE / 2);
    world.put("a", &workloads(&["10.1.1.0/24"]));
    world.pass(GRACE);
    assert_eq!(cidrs(world.node("a")), ["10.1.1.0/24"]);
    world.put("a", &Node { encrypt: false, ..workloads(&["10.1.1.0/24"]) });
    assert!(!world.node("a").unwrap().encrypt);
    world.delete("a");
    assert_eq!(world.node("a"), None);
}

#[test]
fn what_an_earlier_agent_recorded_begins_to_vanish_with_the_first_list() {
    let recorded = Cluster {
        nodes: [
            ("gone".to_owned(), workloads(&["10.1.0.0/24"])),
            ("left".to_owned(), Node { encrypt: false, ..workloads(&["10.2.0.0/24"]) }),
            ("bad".to_owned(), workloads(&["10.3.0.0/24"])),
        ]
        .into(),
        pools: ["10.0.0.0/8".parse().unwrap()].into(),
        ..Cluster::default()
    };
    let mut world = World::from(Some(recorded));
    world.pass(3 * GRACE);
    let newcomer = object(r#"{"workloads": ["10.3.0.0/24", "10.4.0.0/24"]}"#, 0);
    let records = [("bad".to_owned(), object("{", 9)), ("new".to_owned(), newcomer)];
    world.mesh.records(records.into(), world.now);
    assert_eq!(cidrs(world.node("gone")), ["10.1.0.0/24"]);
    assert_eq!(world.node("left"), None);
    assert_eq!(cidrs(world.node("bad")), ["10.3.0.0/24"], "established, and its last good version");
    assert_eq!(cidrs(world.node("new")), ["10.4.0.0/24"]);
    world.pass(GRACE);
    assert_eq!(world.node("gone"), None);
}

#[test]
fn guests_are_in_force_where_there_is_no_record() {
    let mut world = World::new();
    world.mesh.guests([("a".to_owned(), workloads(&["10.1.0.0/24"]))].into());
    assert_eq!(cidrs(world.node("a")), ["10.1.0.0/24"]);
    world.put("a", &workloads(&["10.2.0.0/24"]));
    world.put("b", &workloads(&["10.1.0.0/25"]));
    assert_eq!(cidrs(world.node("a")), ["10.2.0.0/24"]);
    world.delete("a");
    assert_eq!(cidrs(world.node("a")), Vec::<String>::new(), "a guest again, and b has a record");
    world.mesh.guests(BTreeMap::new());
    assert_eq!(cidrs(world.node("a")), ["10.2.0.0/24"], "vanished");
}

#[test]
fn a_pool_that_vanishes_stays_for_ten_minutes() {
    let mut world = World::new();
    let pools: BTreeSet<IpNet> = ["10.1.0.0/16".parse().unwrap()].into();
    world.mesh.pools(&pools, world.now);
    assert_eq!(world.mesh.deliver(world.now).unwrap().pools, pools);
    world.mesh.pools(&BTreeSet::new(), world.now);
    assert_eq!(world.mesh.deliver(world.now), None);
    world.pass(GRACE);
    assert_eq!(world.mesh.deliver(world.now).unwrap().pools, BTreeSet::new());
}

/// An act of the property test, on a few nodes with a few values, so that they collide.
#[derive(Debug, Clone)]
enum Act {
    Put(u8, Option<u8>, Vec<(u8, u8)>, Vec<u8>),
    Bad(u8),
    Delete(u8),
    Pass(u64),
    Borrow(bool),
    Deliver,
}

fn act() -> impl Strategy<Value = Act> {
    let blocks = vec((0..8_u8, 0..4_u8), 0..4);
    prop_oneof![
        6 => (0..6_u8, proptest::option::of(0..4_u8), blocks, vec(0..12_u8, 0..3))
            .prop_map(|(name, key, blocks, addresses)| Act::Put(name, key, blocks, addresses)),
        1 => (0..6_u8).prop_map(Act::Bad),
        2 => (0..6_u8).prop_map(Act::Delete),
        2 => (0..400_u64).prop_map(Act::Pass),
        1 => any::<bool>().prop_map(Act::Borrow),
        3 => Just(Act::Deliver),
    ]
}

/// Blocks of four lengths in 10.0.0.0/24, so that many lie in others.
fn block(place: u8, kind: u8) -> IpNet {
    let length = [26, 28, 30, 32][usize::from(kind)];
    IpNet::new([10, 0, 0, place * 32 + 1].into(), length).unwrap().trunc()
}

/// An address outside all blocks, or inside one.
fn host(number: u8) -> IpAddr {
    match number {
        0..6 => [192, 0, 2, number].into(),
        _ => [10, 0, 0, (number - 6) * 32 + 1].into(),
    }
}

/// Where single addresses are not borrowed, no node has an address among another one's workloads.
fn no_host_is_a_workload(mesh: &Cluster) {
    for (name, node) in &mesh.nodes {
        for (other, second) in mesh.nodes.iter().filter(|(other, _)| *other != name) {
            let is_workload = |address: &IpAddr| second.workloads.iter().any(|cidr| cidr.contains(address));
            assert!(!node.addresses.iter().any(is_workload), "{name} {other}");
        }
    }
}

fn no_two_have_the_same(mesh: &Cluster, may_borrow: bool) {
    let nodes: Vec<(&String, &Node)> = mesh.nodes.iter().collect();
    for (place, (name, node)) in nodes.iter().enumerate() {
        for (other, second) in &nodes[place + 1..] {
            assert!(node.public_key.is_none() || node.public_key != second.public_key, "{name} {other}");
            assert!(node.addresses.is_disjoint(&second.addresses), "{name} {other}");
            for (one, two) in
                node.workloads.iter().flat_map(|one| second.workloads.iter().map(move |two| (one, two)))
            {
                let (narrow, wide) = if one.contains(two) { (two, one) } else { (one, two) };
                let borrowed = may_borrow && narrow.prefix_len() == 32 && narrow != wide;
                assert!(!wide.contains(narrow) || borrowed, "{name} {one}, {other} {two}");
            }
        }
    }
}

proptest! {
    #[test]
    fn no_two_nodes_ever_get_the_same(acts in vec(act(), 0..60)) {
        let mut world = World::new();
        world.mesh.pools(&["10.0.0.0/16".parse().unwrap()].into(), world.now);
        let mut may_borrow = false;
        for act in acts {
            match act {
                Act::Put(name, number, blocks, addresses) => {
                    let node = Node {
                        public_key: number.map(key),
                        workloads: blocks.into_iter().map(|(place, kind)| block(place, kind)).collect(),
                        addresses: addresses.into_iter().map(host).collect(),
                        ..Node::default()
                    };
                    world.put(&format!("n{name}"), &node);
                }
                Act::Bad(name) => world.put_text(&format!("n{name}"), "?"),
                Act::Delete(name) => world.delete(&format!("n{name}")),
                Act::Pass(seconds) => world.pass(Duration::from_secs(seconds)),
                Act::Borrow(allowed) => {
                    may_borrow = allowed;
                    world.mesh.allow_borrowing(allowed);
                }
                Act::Deliver => {
                    let before = world.mesh.delivered().clone();
                    let is_another = world.mesh.deliver(world.now).is_some();
                    prop_assert_eq!(is_another, before != *world.mesh.delivered());
                    no_two_have_the_same(world.mesh.delivered(), may_borrow);
                    if !may_borrow {
                        no_host_is_a_workload(world.mesh.delivered());
                    }
                    prop_assert!(world.mesh.deliver(world.now).is_none());
                }
            }
        }
        // Nobody loses what nobody else has: each value that a present node claims is somebody's.
        world.mesh.deliver(world.now);
        let delivered = world.mesh.delivered();
        for member in world.mesh.members.values() {
            let key = member.node.public_key;
            prop_assert!(key.is_none() || delivered.nodes.values().any(|node| node.public_key == key));
            for address in &member.node.addresses {
                let has = |node: &Node| {
                    node.addresses.contains(address) || node.workloads.iter().any(|cidr| cidr.contains(address))
                };
                prop_assert!(delivered.nodes.values().any(has));
            }
        }
    }
}
