//! `--keep`: leaves the laboratory up, and prints how to look around in it.

use std::{env, fs, os::unix::process::parent_id};

use anyhow::Context as _;
use owo_colors::OwoColorize as _;
use wireloom_lab::{Cluster, Lab, Link, Node, agent::Agent, flows::Testbed};

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

/// Lets the cluster outlive this process.
pub(super) fn kubernetes(cluster: Cluster, testbed: &Testbed) -> anyhow::Result<()> {
    let sudo = if env::var_os("SUDO_USER").is_some() { "sudo " } else { "" };
    let control_plane =
        format!("{sudo}nsenter --net --mount --wdns=\"$PWD\" --target {}", cluster.outside().pid());
    anstream::println!(
        "\n{}\n  kubectl() {{ {control_plane} {} \"$@\"; }}",
        "The cluster stays up. In any shell, this makes a kubectl for it:".bold(),
        cluster.kubectl_command()
    );
    print_commands(
        "and with it:",
        &[
            ("kubectl get pods --all-namespaces --output wide".into(), "everything that runs"),
            ("kubectl get wireloomnodes".into(), "what the agents tell each other"),
            ("kubectl --namespace wireloom logs daemonset/wireloom".into(), "what an agent did"),
            (
                "kubectl --namespace wireloom exec daemonset/wireloom -- wireloom status".into(),
                "mode, peers, rules, warnings",
            ),
        ],
    );
    let caller = cluster.nodes()[0].run("pgrep --full wireloom-workload.pod-a.8080$")?;
    let called = testbed.pods["pod-b"].addresses;
    print_nodes(&format!("{sudo}{}", enter()), "To look around on a node:", cluster.nodes());
    print_commands(
        "and there:",
        &[
            ("ip rule show pref 99".into(), "which packets enter the tunnel"),
            // The first that `table = "auto"` takes.
            ("ip route show table 15700".into(), "and for which destinations"),
            (
                format!("nsenter --net --target {} ping -c 3 {}", caller.trim(), called.v4),
                "on node-a: from pod-a to pod-b on node-b",
            ),
            ("tcpdump -c 6 -ni eth0 udp port 51820".into(), "what others see of that meanwhile"),
        ],
    );
    print_end(sudo, &cluster.keep().context("the cluster cannot be left up")?);
    Ok(())
}

fn keep(lab: Lab, what: &str, place: &str, commands: &[(String, &str)]) -> anyhow::Result<()> {
    print_nodes(enter(), &format!("{what} stays up. To look around on a {place}:"), &lab.nodes);
    print_commands("and there:", commands);
    print_end("", &lab.keep().with_context(|| format!("{what} cannot be left up"))?);
    Ok(())
}

/// The beginning of a command that enters a node; a process id completes it.
fn enter() -> &'static str {
    // When we became root in a user namespace of our own, our caller has to enter that as well.
    match (fs::read_link("/proc/self/ns/user"), fs::read_link(parent("ns/user"))) {
        (Ok(ours), Ok(theirs)) if ours == theirs => "nsenter --net --mount --pid --wdns=/ --target",
        _ => "nsenter --user --preserve-credentials --net --mount --pid --wdns=/ --target",
    }
}

fn parent(file: &str) -> String {
    format!("/proc/{}/{file}", parent_id())
}

fn print_nodes(enter: &str, title: &str, nodes: &[Node]) {
    anstream::println!("\n{}", title.bold());
    for node in nodes {
        anstream::println!("  {enter} {:<8} {}", node.pid(), format_args!("# {}", node.name).dimmed());
    }
}

fn print_commands(title: &str, commands: &[(String, &str)]) {
    anstream::println!("{}", title.bold());
    let width = commands.iter().map(|(command, _)| command.len()).max().unwrap_or_default();
    for (command, meaning) in commands {
        anstream::println!("  {command:<width$}  {}", format_args!("# {meaning}").dimmed());
    }
}

/// Says how to end what outlives this process.
fn print_end(sudo: &str, pids: &[u32]) {
    let pids: Vec<_> = pids.iter().map(ToString::to_string).collect();
    anstream::println!("{}\n  {sudo}kill -KILL {}", "To take it down:".bold(), pids.join(" "));
}
