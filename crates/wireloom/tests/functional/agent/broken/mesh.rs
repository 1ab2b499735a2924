//! Mistakes in the mesh, and what does not fit it on a machine: every node that sees one says so.

use std::time::Instant;

use wireloom_lab::{Layout, mesh::write_settings};

use super::{Broken, SCOPED, expect_told};
use crate::fixtures::fleet::Fleet;

#[test]
fn mistakes_in_the_mesh_are_named_on_every_node_that_sees_them() {
    let mut fleet = Fleet::without_agents(Layout { nodes: 4, ..Layout::default() }, SCOPED);
    // From the start: what a proven node gives up stays encrypted for a minute.
    fleet.edit(|mesh| mesh.nodes[3].workloads.clear());
    fleet.start();
    fleet.wait_for_proofs();
    let since = Instant::now();
    let nodes = &fleet.lab.nodes;
    nodes[0].run("ip route del 10.161.3.0/24").unwrap();
    nodes[2].run("ip route del 10.161.3.2/32").unwrap();
    nodes[1].run("ip link set eth0 mtu 1400").unwrap();
    write_settings(&nodes[1], &format!("{SCOPED}\n[wireguard]\nmtu = 1420")).unwrap();
    fleet.edit(|mesh| {
        mesh.nodes[1].workloads.push("10.99.0.0/24".parse().unwrap());
        mesh.nodes[0].endpoint = Some("192.168.1.1:51999".parse().unwrap());
    });
    let outside = ["10.99.0.0/24 of node node-b lie in no pool"];
    let without = ["node node-d has no workloads"];
    expect_told(
        &fleet,
        since,
        &[
            says("a CIDR outside the pools", 0, &outside),
            says("a CIDR outside the pools", 1, &["local workload 10.99.0.0/24 is covered by no rule"]),
            says("a CIDR outside the pools", 2, &outside),
            says("a node without workloads", 0, &without),
            says("a node without workloads", 1, &without),
            says("a listen_port unlike the endpoint", 0, &["listens on UDP port 51820", "192.168.1.1:51999"]),
            says("MTU 1400 at one end", 1, &["mtu = 1420 in agent.toml is more than", "eth0"]),
            says("a missing route to pods", 0, &["no route to 10.161.3.0/24 of node-c"]),
            says("a missing route to own pods", 2, &["no route to the local workloads 10.161.3.0/24"]),
        ],
    );

    // Of this the mesh file itself says which line is wrong, and all nodes keep the mesh that they have.
    let since = Instant::now();
    fleet.edit(|mesh| {
        let of_b = mesh.nodes[1].workloads[0];
        mesh.nodes[2].workloads.push(of_b);
    });
    let twice =
        ["mesh.toml:", "claims 10.161.2.0/24, which \"node-b\" claims", "the previous mesh stays in force"];
    expect_told(&fleet, since, &[says("a CIDR twice", 0, &twice), says("a CIDR twice", 3, &twice)]);
}

fn says<'a>(what: &'static str, on: usize, words: &'a [&'a str]) -> Broken<'a> {
    // What node-b's workloads outside the pools send is in plaintext.
    let headline = if on == 1 { "partly: what 10.99.0.0/24 here sends is in plaintext" } else { "encrypted" };
    Broken { what, on, words, headline, exit: &[1] }
}
