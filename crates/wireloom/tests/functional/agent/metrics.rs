//! That Prometheus reads the agents' metrics, and that every query and alert in deploy/monitoring works.

use std::{collections::BTreeSet, process::Command, time::Instant};

use serde_json::Value;
use wireloom_lab::{Layout, PATIENCE, Promise, agent, require, until};

use crate::fixtures::{
    fleet::{Fleet, run, with_more_settings},
    prometheus::{Prometheus, get, monitoring},
};

const SETTINGS: &str = "encrypt_host_traffic = false";

/// Alerts about a store, or a device that hangs for long: promtool's tests have them.
const NOT_HERE: [&str; 2] = ["WireloomMembershipStale", "WireloomRecordsLeftOut"];

#[test]
fn promtool_finds_no_mistake_in_the_alerts_and_each_fires_when_it_should() {
    require(&["promtool"]).unwrap();
    let text = std::fs::read_to_string(monitoring().join("alerts-test.yaml")).unwrap();
    let alerts = std::fs::read_to_string(monitoring().join("alerts.yaml")).unwrap();
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(text.contains(&format!("alertname: {alert}\n")), "no test makes {alert} fire");
        assert!(
            text.contains(&format!("20m, alertname: {alert}, exp_alerts: []")),
            "{alert} for a healthy node"
        );
    }
    for words in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts-test.yaml"]] {
        let output = Command::new("promtool").args(words).current_dir(monitoring()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {said}");
    }
}

