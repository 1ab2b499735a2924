//! `--keep`: leaves the laboratory up, and prints how to look around in it.

use std::{fs, os::unix::process::parent_id};

use anyhow::Context as _;
use owo_colors::OwoColorize as _;
use wireloom_lab::{Lab, Link, agent::Agent};

use super::mesh::DemoMesh;

/// Lets the mesh outlive this process.
pub(super) fn mesh(mesh: DemoMesh) -> anyhow::Result<()> {
    let wireloom = mesh.program().display().to_string();
    let far_pod = mesh.lab.nodes[1].pods[0].addresses;
    let DemoMesh { lab, agents, .. } = mesh;
    agents.into_iter().for_each(Agent::leave);
    let commands = [
        ("ip rule show pref 99".into(), "which packets enter the tunnel"),
        ("ip route show table 1".into(), "and for which destinations"),
        ("wg show".into(), "peers and handshakes (Debian package wireguard-tools)"),
        (format!("{wireloom} status"), "all of this at once, and the agent's warnings"),
        (format!("ping -c 3 {}", far_pod.v4), "from this host to a pod on node-b"),
        (format!("ip netns exec pod-1 ping -c 3 {}", far_pod.v6), "from this node's pod"),
        ("editor /etc/wireloom/agent.toml".into(), "the agent applies every change at once"),
    ];
    keep(lab, "The mesh", "node", &commands)
}

/// Lets the routers outlive this process.
pub(super) fn link(link: Link) -> anyhow::Result<()> {
    let far_host = link.lab.nodes[1].pods[0].addresses;
    let commands = [
        ("birdc show ospf neighbors".into(), "the other routers, as OSPF sees them"),
        ("ip route".into(), "the routes that OSPF learned"),
        ("ip neighbour show dev wg0".into(), "each peer's link address, which derives from its key"),
        ("wg show".into(), "peers and handshakes (Debian package wireguard-tools)"),
        ("nft list table inet sources".into(), "each peer's allowed sources, and packets dropped"),
        (
            format!("ip netns exec pod-1 ping -c 3 {}", far_host.v4),
            "from a host behind this router to another",
        ),
    ];
    keep(link.lab, "The link", "router", &commands)
}

fn keep(lab: Lab, what: &str, place: &str, commands: &[(String, &str)]) -> anyhow::Result<()> {
    // When we became root in a user namespace of our own, our caller has to enter that as well.
    let enter = match (fs::read_link("/proc/self/ns/user"), fs::read_link(parent("ns/user"))) {
        (Ok(ours), Ok(theirs)) if ours == theirs => "nsenter --net --mount --pid --wdns=/ --target",
        _ => "nsenter --user --preserve-credentials --net --mount --pid --wdns=/ --target",
    };
    anstream::println!("\n{}", format_args!("{what} stays up. To look around on a {place}:").bold());
    for node in &lab.nodes {
        anstream::println!("  {enter} {:<8} {}", node.pid(), format_args!("# {}", node.name).dimmed());
    }
    anstream::println!("{}", "and there:".bold());
    let width = commands.iter().map(|(command, _)| command.len()).max().unwrap_or_default();
    for (command, meaning) in commands {
        anstream::println!("  {command:<width$}  {}", format_args!("# {meaning}").dimmed());
    }
    let pids = lab.keep().with_context(|| format!("{what} cannot be left up"))?;
    let pids: Vec<_> = pids.iter().map(ToString::to_string).collect();
    anstream::println!("{}\n  kill -KILL {}", "To take it down:".bold(), pids.join(" "));
    Ok(())
}

fn parent(file: &str) -> String {
    format!("/proc/{}/{file}", parent_id())
}
