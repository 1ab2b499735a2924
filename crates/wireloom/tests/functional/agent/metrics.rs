//! That Prometheus reads the agents' metrics, and that every query and alert in deploy/monitoring works.

use std::{collections::BTreeSet, process::Command, time::Instant};

use serde_json::Value;
use wireloom_lab::{Layout, PATIENCE, Promise, agent, mesh::write_settings, require, until};

use crate::fixtures::{
    fleet::{Fleet, run, with_more_settings},
    prometheus::{Prometheus, get, monitoring},
};

const SETTINGS: &str = "encrypt_host_traffic = false";

/// Alerts about a store: promtool's tests have them.
const NOT_HERE: [&str; 3] =
    ["WireloomMembershipStale", "WireloomRecordNotPublished", "WireloomRecordsLeftOut"];

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
        can_be_moved(&fleet);
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

/// The address is a setting like others: it changes while the agent runs.
fn can_be_moved(fleet: &Fleet) {
    let node = &fleet.lab.nodes[0];
    let answers = |port: u16| get(&node.host.space, &format!("127.0.0.1:{port}"), "/livez").is_some();
    write_settings(node, &format!("{SETTINGS}\n[metrics]\nlisten = \"127.0.0.1:9587\"")).unwrap();
    fleet.wait("the other port", |_| answers(9587) && !answers(9586));
    fleet.route(SETTINGS);
    fleet.wait("the first port", |_| answers(9586) && !answers(9587));
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

    let absent = ["wireloom_warnings", "wireloom_membership_age", "wireloom_store_errors"];
    for query in dashboard() {
        let found = until(PATIENCE, &query, || {
            let found = prometheus.query(&query).unwrap_or_else(|error| panic!("{query}: {error}"));
            // What is compared with 0 may find nothing.
            (!found.is_empty() || query.ends_with("> 0") || absent.iter().any(|name| query.contains(name)))
                .then_some(())
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
    // c loses its agent, and then what keeps it from sending plaintext.
    fleet.agents.pop().unwrap().kill().unwrap();
    let [a, b, c] = &fleet.lab.nodes[..] else { panic!("three nodes") };
    c.run("nft delete table inet wireloom").unwrap();
    for family in ["-4", "-6"] {
        c.run(&format!("ip {family} rule del pref 99")).unwrap();
    }
    // b is cut off, its device hangs, and its settings are none.
    let chain =
        |hook: &str| format!("chain {hook} {{ type filter hook {hook} priority 0; udp dport 51820 drop; }}");
    let cut = format!("table inet cut {{ {}\n{}\n}}", chain("input"), chain("output"));
    b.host.space.feed("nft -f -", &cut).unwrap();
    b.host.space.write("/etc/wireloom/agent.toml", "nonsense").unwrap();
    let device = b.run("pgrep -f wireloom.device").unwrap();
    b.run(&format!("kill -STOP {}", device.split_whitespace().next().unwrap())).unwrap();
    fleet.wait("b to be unready", |_| {
        let (status, said, _) = run(b, "health ready");
        status == 1 && said.contains("does not answer")
    });
    assert_eq!(run(b, "health live").0, 0);
    assert_eq!(run(c, "health live").1, "no agent runs\n");

    let expected: BTreeSet<(String, String)> = [
        ("WireloomAgentDown", "c"),
        ("WireloomAgentErrors", "b"),
        ("WireloomDeviceSilent", "b"),
        ("WireloomNotEncrypting", "b"),
        ("WireloomNotReady", "b"),
        ("WireloomGuardRefuses", "a"),
        ("WireloomPartlyEncrypting", "a"),
        ("WireloomPeerSilent", "a"),
        ("WireloomRepairsRecur", "a"),
    ]
    .map(|(alert, node)| (alert.to_owned(), node.to_owned()))
    .into();
    let tried = expected.iter().map(|(alert, _)| alert.as_str()).chain(NOT_HERE);
    let alerts = prometheus.alerts();
    assert_eq!(tried.collect::<BTreeSet<_>>(), alerts.keys().map(String::as_str).collect());
    let mut fired = BTreeSet::new();
    until(2 * PATIENCE, "every alert to fire", || {
        for (from, to) in [(a, b), (c, a)] {
            let ping = format!("ping -c 1 -W 0.01 {}", to.pods[0].addresses.v4);
            let _ = from.pods[0].space.run(&ping);
        }
        // Somebody deletes a rule of a again and again.
        let _ = a.run("ip rule del pref 99");
        fired.extend(prometheus.firing());
        fired.is_superset(&expected).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {fired:?}\n{}", agent::log(a).unwrap()));
}
