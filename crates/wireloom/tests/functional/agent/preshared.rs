//! The preshared key of the mesh: a file that the agent follows.

use serde_json::Value;
use wireloom_lab::{Layout, Node, Promise, agent, mesh::MEMBERS};

use crate::{
    fixtures::fleet::{Fleet, run},
    wireloom,
};

const SCOPED: &str = "encrypt_host_traffic = false";
const FILE: &str = "/etc/wireloom/mesh.psk";

/// Replaces the key of a node, as programs do that make keys.
fn put(node: &Node, key: &str) {
    node.host.space.write(&format!("{FILE}.new"), key).unwrap();
    node.run(&format!("chmod 600 {FILE}.new")).unwrap();
    node.run(&format!("mv {FILE}.new {FILE}")).unwrap();
}

fn new_key(fleet: &Fleet) -> String {
    fleet.lab.nodes[0].run(&format!("{} key preshared", wireloom().display())).unwrap().trim().to_owned()
}

/// The last words of every line that `wg show` prints about the peers.
fn of_peers(node: &Node, what: &str) -> Vec<String> {
    let shown = node.run(&format!("wg show wg0 {what}")).unwrap_or_default();
    shown.lines().filter_map(|line| Some(line.rsplit('\t').next()?.to_owned())).collect()
}

fn has_handshake(node: &Node) -> bool {
    of_peers(node, "latest-handshakes").iter().all(|time| time != "0")
}

fn errors(node: &Node) -> String {
    let status: Value = serde_json::from_str(&run(node, "status --json").1).unwrap_or_default();
    status["errors"].to_string()
}

#[test]
fn a_preshared_key_is_followed_and_nothing_is_configured_without_one() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    for node in &fleet.lab.nodes {
        let text = node.host.space.read(MEMBERS).unwrap().unwrap();
        node.host.space.write(MEMBERS, &format!("preshared_key_file = \"{FILE}\"\n{text}")).unwrap();
    }
    let keys = [(); 3].map(|()| new_key(&fleet));
    put(&fleet.lab.nodes[1], &keys[0]);
    fleet.start();
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };

    // No key at the start: no peer.
    let told = format!("the mesh names the preshared key {FILE}, and there is none that this node can use");
    fleet.wait("the refusal", |_| agent::log(a).unwrap().contains(&told));
    assert!(of_peers(a, "preshared-keys").is_empty());
    put(a, &keys[0]);
    fleet.settle(Promise::SCOPED);
    fleet.wait_for_proofs();
    assert_eq!([a, b].map(|node| of_peers(node, "preshared-keys")), [[keys[0].clone()], [keys[0].clone()]]);

    // A new key everywhere: the sessions go on, and the next handshake has it.
    let handshakes = of_peers(a, "latest-handshakes");
    for node in [a, b] {
        put(node, &keys[1]);
        fleet.wait("the new key", |_| of_peers(node, "preshared-keys") == [keys[1].as_str()]);
    }
    fleet.settle(Promise::SCOPED);
    // A session in use is replaced after 120 s (REKEY_AFTER_TIME, section 6.1 of the WireGuard paper), and the times
    // are whole seconds.
    let times =
        |handshakes: &[String]| -> Vec<u64> { handshakes.iter().map(|time| time.parse().unwrap()).collect() };
    let (before, after) = (times(&handshakes), times(&of_peers(a, "latest-handshakes")));
    let is_due = |(before, after): (&u64, &u64)| before == after || before + 119 <= *after;
    assert!(
        after.len() == 1 && before.iter().zip(&after).all(is_due),
        "no handshake was needed: {before:?} {after:?}"
    );
    a.run("ip link delete wg0").unwrap();
    fleet.wait("a handshake with the new key", |_| has_handshake(a));
    fleet.settle(Promise::SCOPED);

    // A new key on one node only: it answers no handshake, until the other has it as well.
    put(a, &keys[2]);
    fleet.wait("the new key", |_| of_peers(a, "preshared-keys") == [keys[2].as_str()]);
    let sent = |node| of_peers(node, "transfer").iter().map(|sent| sent.parse::<u64>().unwrap()).sum::<u64>();
    let before = sent(b);
    a.run("ip link delete wg0").unwrap();
    // A response has 92 bytes (section 5.4.3 of the WireGuard paper).
    fleet.wait("answers of the other node", |_| sent(b) >= before + 92);
    fleet.wait("the interface to be back", |_| of_peers(a, "preshared-keys") == [keys[2].as_str()]);
    assert!(!has_handshake(a), "the answers are of no use");
    put(b, &keys[2]);
    fleet.wait("a handshake with the new key", |_| has_handshake(a));
    fleet.settle(Promise::SCOPED);

    // What cannot be used is reported, and the last good key stays.
    a.run(&format!("chmod 644 {FILE}")).unwrap();
    let told = format!("the preshared key {FILE} is accessible to other users (mode 644)");
    fleet.wait("the error", |_| errors(a).contains(&told));
    assert!(errors(a).contains("the previous preshared key stays in force"));
    fleet.wait_until_done(a);
    assert_eq!(of_peers(a, "preshared-keys"), [keys[2].as_str()]);
    a.run(&format!("chmod 600 {FILE}")).unwrap();
    fleet.wait("the error to go", |_| errors(a) == "[]");
    for node in [a, b] {
        let said = agent::log(node).unwrap();
        assert!(keys.iter().all(|key| !said.contains(key)), "keys are not logged");
        assert!(said.contains("the preshared key has the hash "), "{said}");
    }
}
