//! `wireloom plan --check FILE`: judges a mesh before it is distributed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use owo_colors::OwoColorize;
use serde::Serialize;
use wireloom_kernel::state::StateDir;
use wireloom_membership::{
    config_file::{Mistake, TomlFile},
    file,
};
use wireloom_plan::{
    cluster::Cluster, holdback::Holdback, observed::Observed, planner::Planner, settings::Settings,
    warning::Warning,
};

use super::WarningReport;
use crate::cli::{show, situation::NO_KEY};

/// How many nodes of a kind are named.
const SHOWN: usize = 10;

/// What there is to say about a mesh.
#[derive(Serialize)]
struct Judgement<'a> {
    nodes: usize,
    pools: usize,
    /// The node that the warnings call "this node".
    viewpoint: Option<&'a str>,
    /// How it differs from the mesh in force on this machine; `None` when none is recorded or readable.
    changes: Option<Changes>,
    warnings: Vec<WarningReport<'a>>,
    /// What is valid and hardly meant, with its lines.
    doubts: Vec<Mistake>,
}

/// How a mesh differs from the one in force: the names of nodes, sorted.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Changes {
    added: Vec<String>,
    changed: Vec<String>,
    removed: Vec<String>,
    /// Those of the removed that the agents would keep at first, because most of the mesh is missing.
    held: Vec<String>,
}

/// Judges the mesh in a file. The exit status is 0 when there is nothing to say against it, 2 when there are warnings,
/// and 1 for a mistake. `node` is this machine's name, from whose viewpoint the mesh is judged if it is part of it.
pub(super) fn run(path: &Path, node: &str, json: bool) -> anyhow::Result<ExitCode> {
    let file = TomlFile::read(path)?;
    let mesh = file::parse(&file)?;
    let state = StateDir::locate();
    // Only root can read it. Without it the mesh is judged by itself.
    let mut in_force = state.mesh().ok().flatten();
    // The file has names without their addresses.
    in_force.iter_mut().for_each(|in_force| in_force.resolve(&BTreeMap::new()));
    let viewpoint = viewpoint(&mesh, node);
    let warnings = viewpoint.map(|viewpoint| warnings(&mesh, viewpoint)).unwrap_or_default();
    let judgement = Judgement {
        nodes: mesh.nodes.len(),
        pools: mesh.pools.len(),
        viewpoint,
        changes: in_force.map(|in_force| Changes::between(&in_force, &mesh, node)),
        warnings: warnings.iter().map(WarningReport::from).collect(),
        doubts: file::doubts(&file)?,
    };
    if json {
        let text = serde_json::to_string_pretty(&judgement).context("cannot write JSON")?;
        show(&format!("{text}\n"))?;
    } else {
        show(&text(path, &judgement))?;
    }
    Ok(if judgement.is_sound() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

impl Judgement<'_> {
    /// Whether there is nothing to say against the mesh.
    fn is_sound(&self) -> bool {
        self.warnings.is_empty() && self.doubts.is_empty()
    }
}

/// This node if the mesh has it, else the first.
fn viewpoint<'a>(mesh: &'a Cluster, node: &str) -> Option<&'a str> {
    let viewpoint = mesh.nodes.get_key_value(node).or_else(|| mesh.nodes.first_key_value());
    viewpoint.map(|(name, _)| name.as_str())
}

/// The warnings that this node of the mesh would give, apart from those about its machine.
fn warnings(mesh: &Cluster, node: &str) -> BTreeSet<Warning> {
    let key = mesh.nodes.get(node).and_then(|node| node.public_key).unwrap_or(NO_KEY);
    // Without the preshared key, which is no part of the mesh file, there would be no plan.
    let mesh = Cluster { preshared_key_file: None, ..mesh.clone() };
    let mut planner = Planner::new(Settings::defaults(node), key, mesh);
    // On a machine of which nothing is known, there is nothing that could be refused.
    planner.plan(&Observed::default()).map(|plan| plan.warnings).unwrap_or_default()
}

impl Changes {
    fn between(in_force: &Cluster, mesh: &Cluster, own: &str) -> Self {
        let names = |wanted: &dyn Fn(&String) -> bool, of: &Cluster| -> Vec<String> {
            of.nodes.keys().filter(|name| wanted(name)).cloned().collect()
        };
        let mut holdback = Holdback::default();
        let _ = holdback.take(Some(in_force), mesh.clone(), own, Duration::ZERO);
        Self {
            added: names(&|name| !in_force.nodes.contains_key(name), mesh),
            changed: names(
                &|name| in_force.nodes.get(name).is_some_and(|old| *old != mesh.nodes[name]),
                mesh,
            ),
            removed: names(&|name| !mesh.nodes.contains_key(name), in_force),
            held: holdback.held().map(|held| held.nodes).unwrap_or_default(),
        }
    }
}

