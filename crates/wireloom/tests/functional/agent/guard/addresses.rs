//! Single addresses that other nodes have, and addresses of nodes inside a pool.

use std::net::IpAddr;

use wireloom_lab::{Addresses, Layout, Pinger};

use super::{Mode, Watched, delete_rules, ip, kill_agent, ping, ping_both_ways, reaches, start_agent};
use crate::fixtures::fleet::Fleet;

fn three_nodes(mode: Mode) -> Watched {
    let fleet = Fleet::new(Layout { nodes: 3, ..Layout::default() }, mode.settings());
    fleet.wait_for_proofs();
    Watched::over(fleet, mode)
}

/// Writes down which node has an address, on every node, and waits until all agents have taken it.
fn claim(fleet: &mut Fleet, addresses: Addresses, home: usize) {
    fleet.edit(|mesh| {
        for node in &mut mesh.nodes {
            node.workloads.retain(|prefix| !addresses.single().contains(prefix));
        }
        mesh.nodes[home].workloads.extend(addresses.single());
    });
    for node in &fleet.lab.nodes {
        fleet.wait_until_done(node);
    }
}

#[test]
fn a_borrowed_address_inside_a_peers_block_leaks_nothing_either_way() {
    let mut watched = three_nodes(Mode::Scoped);
    // An address of node-b's block on node-a.
    let borrowed = watched.fleet.lab.lend_address(1, 77, 0).unwrap();
    claim(&mut watched.fleet, borrowed, 0);
    watched.ping_both_ways((0, Some(1)), (1, Some(0)));
    for node in [0, 1] {
        let name = &watched.fleet.lab.nodes[node].name.clone();
        watched.case(
            &format!("a borrowed address: agent of {name} killed, rule 99 deleted"),
            |fleet| {
                kill_agent(fleet, node);
                delete_rules(&fleet.lab.nodes[node]);
            },
            |fleet, ()| start_agent(fleet, node),
        );
        watched.case(
            &format!("a borrowed address: a foreign rule on {name}"),
            |fleet| ip(&fleet.lab.nodes[node], "rule add pref 50 lookup main suppress_prefixlength 0"),
            |fleet, ()| ip(&fleet.lab.nodes[node], "rule del pref 50"),
        );
    }
    // On its node it is a neighbour of the other pods, although it lies in the block of another.
    let local = &watched.fleet.lab.nodes[0].pods[0];
    let reached = borrowed.both().iter().all(|address| reaches(local, *address));
    watched.check("the borrowed address is reached from its own node's pods", reached);
    watched.assert_no_fault();
}

/// An address of node-a's block moves on while pings to it go on. The mesh says so before the pod is there, as an IPAM
/// does that claims addresses before it hands them out.
#[test]
fn an_address_that_moves_between_nodes_leaks_nothing() {
    let mut watched = three_nodes(Mode::Scoped);
    // A pod would remember that an address was its neighbour, after it has moved on.
    for pod in watched.fleet.lab.nodes.iter().flat_map(|node| &node.pods) {
        for path in ["ipv4/conf/all", "ipv4/conf/eth0", "ipv6/conf/all", "ipv6/conf/eth0"] {
            pod.space.set_sysctls(&[(&format!("net/{path}/accept_redirects"), "0")]).unwrap();
        }
    }
    let moving = watched.fleet.lab.lend_address(0, 88, 1).unwrap();
    claim(&mut watched.fleet, moving, 1);
    let target = watched.fleet.lab.nodes[1].pods.last().unwrap();
    let pingers: Vec<Pinger> =
        [0, 2].into_iter().flat_map(|from| ping(&watched.fleet.lab.nodes[from].pods[0], target)).collect();
    for (home, name) in [(2, "from node-b to node-c"), (0, "home to node-a"), (1, "from home to node-b")] {
        watched.case(
            &format!("a /32 moves {name}, the mesh says so first"),
            |fleet| {
                claim(fleet, moving, home);
                fleet.lab.move_address(moving, home).unwrap();
            },
            |_, ()| {},
        );
        let before: Vec<_> = pingers.iter().map(Pinger::answered).collect();
        watched.fleet.wait("the address to be reached", |_| {
            pingers.iter().zip(&before).all(|(pinger, before)| pinger.answered() > *before)
        });
    }
    pingers.iter().for_each(Pinger::end);
    watched.settle();
    watched.assert_no_fault();
}

