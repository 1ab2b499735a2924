//! Packets between hosts and pods, which the rules are for.

use wireloom_plan::{
    observed::Observed,
    op::{DeviceOp, Op},
    routing::RouteKind,
    settings::Scope,
};

use crate::world::{Fate, World, ip, key, rule, three_nodes};

const DIRECT: [Fate; 2] = [Fate::Direct; 2];
const ENCRYPTED: [Fate; 2] = [Fate::Encrypted; 2];
/// host→pod, pod→pod, pod→host, host→host; there and back.
const SCOPED: [[Fate; 2]; 4] = [DIRECT, ENCRYPTED, DIRECT, DIRECT];
const HOST: [[Fate; 2]; 4] = [ENCRYPTED; 4];

fn world(encrypt_host_traffic: bool) -> World {
    let mut world = World::new(three_nodes());
    world.settings(|settings| settings.encrypt_host_traffic = encrypt_host_traffic);
    world.reconcile();
    world
}

#[test]
fn scoped_rules_encrypt_pods_and_leave_hosts_alone() {
    assert_eq!(world(false).matrix(), SCOPED);

    let mut world = World::new(three_nodes());
    world.settings(|settings| settings.scope = Scope::Node);
    world.reconcile();
    assert_eq!(world.matrix(), SCOPED, "the same with scope = \"node\"");
}

#[test]
fn host_mode_encrypts_everything() {
    assert_eq!(world(true).matrix(), HOST);
}

/// Calico issue #9751: the unscoped rule with allowed-IPs for pods only. It proves that `world` shows the
/// failure.
#[test]
fn the_unscoped_rule_breaks_hosts_and_the_agent_fixes_it() {
    let mut world = world(false);
    for machine in world.machines.values_mut() {
        let unscoped = rule("not from all fwmark 0xa/0xa lookup 1");
        let unscoped_v6 =
            wireloom_plan::routing::Rule { family: wireloom_plan::routing::Family::V6, ..unscoped.clone() };
        machine.kernel.rules = vec![unscoped, unscoped_v6];
    }
    let [host_to_pod, pod_to_pod, pod_to_host, _] = world.matrix();
    assert_eq!(host_to_pod[0], Fate::Lost, "the other end refuses the host's source");
    assert_eq!(pod_to_pod, ENCRYPTED);
    assert_eq!(pod_to_host, [Fate::Direct, Fate::Lost], "and so is the reply");

    world.reconcile();
    assert_eq!(world.matrix(), SCOPED);
}

/// Linux has no rule "from P, not fwmark 0xa"; this is the rule that looks like it.
#[test]
fn an_inverted_rule_with_a_source_would_catch_hosts_too() {
    let mut world = world(false);
    for machine in world.machines.values_mut() {
        machine.kernel.rules = vec![rule("not from 10.161.0.0/16 fwmark 0xa/0xa lookup 1")];
    }
    let host_to_pod = world.exchange(
        crate::world::End::Host("a"),
        crate::world::End::Pod("b", "10.161.2.5"),
        wireloom_plan::routing::Family::V4,
    );
    assert_eq!(host_to_pod[0], Fate::Lost);
}

#[test]
fn host_mode_routes_carry_the_nodes_own_address_as_source() {
    let world = world(true);
    let sources = |destination: &str| match world.machines["a"].route(destination) {
        Some(RouteKind::Device { source, .. }) => *source,
        other => panic!("{destination}: {other:?}"),
    };
    for destination in ["10.161.2.0/24", "192.168.1.2/32"] {
        assert_eq!(sources(destination), Some(ip("192.168.1.1")));
    }
    for destination in ["fd61:0:0:2::/64", "fd00::2/128"] {
        assert_eq!(sources(destination), Some(ip("fd00::1")));
    }
    assert_eq!(world.machines["a"].route("192.168.1.1/32"), None, "own addresses need no route");
}

