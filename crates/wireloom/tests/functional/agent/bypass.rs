//! What may pass by the guard is named, by `wireloom status` and in the agent's log.

use std::process::Command;

use wireloom_lab::{Layout, Node, agent};

use crate::fixtures::fleet::{Fleet, run};

const SCOPED: &str = "encrypt_host_traffic = false";

/// A bridge between a pod and a tunnel to other machines.
const BRIDGE: [&str; 5] = [
    "ip link add br9 type bridge",
    "ip link add vxlan9 type vxlan id 9 dstport 4789 local 192.168.1.1",
    "ip link set vxlan9 master br9",
    "ip link add veth8 type veth peer name veth9",
    "ip link set veth8 master br9",
];

fn status(node: &Node) -> String {
    let (_, shown, errors) = run(node, "status");
    shown + &errors
}

/// Runs a program on a node with these words, which may hold spaces: whether it succeeded, and what it said.
fn call(node: &Node, program: &str, words: &[&str]) -> (bool, String) {
    let output = node.host.space.output(Command::new(program).args(words)).unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_may_pass_by_the_guard_is_named() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    let node = &fleet.lab.nodes[0];
    assert!(!status(node).contains("the guard does not see"), "{}", status(node));

    BRIDGE.iter().for_each(|line| drop(node.run(line).unwrap()));
    node.run("sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=1")
        .unwrap();
    node.run("tc qdisc add dev veth8 clsact").unwrap();
    // A program that matches nothing, which needs no compiler.
    let program = ["filter", "add", "dev", "veth8", "egress", "bpf", "bytecode", "1,6 0 0 0,"];
    assert_eq!(call(node, "tc", &program), (true, String::new()));
    let mut words = vec![
        "the bridge br9 connects pods with vxlan9, which leads to other machines, and the guard does not see the IPv4 \
         packets",
        "a BPF program of traffic control is on veth8, which leads to pods",
    ];
    node.run("nft add table inet fast").unwrap();
    let flow_table = "add flowtable inet fast ft { hook ingress priority 0; devices = { vxlan9, veth8 }; }";
    match call(node, "nft", &[flow_table]) {
        (true, _) => words.push("the flowtable `ft` in the table `inet fast` has vxlan9 among its devices"),
        // The unit tests of what the kernel sends remain.
        (false, why) => {
            let missing = ["No such file or directory", "Operation not supported"];
            assert!(missing.iter().any(|word| why.contains(word)), "{why}");
            println!("this kernel has no flowtables, so none is tried: {why}");
        }
    }
    fleet.start();
    let node = &fleet.lab.nodes[0];
    let said = |shown: &str| words.iter().all(|words| shown.contains(words));
    fleet.wait("the warnings", |_| said(&status(node)) && said(&agent::log(node).unwrap()));
    assert!(!status(&fleet.lab.nodes[1]).contains("the guard does not see"));

    // The advice is followed.
    node.run("sysctl -qw net.bridge.bridge-nf-call-iptables=1").unwrap();
    assert!(!status(node).contains("the bridge br9"), "{}", status(node));
    node.run("tc qdisc del dev veth8 clsact").unwrap();
    assert!(!status(node).contains("BPF program"), "{}", status(node));
}

#[test]
fn without_a_guard_nothing_passes_by_it() {
    let fleet = Fleet::without_agents(Layout::default(), "guard = false");
    let node = &fleet.lab.nodes[0];
    BRIDGE.iter().for_each(|line| drop(node.run(line).unwrap()));
    node.run("sysctl -qw net.bridge.bridge-nf-call-iptables=0").unwrap();
    assert!(!status(node).contains("the bridge br9"), "{}", status(node));
    fleet.route("guard = true");
    assert!(status(&fleet.lab.nodes[0]).contains("the bridge br9"), "{}", status(&fleet.lab.nodes[0]));
}