fn text(path: &Path, judgement: &Judgement<'_>) -> String {
    let Judgement { nodes, pools, .. } = judgement;
    let mut text = format!("{}: nodes: {nodes}, pools: {pools}\n", path.display());
    if let Some(Changes { added, changed, removed, held }) = &judgement.changes {
        for (names, what) in [(added, "adds"), (changed, "changes"), (removed, "removes")] {
            if !names.is_empty() {
                text += &format!("{what} {}: {}\n", names.len(), first_of(names));
            }
        }
        if !held.is_empty() {
            text += &format!(
                "{} most nodes of the mesh in force are missing: agents keep {} of them for 30 s; if that is meant, \
                 run `wireloom reload --now` on each node\n",
                "warning:".yellow().bold(),
                held.len()
            );
        }
    }
    for doubt in &judgement.doubts {
        text += &format!("{} {doubt}\n", "warning:".yellow().bold());
    }
    if let Some(viewpoint) = judgement.viewpoint.filter(|_| !judgement.warnings.is_empty()) {
        text += &format!("as {viewpoint} sees it:\n");
    }
    for warning in &judgement.warnings {
        text += &format!("{} {}\n", "warning:".yellow().bold(), warning.text);
    }
    if judgement.is_sound() {
        text += &format!("{}\n", "no mistakes and no warnings".green());
    }
    text
}

fn first_of(names: &[String]) -> String {
    match names.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{} and {more} more", names[..SHOWN].join(", ")),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh(nodes: &[(&str, &str)]) -> Cluster {
        let mut cluster = Cluster::default();
        for (name, workload) in nodes {
            let node = cluster.nodes.entry((*name).to_owned()).or_default();
            node.workloads.insert(workload.parse().unwrap());
        }
        cluster
    }

    #[test]
    fn a_mesh_is_compared_with_the_one_in_force() {
        let before = mesh(&[("a", "10.0.1.0/24"), ("b", "10.0.2.0/24"), ("c", "10.0.3.0/24")]);
        let after = mesh(&[("a", "10.0.1.0/24"), ("b", "10.0.9.0/24"), ("d", "10.0.4.0/24")]);
        let changes = Changes::between(&before, &after, "a");
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            changes,
            Changes { added: names(&["d"]), changed: names(&["b"]), removed: names(&["c"]), held: vec![] }
        );
    }

    #[test]
    fn a_mesh_that_lost_most_of_its_nodes_would_be_held_back() {
        let before = mesh(&[
            ("a", "10.0.1.0/24"),
            ("b", "10.0.2.0/24"),
            ("c", "10.0.3.0/24"),
            ("d", "10.0.4.0/24"),
            ("e", "10.0.5.0/24"),
        ]);
        let after = mesh(&[("a", "10.0.1.0/24"), ("b", "10.0.2.0/24")]);
        assert_eq!(Changes::between(&before, &after, "a").held, ["c", "d", "e"]);
    }

    #[test]
    fn warnings_come_from_this_nodes_viewpoint_or_else_from_the_first() {
        let mut mesh = mesh(&[("a", "10.0.1.0/24"), ("b", "10.0.2.0/24")]);
        mesh.pools.insert("10.0.2.0/24".parse().unwrap());
        mesh.preshared_key_file = Some("/etc/wireloom/mesh.psk".into());
        let keyless = |name: &str| Warning::KeylessNode { node: name.into() };
        assert_eq!((viewpoint(&mesh, "b"), viewpoint(&mesh, "elsewhere")), (Some("b"), Some("a")));
        assert!(warnings(&mesh, "b").contains(&keyless("a")));
        assert!(warnings(&mesh, "b").contains(&Warning::OwnNodeKeyless));
    }
    #[test]
    fn an_endpoint_that_two_nodes_have_is_named_with_its_line() {
        let endpoint = "endpoint = \"192.0.2.1:51820\"";
        let toml = format!("[[nodes]]\nname = \"a\"\n{endpoint}\n[[nodes]]\nname = \"b\"\n{endpoint}\n");
        let path = Path::new("mesh.toml");
        let doubts = file::doubts(&TomlFile::from_text(path, &toml)).unwrap();
        let judgement =
            Judgement { nodes: 2, pools: 0, viewpoint: None, changes: None, warnings: Vec::new(), doubts };
        assert!(!judgement.is_sound());
        let text = text(path, &judgement);
        assert!(
            text.contains("mesh.toml:6: \"b\" has the endpoint 192.0.2.1:51820, as \"a\" has at line 3"),
            "{text}"
        );
        assert!(!text.contains("no mistakes"), "{text}");
    }
}