#[test]
fn a_keyless_nodes_host_stays_reachable_in_host_mode() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("b").unwrap().public_key = None;
    let mut world = World::new(cluster);
    world.settings(|settings| settings.encrypt_host_traffic = true);
    world.reconcile();
    assert_eq!(world.matrix(), [DIRECT; 4]);
}

/// While one machine after the other switches, pods on nodes of either mode reach each other encrypted after
/// every operation.
#[test]
fn the_mode_switches_live_both_ways() {
    for to_host in [true, false] {
        let mut world = world(!to_host);
        world.settings(|settings| settings.encrypt_host_traffic = to_host);
        for name in ["a", "b", "c"] {
            world.step(name, |world, op| {
                for [_, pod_to_pod, ..] in world.matrices() {
                    assert_eq!(pod_to_pod, ENCRYPTED, "to host mode: {to_host}; {name} after {op:?}");
                }
            });
        }
        assert_eq!(world.matrix(), if to_host { HOST } else { SCOPED });
    }
}

/// A machine joins peers that are all in host mode: once its peers may send from their hosts, no packet is
/// lost at any moment.
#[test]
fn joining_host_mode_loses_nothing() {
    let mut world = world(true);
    world.machine("a").settings.encrypt_host_traffic = false;
    world.machine("a").reconcile(&three_nodes());
    world.machine("a").settings.encrypt_host_traffic = true;
    let mut peers_set = false;
    let mut moments = 0;
    world.step("a", |world, op| {
        peers_set |= matches!(op, Op::Device(DeviceOp::SetPeer(_)));
        if peers_set {
            moments += 1;
            assert_arrives(world, op);
        }
    });
    assert!(moments > 10);
    assert_eq!(world.matrix(), HOST);
}

/// The reverse: no packet is lost until its peers may no longer send from their hosts.
#[test]
fn leaving_host_mode_loses_nothing_on_the_way() {
    let mut world = world(true);
    world.machine("a").settings.encrypt_host_traffic = false;
    let mut peers_set = false;
    let mut moments = 0;
    world.step("a", |world, op| {
        peers_set |= matches!(op, Op::Device(DeviceOp::SetPeer(_)));
        if !peers_set {
            moments += 1;
            assert_arrives(world, op);
        }
    });
    assert!(moments > 10);
}

fn assert_arrives(world: &World, op: &Op) {
    for fates in world.matrices() {
        let lost = fates.as_flattened().iter().any(|fate| matches!(fate, Fate::Lost | Fate::Refused));
        assert!(!lost, "after {op:?}: {fates:?}");
    }
}

/// At no moment of a switch does the sender refuse a packet.
#[test]
fn no_packet_meets_a_half_built_table() {
    for to_host in [true, false] {
        let mut world = world(!to_host);
        world.settings(|settings| settings.encrypt_host_traffic = to_host);
        for name in ["a", "b", "c"] {
            world.step(name, |world, op| {
                for fates in world.matrices() {
                    assert!(!fates.as_flattened().contains(&Fate::Refused), "{name} after {op:?}: {fates:?}");
                }
            });
        }
    }
}

#[test]
fn a_first_start_is_never_worse_than_plaintext() {
    let mut world = World::new(three_nodes());
    for name in ["b", "c"] {
        world.machine(name).reconcile(&three_nodes());
    }
    world.step("a", |world, op| {
        for [_, [there, _], ..] in world.matrices() {
            assert!([Fate::Direct, Fate::Encrypted].contains(&there), "after {op:?}: {there:?}");
        }
    });
    assert_eq!(world.matrix(), SCOPED);
}

#[test]
fn a_restarted_agent_finds_everything_in_place() {
    for host in [false, true] {
        let world = world(host);
        let found: Observed = world.machines["a"].kernel.clone();
        assert_eq!(found.device.as_ref().unwrap().public_key, Some(key(1)));
        // `plan` starts a new planner each time.
        assert_eq!(world.machines["a"].plan(&world.cluster).ops, Vec::<Op>::new());
    }
}
