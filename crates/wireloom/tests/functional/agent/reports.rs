//! What `plan` and `status` print, for people and as JSON.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use serde_json::Value;
use wireloom_lab::{Layout, Node, PATIENCE, Promise, agent, mesh::Pool, until};

use crate::{
    fixtures::fleet::{Fleet, rules, run},
    wireloom,
};

const SCOPED: &str = "encrypt_host_traffic = false";

fn json(node: &Node, words: &str) -> Value {
    let (_, stdout, stderr) = run(node, words);
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{words}: {error}\n{stdout}{stderr}"))
}

#[test]
fn plan_prints_what_would_change_and_changes_nothing() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    let node = &fleet.lab.nodes[0];
    let links = node.run("ip -o link show").unwrap();
    let (status, stdout, stderr) = run(node, "plan");
    assert_eq!(status, 2, "{stdout}{stderr}");
    for words in ["create wg0", "from 10.161.0.0/16 fwmark 0/0xa lookup 1", "10.161.2.0/24"] {
        assert!(stdout.contains(words), "{words}: {stdout}");
    }
    assert_eq!(node.run("ip -o link show").unwrap(), links);
    assert!(rules(node).is_empty());
    // The agent does what was planned, and nothing is left to do.
    fleet.start();
    fleet.settle(Promise::SCOPED);
    fleet.wait_until_done(&fleet.lab.nodes[0]);
    // Without an agent, a change of the mesh file shows up as a plan.
    fleet.agents.clear();
    fleet.edit(|mesh| mesh.pools.push(Pool { cidr: "10.162.0.0/16".parse().unwrap() }));
    let node = &fleet.lab.nodes[0];
    let (status, stdout, _) = run(node, "plan");
    assert!(status == 2 && stdout.contains("from 10.162.0.0/16 fwmark 0/0xa lookup 1"), "{status} {stdout}");
    assert!(json(node, "plan --json").to_string().contains("10.162.0.0/16"));
    assert_eq!(rules(node).len(), 2);
}

/// The columns of keys in docs/status.md, by the heading above each.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let text = include_str!("../../../../../docs/status.md");
    let mut keys: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut heading = String::new();
    for line in text.lines().skip_while(|line| *line != "## JSON") {
        if let Some(title) = line.strip_prefix("### ") {
            title.trim_matches('`').clone_into(&mut heading);
        } else if let Some(rest) = line.strip_prefix("| `") {
            keys.entry(heading.clone()).or_default().insert(rest.split('`').next().unwrap().to_owned());
        }
    }
    keys
}

/// The keys of an object.
fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}")).keys().cloned().collect()
}

#[test]
fn status_fits_80_columns_and_its_json_is_as_documented_also_without_an_agent() {
    let mut fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    fleet.wait_for_report(&fleet.lab.nodes[0], &fleet.agents[0]);
    let long = "ip-".to_owned() + &"10-161-".repeat(14);
    fleet.edit(|mesh| {
        let mut node = mesh.nodes[1].clone();
        node.name.clone_from(&long);
        node.public_key = Some("BzSHVXwQdAsPsYi85LQT0SBx1/inT04jViLkW9DDWUM=".into());
        node.endpoint = Some("[fd00:192:168:1:ffff:ffff:ffff:ffff]:51820".parse().unwrap());
        node.workloads = vec!["fd00:10:161:ffff:ffff:ffff:ffff:0/112".parse().unwrap()];
        node.addresses.clear();
        mesh.nodes.push(node);
    });
    let node = &fleet.lab.nodes[0];
    fleet.wait("the new peer", |_| run(node, "status").1.contains(&long));
    let narrow = |words: &str| {
        let mut command = Command::new(wireloom());
        let output = node.host.space.output(command.args(words.split(' ')).env_remove("COLUMNS")).unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for words in ["status", "status --verbose"] {
        let shown = narrow(words);
        assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
        assert!(shown.contains("left out") || shown.contains("never answered"), "{shown}");
    }
    let shown = json(node, "status --json");
    let documented = documented();
    let of = |heading: &str| documented[heading].clone();
    assert_eq!((keys(&shown), &shown["schema"]), (of("The report"), &1.into()));
    assert_eq!(keys(&shown["interface"]), of("interface"));
    for peer in shown["peers"].as_array().unwrap() {
        assert_eq!(keys(peer), of("peers[]"));
    }
    for dropped in shown["drops"].as_array().into_iter().flatten() {
        assert_eq!(keys(dropped), of("drops[]"));
        assert!(dropped["meaning"].is_string(), "{dropped}");
    }
    for warning in shown["warnings"].as_array().unwrap() {
        assert!(keys(warning).is_superset(&of("warnings[]")), "{warning}");
    }

    // Nobody reads a third one.
    let mut command = Command::new(wireloom());
    let command = command.args(["status", "--watch"]).stdout(Stdio::piped()).env("NO_COLOR", "1");
    let mut watch = node.host.space.spawn(command).unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        assert!(lines.by_ref().any(|line| line.unwrap().starts_with("node-a: ")));
    }
    drop(lines);
    let ended = until(PATIENCE, "--watch to end", || watch.try_wait().unwrap()).unwrap();
    assert_eq!(ended.code(), Some(1));

    fleet.agents.clear();
    agent::down(wireloom(), &fleet.lab.nodes[0]).unwrap();
    let (status, shown, _) = run(&fleet.lab.nodes[0], "status");
    assert!(status == 2 && shown.starts_with("node-a: NOT encrypted: "), "{status} {shown}");
    assert!(shown.contains("agent:      not running"), "{shown}");
    for (words, expected) in [("status --no-such-option", 3), ("status --help", 0)] {
        assert_eq!(run(&fleet.lab.nodes[0], words).0, expected, "{words}");
    }
}

#[test]
fn status_shows_mode_peers_and_rules_and_no_private_key() {
    let fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let node = &fleet.lab.nodes[0];
    let mut stdout = String::new();
    fleet.wait("a status without a fault", |_| {
        let (status, shown, _) = run(node, "status --verbose");
        stdout = shown;
        status == 0
    });
    assert!(stdout.starts_with("node-a: encrypted\n"), "{stdout}");
    for words in ["node-b  up", "endpoint 192.168.1.2:51820", "from 10.161.0.0/16 fwmark 0/0xa lookup 1"] {
        assert!(stdout.contains(words), "{words}: {stdout}");
    }
    assert!(!stdout.contains('\u{1b}'), "colours only on a terminal");
    let shown = json(node, "status --json");
    assert_eq!((&shown["node"], &shown["mode"]), (&"node-a".into(), &"scoped".into()));
    let [peer] = &shown["peers"].as_array().unwrap()[..] else { panic!("one peer: {shown}") };
    assert_eq!((&peer["name"], &peer["traffic"]), (&"node-b".into(), &"encrypted".into()));
    assert_eq!(peer["public_key"], Value::from(fleet.keys[1].public.clone()));
    // REJECT_AFTER_TIME: an older session is not used (section 6.1 of the WireGuard paper).
    assert!(peer["handshake_age_seconds"].as_u64().unwrap() < 180, "{peer}");
    assert!(peer["received"].as_u64().unwrap() > 0 && peer["sent"].as_u64().unwrap() > 0, "{peer}");
    let text = [stdout, shown.to_string()].concat();
    assert!(!text.contains(&fleet.keys[0].private), "a private key in the status");
}