/// The queries of the dashboard, as Grafana sends them for all nodes.
fn dashboard() -> Vec<String> {
    let text = std::fs::read_to_string(monitoring().join("dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let queries = targets.map(|target| target["expr"].as_str().unwrap());
    queries.map(|query| query.replace("$instance", ".*").replace("$__rate_interval", "10s")).collect()
}

#[test]
fn prometheus_reads_the_agents_and_the_alerts_fire() {
    let layout = Layout { nodes: 3, ..Layout::default() };
    with_more_settings("[metrics]\nlisten = \"0.0.0.0:9586\"", || {
        let begun = Instant::now();
        let mut fleet = Fleet::new(layout, SETTINGS);
        fleet.settle(Promise::SCOPED);
        fleet.wait_for_report(&fleet.lab.nodes[0], &fleet.agents[0]);
        for (words, expected) in [("health live", 0), ("health ready", 0), ("health", 1)] {
            let said = run(&fleet.lab.nodes[0], words);
            assert_eq!(said.0, expected, "{words}: {said:?}");
        }
        let addresses = fleet.lab.nodes.iter().map(|node| format!("{}:9586", node.host.addresses.v4));
        let names = ["a", "b", "c"];
        let targets: Vec<_> = names.into_iter().zip(addresses).collect();
        let address = targets[0].1.clone();
        let prometheus = Prometheus::start(&fleet.lab.nodes[0], &targets);
        healthy(&fleet, &prometheus, &address);
        println!("figure: healthy after {:.1} s", begun.elapsed().as_secs_f64());
        disturbed(&mut fleet, &prometheus);
        println!("figure: all alerts after {:.1} s", begun.elapsed().as_secs_f64());
    });
}

/// Everything is there, nothing fires, and every query finds something, but for what only a store or a fault shows.
fn healthy(fleet: &Fleet, prometheus: &Prometheus, address: &str) {
    let node = &fleet.lab.nodes[0];
    let wait = |what: &str, query: &str, count: usize| {
        let found =
            until(PATIENCE, what, || prometheus.query(query).ok().filter(|found| found.len() == count));
        found.unwrap_or_else(|error| panic!("{error}\n{}\n{}", prometheus.log(), fleet.logs()))
    };
    wait("all nodes to encrypt", "wireloom_encrypting == 2", 3);
    wait("traffic of every pair", "wireguard_received_bytes_total > 0", 6);
    for (series, _) in wait("the handshakes", "time() - wireguard_latest_handshake_seconds < 120", 6) {
        let labels: Vec<_> = series.keys().map(String::as_str).filter(|label| *label != "job").collect();
        assert_eq!(labels, ["friendly_name", "instance", "interface", "public_key"]);
    }
    for page in ["/livez", "/readyz"] {
        let answer = get(&node.host.space, address, page).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{page}: {answer}");
    }
    let scrape = get(&node.host.space, address, "/metrics").unwrap();
    let (_, text) = scrape.split_once("\r\n\r\n").unwrap();
    node.host.space.feed("promtool check metrics", text).unwrap();

    let of_a_store = |query: &str| query.contains("membership_age") || query.contains("store_errors");
    for query in dashboard() {
        let found = until(PATIENCE, &query, || {
            let found = prometheus.query(&query).unwrap_or_else(|error| panic!("{query}: {error}"));
            // What is compared with 0 may find nothing.
            (!found.is_empty() || query.ends_with("> 0") || of_a_store(&query)).then_some(())
        });
        found.unwrap();
    }
    let alerts = prometheus.alerts();
    assert!(alerts.len() >= 11, "{alerts:?}");
    for (alert, query) in &alerts {
        prometheus.query(query).unwrap_or_else(|error| panic!("{alert}: {error}"));
    }
    // Between the first scrape and the first proof, a fleet is partly encrypted.
    until(PATIENCE, "all alerts to end", || prometheus.firing().is_empty().then_some(()))
        .unwrap_or_else(|error| panic!("{error}: {:?}", prometheus.firing()));
}

/// Each fault makes its alert fire.
fn disturbed(fleet: &mut Fleet, prometheus: &Prometheus) {
    let mut fired = BTreeSet::new();
    // c loses its agent, and then what keeps it from sending plaintext.
    fleet.agents.pop().unwrap().kill().unwrap();
    let [a, b, c] = &fleet.lab.nodes[..] else { panic!("three nodes") };
    c.run("nft delete table inet wireloom").unwrap();
    for family in ["-4", "-6"] {
        c.run(&format!("ip {family} rule del pref 99")).unwrap();
    }
    // b takes settings that are none, and a mesh without b.
    let mut mesh = fleet.mesh.clone();
    mesh.nodes.retain(|node| node.name != b.name);
    mesh.write_on(b).unwrap();
    b.host.space.write("/etc/wireloom/agent.toml", "nonsense").unwrap();
    let mut expected: BTreeSet<String> = prometheus.alerts().into_keys().collect();
    expected.retain(|alert| !NOT_HERE.contains(&alert.as_str()));
    let pids = a.run("pgrep -f wireloom.device").unwrap();
    let device = pids.split_whitespace().next().unwrap();
    let mut is_stopped = false;
    until(2 * PATIENCE, "every alert to fire", || {
        for pod in [&a.pods[0], &c.pods[0]] {
            for to in [&a.pods[0], &b.pods[0]] {
                let ping = format!("ping -c 1 -W 0.1 {}", to.addresses.v4);
                let _ = pod.space.run(&ping);
            }
        }
        // Somebody deletes a rule of a again and again.
        let _ = a.run("ip rule del pref 99");
        fired.extend(prometheus.firing());
        let missing: Vec<_> =
            expected.iter().filter(|name| !fired.iter().any(|(fired, _)| fired == *name)).collect();
        if missing.iter().all(|name| *name == "WireloomDeviceSilent") && !is_stopped {
            a.run(&format!("kill -STOP {device}")).unwrap();
            is_stopped = true;
        }
        missing.is_empty().then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {fired:?}\n{}", agent::log(a).unwrap()));
    a.run(&format!("kill -CONT {device}")).unwrap();
    for (alert, node) in [
        ("WireloomAgentDown", "c"),
        ("WireloomNotEncrypting", "b"),
        ("WireloomNotReady", "b"),
        ("WireloomAgentErrors", "b"),
        ("WireloomPartlyEncrypting", "a"),
        ("WireloomPeerSilent", "a"),
        ("WireloomGuardRefuses", "a"),
        ("WireloomRepairsRecur", "a"),
        ("WireloomDeviceSilent", "a"),
    ] {
        assert!(fired.contains(&(alert.to_owned(), node.to_owned())), "{alert} of {node}: {fired:?}");
    }
    let (status, said, _) = run(b, "health ready");
    assert!(status == 1 && said.contains("the mesh has no node node-b"), "{said}");
    let (status, said, _) = run(c, "health live");
    assert_eq!((status, said.as_str()), (1, "no agent runs\n"));
}
