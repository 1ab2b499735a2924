//! `--keep`: what was built stays, and its user learns to find the way in it.

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
        ("ip rule show pref 99".into(), "what is sent into the tunnel"),
        ("ip route show table 1".into(), "and whereto"),
        ("wg show".into(), "peers and handshakes (Debian package wireguard-tools)"),
        (format!("{wireloom} status"), "the same, with the agent's warnings"),
        (format!("ping -c 3 {}", far_pod.v4), "from this host to a pod on node-b"),
        (format!("ip netns exec pod-1 ping -c 3 {}", far_pod.v6), "from this node's pod"),
        ("editor /etc/wireloom/agent.toml".into(), "the agent follows every change"),
    ];
    keep(lab, "The mesh", "node", &commands)
}

/// Lets the routers outlive this process.
pub(super) fn link(link: Link) -> anyhow::Result<()> {
    let far_host = link.lab.nodes[1].pods[0].addresses;
    let commands = [
        ("birdc show ospf neighbors".into(), "who is on the link"),
        ("ip route".into(), "what OSPF found"),
        ("ip neighbour show dev wg0".into(), "a peer's link address is its key's"),
        ("wg show".into(), "peers and handshakes (Debian package wireguard-tools)"),
        ("nft list table inet sources".into(), "who may send from where, and how many were refused"),
        (format!("ip netns exec pod-1 ping -c 3 {}", far_host.v4), "between hosts behind routers"),
    ];
    keep(link.lab, "The link", "router", &commands)
}

fn keep(lab: Lab, what: &str, place: &str, commands: &[(String, &str)]) -> anyhow::Result<()> {
    // Of another user namespace than our caller's: who looks around from there has to enter it as well.
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
