//! Packets between hosts and pods, which the rules are for.

use wireloom_plan::{
    observed::Observed,
    op::{DeviceOp, Op},
    routing::{Family, RouteKind},
    settings::{HostTransition, Scope},
};

use crate::world::{End, Fate, World, all_proven, ip, key, net, rule, three_nodes};

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

/// A machine joins peers that are all in host mode: no packet between pods is lost at any moment.
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
            assert_pods_reach_each_other(world, op);
        }
    });
    assert!(moments > 10);
    assert_eq!(world.matrix(), HOST);
}

/// The reverse.
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
            assert_pods_reach_each_other(world, op);
        }
    });
    assert!(moments > 10);
}

/// Hosts do not, between nodes of different modes: each takes from the other's host what its own mode says.
fn assert_pods_reach_each_other(world: &World, op: &Op) {
    for [_, pod_to_pod, ..] in world.matrices() {
        assert_eq!(pod_to_pod, ENCRYPTED, "after {op:?}");
    }
}

/// One machine after the other takes a step, and all have taken one before any takes the next.
#[test]
fn a_fleet_that_switches_in_three_steps_loses_nothing_between_hosts() {
    let steps = [
        (true, Some(HostTransition::Accept), SCOPED),
        (true, Some(HostTransition::Prefer), HOST),
        (true, None, HOST),
        (true, Some(HostTransition::Prefer), HOST),
        (true, Some(HostTransition::Accept), SCOPED),
        (false, None, SCOPED),
    ];
    let mut world = world(false);
    for (encrypt, transition, matrix) in steps {
        for name in ["b", "a", "c"] {
            let settings = &mut world.machine(name).settings;
            (settings.encrypt_host_traffic, settings.host_transition) = (encrypt, transition);
            world.step(name, |world, op| {
                for fates in world.matrices() {
                    let trouble = || format!("{encrypt}, {transition:?}: {name} after {op:?}: {fates:?}");
                    let arrived = |fate: &Fate| matches!(fate, Fate::Direct | Fate::Encrypted);
                    assert!(fates.as_flattened().iter().all(arrived), "{}", trouble());
                    assert_eq!(fates[1], ENCRYPTED, "{}", trouble());
                }
            });
        }
        assert_eq!(world.matrix(), matrix, "{encrypt}, {transition:?}");
    }
}

#[test]
fn what_has_an_exempt_address_at_one_end_is_direct_in_host_mode() {
    let mut world = World::new(three_nodes());
    world.settings(|settings| {
        settings.encrypt_host_traffic = true;
        // Whatever of it is a workload stays encrypted.
        settings.encrypt_host_exempt = ["192.168.1.1/32", "fd00::1/128", "10.160.0.0/15"].map(net).into();
    });
    world.reconcile();
    let [a, b, c] = ["a", "b", "c"].map(End::Host);
    let [at_a, at_b] = [End::Pod("a", "10.161.1.5"), End::Pod("b", "10.161.2.5")];
    for family in [Family::V4, Family::V6] {
        for (one, other, fates) in [(a, b, DIRECT), (a, c, DIRECT), (b, c, ENCRYPTED)] {
            assert_eq!(world.exchange(one, other, family), fates, "{one:?} to {other:?}");
            assert_eq!(world.exchange(other, one, family), fates, "{other:?} to {one:?}");
        }
    }
    for (one, other, fates) in [(at_a, at_b, ENCRYPTED), (at_b, a, DIRECT), (at_a, b, ENCRYPTED)] {
        assert_eq!(world.exchange(one, other, Family::V4), fates, "{one:?} to {other:?}");
        assert_eq!(world.exchange(other, one, Family::V4), fates, "{other:?} to {one:?}");
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

/// The machines learn of the proofs one after the other, and refuse plaintext from each other last.
#[test]
fn a_node_joins_without_losing_a_packet() {
    let cluster = three_nodes();
    let mut world = World::new(cluster.clone());
    let stand = |world: &mut World, name: &str, others: &[&str], ingress: bool| {
        let mut standings = all_proven(name, &cluster);
        standings.retain(|other, _| others.contains(&other.as_str()));
        standings.values_mut().for_each(|standing| (standing.ingress, standing.fresh) = (ingress, !ingress));
        world.machine(name).standings = Some(standings);
    };
    let step = |world: &mut World, name: &str, allowed: &[Fate]| {
        world.step(name, |world, op| {
            for [host_to_pod, pod_to_pod, pod_to_host, host_to_host] in world.matrices() {
                assert!(
                    pod_to_pod.iter().all(|fate| allowed.contains(fate)),
                    "{name} after {op:?}: {pod_to_pod:?}"
                );
                assert_eq!([host_to_pod, pod_to_host, host_to_host], [DIRECT; 3], "{name} after {op:?}");
            }
        });
    };
    stand(&mut world, "b", &["c"], true);
    stand(&mut world, "c", &["b"], true);
    for name in ["b", "c"] {
        world.machine(name).reconcile(&cluster);
    }
    stand(&mut world, "a", &[], true);
    step(&mut world, "a", &[Fate::Direct]);
    for ingress in [false, true] {
        for (name, others) in [("a", ["b", "c"]), ("b", ["a", "c"]), ("c", ["a", "b"])] {
            stand(&mut world, name, &others, ingress);
            step(&mut world, name, &[Fate::Direct, Fate::Encrypted]);
        }
        assert_eq!(world.matrix(), SCOPED, "ingress: {ingress}");
    }

    // It leaves: from the moment at which it and the others say so, plaintext is taken, and sent later.
    for egress in [true, false] {
        for name in ["a", "b", "c"] {
            let mut standings = all_proven(name, &cluster);
            for (_, standing) in standings.iter_mut().filter(|(other, _)| name == "a" || *other == "a") {
                (standing.egress, standing.ingress) = (egress, false);
            }
            world.machine(name).standings = Some(standings);
            step(&mut world, name, &[Fate::Direct, Fate::Encrypted]);
        }
    }
    assert_eq!(world.matrix(), [DIRECT; 4]);
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