/// The other way round, the pod is there before the mesh says so. Between nodes of proven peers, nothing is in
/// plaintext then either: a packet that came through the tunnel is not sent on, and what the own block's other
/// workloads send to the address does not leave.
fn a_move_that_nobody_heard_of(mode: Mode) {
    let mut watched = three_nodes(mode);
    watched.settle();
    // An address of node-b's block, on node-c: node-a sends to node-b.
    let moved = watched.fleet.lab.lend_address(1, 66, 2).unwrap();
    let [a, _, c] = &watched.fleet.lab.nodes[..] else { panic!("three nodes") };
    let there = c.pods.last().unwrap();
    let through = ping_both_ways(&a.pods[0], there);
    watched.case("pings through the tunnel to an address that moved on", |_| {}, |_, ()| {});
    through.iter().for_each(Pinger::end);
    let [_, b, c] = &watched.fleet.lab.nodes[..] else { panic!("three nodes") };
    let there = c.pods.last().unwrap();
    let own = ping_both_ways(&b.pods[0], there);
    watched.case("pings to an address of the own block that moved on", |_| {}, |_, ()| {});
    claim(&mut watched.fleet, moved, 2);
    let before: Vec<_> = own.iter().map(Pinger::answered).collect();
    watched.fleet.wait("the address to be reached", |_| {
        own.iter().zip(&before).all(|(pinger, before)| pinger.answered() > *before)
    });
    watched.case("the same once the mesh says so", |_| {}, |_, ()| {});
    own.iter().for_each(Pinger::end);
    watched.assert_no_fault();
}

#[test]
fn what_came_through_the_tunnel_is_not_sent_on_in_plaintext_in_scoped_mode() {
    a_move_that_nobody_heard_of(Mode::Scoped);
}

#[test]
fn what_came_through_the_tunnel_is_not_sent_on_in_plaintext_with_reject() {
    a_move_that_nobody_heard_of(Mode::Reject);
}

/// The bridge's own address lies in the node's block, as bridging network plugins have it.
fn a_node_address_inside_a_pool_is_no_workload(mode: Mode) {
    let layout = Layout { block_address: true, ..Layout::default() };
    let mut fleet = Fleet::without_agents(layout, mode.settings());
    let bridge = |node: usize| Addresses {
        v4: [10, 161, node as u8 + 1, 1].into(),
        v6: format!("fd00:10:161:{}::1", node + 1).parse().unwrap(),
    };
    fleet.lab.nodes.iter().enumerate().for_each(|(n, node)| {
        // IPv6 has a link-local address only, unless we add one.
        let _ = node.run(&format!("ip address add {}/128 dev cni0 nodad", bridge(n).v6));
    });
    fleet.edit(|mesh| {
        for (n, node) in mesh.nodes.iter_mut().enumerate() {
            node.addresses.extend(bridge(n).both());
        }
    });
    fleet.start();
    let mut watched = Watched::over(fleet, mode);
    watched.holes = [0, 1].iter().flat_map(|n| bridge(*n).single()).collect();
    watched.settle();
    let [a, b] = &watched.fleet.lab.nodes[..] else { panic!("two nodes") };
    let from =
        |source: IpAddr, to: IpAddr| a.run(&format!("ping -n -q -c 3 -i 0.2 -W 1 -I {source} {to}")).is_ok();
    let mut reached = Vec::new();
    for ((pod, node), own) in
        b.pods[0].addresses.both().into_iter().zip(a.host.addresses.both()).zip(bridge(0).both())
    {
        reached.push((format!("host→pod from {node} to {pod}"), from(node, pod)));
        reached.push((format!("host→pod from {own}, in the pool, to {pod}"), from(own, pod)));
    }
    for own in bridge(0).both() {
        reached.push((format!("pod→host to {own}, in the pool"), reaches(&b.pods[0], own)));
        reached.push((format!("own pod→host to {own}"), reaches(&a.pods[0], own)));
    }
    for (what, good) in reached {
        watched.check(&what, good);
    }
    watched.case(
        "node addresses in the pool: rule 99 deleted",
        |fleet| {
            kill_agent(fleet, 0);
            delete_rules(&fleet.lab.nodes[0]);
        },
        |fleet, ()| start_agent(fleet, 0),
    );
    watched.assert_no_fault();
}

#[test]
fn a_node_address_inside_a_pool_is_no_workload_in_scoped_mode() {
    a_node_address_inside_a_pool_is_no_workload(Mode::Scoped);
}

#[test]
fn a_node_address_inside_a_pool_is_no_workload_with_reject() {
    a_node_address_inside_a_pool_is_no_workload(Mode::Reject);
}
