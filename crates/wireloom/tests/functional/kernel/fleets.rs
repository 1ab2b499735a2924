//! Fleets on the kernel's WireGuard: mixed with userspace nodes, damaged by others, and large.

use std::{collections::BTreeSet, fmt::Write as _, ops::Range, time::Instant};

use wireloom_lab::{
    Layout, Node, Promise, agent,
    mesh::{MEMBERS, SETTINGS},
    until,
};

use crate::fixtures::fleet::{Fleet, LONG, run};

const SCOPED: &str = "encrypt_host_traffic = false";
const HOST: &str = "encrypt_host_traffic = true";

/// About the device alone.
const WITHOUT_GUARD: &str = "encrypt_host_traffic = false\nguard = false";

/// A fleet whose nodes have these back ends.
fn fleet(backends: &[&str], routing: &str) -> Fleet {
    let mut fleet =
        Fleet::without_agents(Layout { nodes: backends.len() as u8, ..Layout::default() }, routing);
    for (node, backend) in fleet.lab.nodes.iter().zip(backends) {
        let settings =
            format!("node = \"{}\"\nwireguard.backend = \"{backend}\"\n[routing]\n{routing}\n", node.name);
        node.host.space.write(SETTINGS, &settings).unwrap();
    }
    fleet.start();
    fleet
}

/// Which back end carries `wg0`, as iproute2 shows it.
fn kind(node: &Node) -> &'static str {
    let shown = node.run("ip -d -o link show wg0").unwrap();
    if shown.contains("wireguard") { "kernel" } else { "userspace" }
}

/// Key, port, mark and peers with their allowed-IPs, as `wg` shows them.
fn configuration(node: &Node) -> BTreeSet<String> {
    ["public-key", "listen-port", "fwmark", "allowed-ips", "persistent-keepalive"]
        .iter()
        .flat_map(|what| {
            let told = node.run(&format!("wg show wg0 {what}")).unwrap_or_default();
            told.lines().map(|line| format!("{what} {:?}", words(line))).collect::<Vec<_>>()
        })
        .collect()
}

/// In no particular order.
fn words(line: &str) -> BTreeSet<&str> {
    line.split_whitespace().collect()
}

#[test]
fn nodes_on_the_kernel_and_on_the_userspace_engine_are_one_mesh() {
    for (routing, promise) in [(SCOPED, Promise::SCOPED), (HOST, Promise::HOST)] {
        let backends = ["kernel", "userspace", "kernel"];
        let fleet = fleet(&backends, routing);
        fleet.settle(promise);
        let kinds: Vec<_> = fleet.lab.nodes.iter().map(kind).collect();
        assert_eq!(kinds, backends);
        for node in &fleet.lab.nodes {
            fleet.wait_until_done(node);
        }
    }
}

#[test]
fn whatever_others_do_to_the_kernels_device_is_repaired() {
    let fleet = fleet(&["kernel", "kernel"], SCOPED);
    fleet.settle(Promise::SCOPED);
    let node = &fleet.lab.nodes[0];
    fleet.wait_for_usual_keepalives(node);
    let before = configuration(node);
    assert!(before.len() >= 5, "{before:?}");
    // The kernel announces that it was deleted.
    node.run("ip link del wg0").unwrap();
    fleet.wait("the interface to come back", |_| configuration(node) == before);
    assert_eq!(kind(node), "kernel");
    fleet.settle(Promise::SCOPED);
    // It announces nothing of `wg set`: the next full pass finds the change.
    let peer = &fleet.keys[1].public;
    for damage in [
        &format!("wg set wg0 peer {peer} allowed-ips 10.161.2.0/25,192.0.2.0/24"),
        &format!("wg set wg0 peer {peer} remove"),
        &format!("wg set wg0 peer {} allowed-ips 10.161.2.0/24", node.run("wg genkey").unwrap().trim()),
        "wg set wg0 listen-port 7 fwmark 0",
        "ip link set wg0 down",
    ] {
        node.run(damage).unwrap();
        fleet.agents[0].reload().unwrap();
        fleet.wait(&format!("`{damage}` to be repaired"), |_| configuration(node) == before);
        fleet.settle(Promise::SCOPED);
    }
    let private = &fleet.keys[0].private;
    assert!(!agent::log(node).unwrap().contains(private.as_str()), "the key is in the log");
}

