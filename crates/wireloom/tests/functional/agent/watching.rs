//! What is wrong and what only time shows: in the agent's log when it begins and when it is over, and in what it
//! reports.

use std::time::Duration;

use wireloom_lab::{FAMILIES, Layout, Node, Pinger, Promise, agent, mesh::PORT};

use crate::fixtures::fleet::{Fleet, LONG};

fn told(node: &Node, text: &str) -> bool {
    agent::log(node).unwrap().contains(text)
}

#[test]
fn a_foreign_rule_and_a_peer_that_falls_silent_are_logged_once_and_when_they_are_over() {
    let mut fleet = Fleet::new(Layout::default(), "encrypt_host_traffic = false");
    // A peer is silent after 16 to 23 s.
    fleet.patience = LONG;
    fleet.settle(Promise::SCOPED);
    fleet.wait_for_proofs();
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    let (rule, silent) = ("50: from 10.161.1.0/24 lookup main", "node-b is silent: ");
    let log = agent::log(a).unwrap();
    assert!(![rule, silent, "ERROR"].iter().any(|text| log.contains(text)), "nothing is wrong yet:\n{log}");

    a.run("ip rule add from 10.161.1.0/24 lookup main pref 50").unwrap();
    let drop = |hook: &str, which: &str| {
        format!("chain {hook} {{ type filter hook {hook} priority -400; udp {which} {PORT} drop; }}\n")
    };
    let wall = format!("table inet wall {{ {}{} }}\n", drop("input", "dport"), drop("output", "sport"));
    b.host.space.feed("nft -f -", &wall).unwrap();
    let ping = |family| Pinger::start(&a.pods[0], &b.pods[0], family, Duration::from_millis(200)).unwrap();
    let pingers = FAMILIES.map(ping);
    fleet.wait("the rule and the silence to be logged", |_| told(a, rule) && told(a, silent));
    let reported = a.run("cat /run/wireloom/wg0.json").unwrap();
    let reported: serde_json::Value = serde_json::from_str(&reported).unwrap();
    assert_eq!(reported["trends"]["unanswered"].as_object().unwrap().len(), 1, "{reported:#}");

    b.run("nft delete table inet wall").unwrap();
    a.run("ip rule delete pref 50").unwrap();
    fleet.wait("both to be over", |_| {
        [rule, silent].iter().all(|text| {
            let log = agent::log(a).unwrap();
            log.lines().any(|line| line.contains("no longer so") && line.contains(text))
        })
    });
    let log = agent::log(a).unwrap();
    for text in [rule, silent] {
        let lines = log.lines().filter(|line| line.contains(text) && !line.contains("no longer so"));
        assert_eq!(lines.count(), 1, "{log}");
    }
    pingers.into_iter().for_each(|pinger| std::mem::drop(pinger.stop()));
    for line in log.lines().filter(|line| !line.contains("done:")) {
        println!("{line}");
    }
}
