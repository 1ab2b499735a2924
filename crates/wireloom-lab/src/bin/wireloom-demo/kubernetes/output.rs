//! What the demo says around its tables.

use std::time::Duration;

use anyhow::Context as _;
use owo_colors::OwoColorize as _;
use wireloom_lab::{
    Cluster,
    flows::{FlowTable, Situation},
};

use super::traffic::Traffic;

pub(super) fn introduction(nodes: u8) {
    anstream::println!(
        "\n{} A real cluster of {nodes} nodes in namespaces of this machine. Every cell of the\n\
         tables is measured with a real connection, and with a capture of the network between the nodes.\n",
        "Wireloom demo: Kubernetes.".bold()
    );
}

/// Says what the cluster is made of, as its nodes report it.
pub(super) fn versions(cluster: &Cluster, situation: Situation) -> anyhow::Result<()> {
    let nodes = cluster.get("nodes")?;
    let about = &nodes["items"][0]["status"]["nodeInfo"];
    let version =
        |key: &str| about[key].as_str().with_context(|| format!("node-a does not report its {key}"));
    let (kubernetes, runtime) = (version("kubeletVersion")?, version("containerRuntimeVersion")?);
    let runtime = runtime.replace("://", " ");
    let Situation { proxy, network, .. } = situation;
    let words = format!("Kubernetes {kubernetes}, {runtime}, kube-proxy in {proxy} mode, {network}");
    anstream::println!("{}", words.dimmed());
    Ok(())
}

pub(super) fn show(letter: char, title: &str, table: &FlowTable, traffic: &Traffic) {
    anstream::println!("\n{}  {}\n", format_args!("({letter})").bold(), title.bold());
    anstream::println!("{}\n  {traffic}", table.to_string().trim_end());
    anstream::println!();
}

/// Says how it went. `broken` has a line for everything that is not as promised.
pub(super) fn conclusion(broken: &[String], took: Duration) {
    let took = took.as_secs_f64();
    if broken.is_empty() {
        anstream::println!("{} The demo took {took:.1} s.", "Every result is as promised.".green().bold());
        return;
    }
    anstream::eprintln!("{} The demo took {took:.1} s.", "Not every result is as promised.".red().bold());
    for line in broken {
        anstream::eprintln!("  {line}");
    }
}