/// A mesh file with nodes of these numbers added, each with this many CIDRs. They have no endpoints: the kernel would
/// send thousands of handshakes that nobody answers.
fn many(mesh: &str, nodes: Range<u32>, cidrs: impl Fn(u32) -> u32) -> String {
    let mut mesh = mesh.to_owned();
    for number in nodes {
        let (high, low) = (number >> 8, number & 0xff);
        let workloads = (0..cidrs(number)).map(|cidr| format!("\"fd00:11:{number:x}:{cidr:x}::/64\""));
        // Any 32 bytes are a public key.
        let _ = write!(
            mesh,
            "\n[[nodes]]\nname = \"n{number}\"\npublic_key = \"{number:042}A=\"\n\
             addresses = [\"172.16.{high}.{low}\"]\n\
             workloads = [{}]\n",
            workloads.collect::<Vec<_>>().join(", ")
        );
    }
    mesh
}

/// Waits until `wg` shows this many peers and allowed-IPs and the agent has nothing left to do, and prints how long
/// it took.
fn programmed(fleet: &Fleet, mesh: &str, (peers, cidrs): (usize, usize)) {
    let node = &fleet.lab.nodes[0];
    let begun = Instant::now();
    node.host.space.write(MEMBERS, mesh).unwrap();
    let what = format!("{peers} peers with {cidrs} allowed-IPs");
    let shown = until(LONG, &what, || {
        let shown = node.run("wg show wg0 allowed-ips").unwrap_or_default();
        // Each line begins with the peer's key.
        let count = shown.lines().map(|line| line.split_whitespace().count() - 1).sum::<usize>();
        (shown.lines().count() == peers && count == cidrs).then_some(begun.elapsed())
    });
    assert!(shown.is_ok(), "{}\n{}", shown.unwrap_err(), agent::log(node).unwrap());
    let settled = until(LONG, "nothing to be left to do", || (run(node, "plan").0 == 0).then_some(()));
    assert!(settled.is_ok(), "{}\n{}", settled.unwrap_err(), agent::log(node).unwrap());
    println!("figure: {what}: seen by wg after {:.2} s", shown.unwrap().as_secs_f64());
}

#[test]
fn five_thousand_peers_with_four_cidrs_each_are_programmed_and_read_back() {
    let fleet = fleet(&["kernel"], WITHOUT_GUARD);
    let alone = fleet.lab.nodes[0].host.space.read(MEMBERS).unwrap().unwrap();
    fleet.wait("the device", |fleet| !configuration(&fleet.lab.nodes[0]).is_empty());
    programmed(&fleet, &many(&alone, 0..5_000, |_| 4), (5_000, 20_000));
    programmed(&fleet, &many(&alone, 0..5_000, |number| if number == 77 { 3 } else { 4 }), (5_000, 19_999));
    programmed(&fleet, &many(&alone, 0..2, |_| 4), (2, 8));
    fleet.print_what_the_agents_took();
}

/// The allowed-IPs of one peer do not fit into one netlink message.
#[test]
fn fifty_thousand_allowed_ips_of_a_few_peers_are_programmed_and_read_back() {
    let fleet = fleet(&["kernel"], WITHOUT_GUARD);
    let alone = fleet.lab.nodes[0].host.space.read(MEMBERS).unwrap().unwrap();
    fleet.wait("the device", |fleet| !configuration(&fleet.lab.nodes[0]).is_empty());
    let of = |last: u32| move |number: u32| if number == 0 { last } else { 20_000 };
    programmed(&fleet, &many(&alone, 0..3, of(10_000)), (3, 50_000));
    programmed(&fleet, &many(&alone, 0..3, of(9_999)), (3, 49_999));
    fleet.print_what_the_agents_took();
}
