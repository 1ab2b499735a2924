//! What `plan` and `status` print, for people and as JSON.

use serde_json::Value;
use wireloom_lab::{Layout, Node, Promise, mesh::Pool};

use crate::fixtures::fleet::{Fleet, rules, run};

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

#[test]
fn status_shows_mode_peers_and_rules_and_no_private_key() {
    let fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let node = &fleet.lab.nodes[0];
    let (status, stdout, stderr) = run(node, "status --verbose");
    assert_eq!(status, 0, "{stdout}{stderr}");
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
    assert!(peer["handshake_age_seconds"].as_u64().unwrap() < 60, "{peer}");
    assert!(peer["received"].as_u64().unwrap() > 0 && peer["sent"].as_u64().unwrap() > 0, "{peer}");
    let text = [stdout, shown.to_string()].concat();
    assert!(!text.contains(&fleet.keys[0].private), "a private key in the status");
}
