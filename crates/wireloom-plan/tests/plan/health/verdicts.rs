//! The verdict, and the state of each peer.

use wireloom_plan::{
    cluster::{Cluster, Node},
    firewall::{GuardSet, Guarded},
    health::{Difference, Encryption, Finding, LeftOut, PeerFacts, PeerState, Verdict, Why},
    proofs::{Account, Because},
    routing::{OtherRoute, Route, RouteKind},
    settings::UnprovenPeers,
    warning::Severity,
};

use super::{MAIN, Scene, ago};
use crate::world::{Machine, key, net, proven};

#[test]
fn a_sound_node_is_encrypted_and_nothing_is_found() {
    let health = Scene::new().health();
    assert_eq!((health.findings.as_slice(), health.worst()), ([].as_slice(), None));
    assert_eq!(health.verdict.to_string(), "encrypted");
    assert_eq!(health.peers.iter().map(|peer| &*peer.name).collect::<Vec<_>>(), ["b", "c"]);
    for peer in &health.peers {
        assert_eq!((&peer.state, &peer.encrypted), (&PeerState::Up, &Encryption::Encrypted));
        assert_eq!(peer.last_handshake_age, Some(60));
    }
    let host = Scene::with(|_| {}, |machine| machine.settings.encrypt_host_traffic = true).health();
    assert_eq!((host.verdict, host.findings), (Verdict::Encrypted, vec![]));
}

#[test]
fn a_proven_peer_without_traffic_is_idle_and_stays_encrypted() {
    let mut scene = Scene::new();
    scene.peers.get_mut(&key(2)).unwrap().last_handshake = Some(ago(181));
    scene.peers.insert(key(3), PeerFacts::default());
    for name in ["b", "c"] {
        assert_eq!(scene.peer(name).state, PeerState::Idle);
        assert_eq!(scene.peer(name).encrypted, Encryption::Encrypted);
    }
    assert_eq!(scene.verdict(), "encrypted");
}

#[test]
fn an_unproven_peer_that_never_answered_is_in_plaintext_or_refused() {
    let mut scene = Scene::new();
    scene.unprove("b", Because::NoAnswer);
    let endpoint = scene.peers[&key(2)].endpoint;
    scene.peers.insert(key(2), PeerFacts { sent: 148, endpoint, ..PeerFacts::default() });
    assert_eq!(scene.verdict(), "partly: plaintext with b (unproven)");
    assert_eq!(scene.peer("b").state, PeerState::NeverAnswered { since: Some(ago(40)) });
    let found = scene.finding();
    let text = found.to_string();
    assert!(text.starts_with("b has never answered at 192.168.1.2:51820, asked for 40 s now"), "{text}");
    assert!(text.contains(&key(2).to_string()), "{text}");
    assert_eq!(found.severity(), Severity::Warning);

    scene.accounts.insert("b".into(), Account::Unproven { since: ago(9), because: Because::NoAnswer });
    assert_eq!(scene.findings(), [], "it may still answer");

    scene.machine.settings.unproven_peers = UnprovenPeers::Reject;
    scene.machine.reconcile(scene.cluster.as_ref().unwrap());
    assert_eq!(scene.verdict(), "partly: nothing passes to b (unproven)");
}

#[test]
fn a_proven_peer_that_is_silent_is_refused_not_in_plaintext() {
    let mut scene = Scene::new();
    scene.send_in_vain(2, 14);
    assert_eq!(scene.findings(), [], "it may still answer");
    let mut scene = Scene::new();
    scene.send_in_vain(2, 33);
    assert_eq!(scene.peer("b").state, PeerState::Silent { since: ago(33) });
    assert_eq!(scene.peer("b").encrypted, Encryption::Refused { why: Why::NoAnswer });
    assert_eq!(scene.verdict(), "partly: nothing passes to b (no answer)");
    let text = scene.finding().to_string();
    assert!(text.starts_with("b is silent: for 33 s now"), "{text}");
}

#[test]
fn a_handshake_after_a_silence_began_ends_it() {
    let mut scene = Scene::new();
    scene.send_in_vain(2, 33);
    for (handshake, silent) in [(ago(40), true), (ago(33), true), (ago(3), false), (ago(0), false)] {
        scene.peers.get_mut(&key(2)).unwrap().last_handshake = Some(handshake);
        assert_eq!(matches!(scene.peer("b").state, PeerState::Silent { .. }), silent, "{handshake:?}");
    }
    assert_eq!(scene.verdict(), "encrypted");
    scene.peers.get_mut(&key(2)).unwrap().last_handshake = Some(ago(0) + std::time::Duration::from_secs(900));
    assert_eq!(scene.peer("b").state, PeerState::Silent { since: ago(33) }, "the clock was set back");
}

#[test]
fn a_node_that_is_gone_from_the_mesh_is_refused_while_the_guard_has_what_it_had() {
    let gone = |mesh: &mut Cluster| {
        let b = mesh.nodes.get_mut("b").unwrap();
        *b = Node { addresses: b.addresses.clone(), workloads: b.workloads.clone(), ..Node::default() };
    };
    let standings = [("b".to_owned(), proven(key(2))), ("c".to_owned(), proven(key(3)))];
    let mut scene = Scene::with(gone, |machine| machine.standings = Some(standings.clone().into()));
    scene.accounts.remove("b");
    // Nothing leads to it, and nothing should.
    scene.rest.tables = [(MAIN, ["10.161.1.0/24", "10.161.3.0/24", "fd61:0:0:1::/64", "fd61:0:0:3::/64"])]
        .map(|(table, routes)| (table, routes.map(net).into()))
        .into();
    assert_eq!(scene.peer("b").state, PeerState::LeftOut { reason: LeftOut::Gone });
    assert_eq!(scene.peer("b").encrypted, Encryption::Refused { why: Why::Gone });
    assert_eq!(scene.verdict(), "partly: nothing passes to b (gone from the mesh)");
    assert_eq!(scene.findings(), []);
    // One of its blocks is not refused any more.
    let refused = |element: &Guarded| element.set == GuardSet::RefusedOut;
    let first = *scene.machine.kernel.guarded.iter().find(|element| refused(element)).unwrap();
    scene.machine.kernel.guarded.remove(&first);
    assert_eq!(scene.peer("b").encrypted, Encryption::Plaintext { why: Why::Gone });
}

#[test]
fn nodes_that_are_left_out_stay_in_the_table_with_their_reason() {
    let mut scene = Scene::with(|mesh| mesh.nodes.get_mut("b").unwrap().public_key = None, |_| {});
    scene.unprove("b", Because::NoKey);
    assert_eq!(scene.peer("b").state, PeerState::LeftOut { reason: LeftOut::NoKey });
    assert_eq!(scene.peer("b").encrypted, Encryption::Plaintext { why: Why::LeftOut });
    assert_eq!(scene.verdict(), "partly: plaintext with b (left out of the mesh)");

    // Both claim c's key, and nobody has proved it.
    let mut scene = Scene::with(
        |mesh| mesh.nodes.get_mut("b").unwrap().public_key = Some(key(3)),
        |machine| machine.standings = Some([].into()),
    );
    for (name, other) in [("b", "c"), ("c", "b")] {
        let because = Because::SharedKey { with: vec![other.to_owned()] };
        scene.accounts.insert(name.to_owned(), Account::Unproven { since: ago(40), because });
        let reason = LeftOut::SharedKey { with: vec![other.to_owned()] };
        assert_eq!(scene.peer(name).state, PeerState::LeftOut { reason });
    }
    assert_eq!(scene.verdict(), "NOT encrypted: plaintext with b, c (left out of the mesh)");
    // c has proved it: the device's peer with this key is c's alone.
    let mut scene = Scene::with(
        |mesh| mesh.nodes.get_mut("b").unwrap().public_key = Some(key(3)),
        |machine| machine.standings = Some([("c".to_owned(), proven(key(3)))].into()),
    );
    let because = Because::SharedKey { with: vec!["c".to_owned()] };
    scene.accounts.insert("b".to_owned(), Account::Unproven { since: ago(40), because });
    assert!(matches!(scene.peer("b").state, PeerState::LeftOut { .. }));
    assert_eq!(scene.peer("c").state, PeerState::Up);
}

#[test]
fn a_peer_that_somebody_changed_is_out_of_date() {
    let mut scene = Scene::new();
    let device = scene.machine.kernel.device.as_mut().unwrap();
    device.peers.get_mut(&key(2)).unwrap().allowed_ips.clear();
    assert_eq!(scene.peer("b").state, PeerState::OutOfDate { what: Difference::Differs });
    assert_eq!(scene.peer("b").encrypted, Encryption::Refused { why: Why::OutOfDate });
    scene.machine.kernel.device.as_mut().unwrap().peers.remove(&key(2));
    scene.peers.remove(&key(2));
    assert_eq!(scene.peer("b").state, PeerState::OutOfDate { what: Difference::Missing });
    assert_eq!(scene.verdict(), "partly: nothing passes to b (the device is out of date)");
    scene.peers.insert(key(9), PeerFacts::default());
    let peers = scene.health().peers;
    assert_eq!(peers.last().unwrap().name, key(9).to_string());
    assert_eq!(peers.last().unwrap().state, PeerState::OutOfDate { what: Difference::Unknown });
}

#[test]
fn a_keepalive_that_is_still_to_change_is_nothing_to_report() {
    let mut scene = Scene::new();
    let device = scene.machine.kernel.device.as_mut().unwrap();
    device.peers.get_mut(&key(2)).unwrap().persistent_keepalive = 3;
    assert_eq!((scene.verdict().as_str(), scene.findings()), ("encrypted", vec![]));
    assert_eq!(scene.peer("b").state, PeerState::Up);
}

#[test]
fn without_a_device_nothing_is_encrypted() {
    let mut scene = Scene::new();
    scene.answers = false;
    scene.silent_for = Some(7);
    assert_eq!(
        scene.verdict(),
        "NOT encrypted: the WireGuard device has not answered for 7 s; nothing passes, nothing in plaintext either"
    );
    assert_eq!(scene.finding(), Finding::DeviceSilent { seconds: 7 });
    assert_eq!(scene.peer("b").encrypted, Encryption::Refused { why: Why::NoDevice });
    scene.silent_for = None;
    assert_eq!(scene.finding(), Finding::DeviceAbsent { interface: "wg0".into() });
    scene.answers = true;
    scene.machine.kernel.interface.as_mut().unwrap().up = false;
    assert!(scene.findings().contains(&Finding::InterfaceDown { interface: "wg0".into() }));
    assert!(scene.verdict().starts_with("NOT encrypted: interface wg0 is down"));
}

#[test]
fn without_the_interface_what_is_proven_is_refused() {
    let mut scene = Scene::new();
    let kernel = &mut scene.machine.kernel;
    (kernel.interface, kernel.device) = (None, None);
    kernel.routes.retain(|route| !matches!(route.kind, RouteKind::Device { .. }));
    scene.answers = false;
    assert_eq!(
        scene.verdict(),
        "NOT encrypted: interface wg0 does not exist; nothing passes, nothing in plaintext either"
    );
    assert_eq!(scene.finding(), Finding::InterfaceMissing { interface: "wg0".into() });
    scene.machine.kernel.firewall = None;
    let text = scene.verdict();
    assert!(text.ends_with("nothing refuses plaintext; traffic between workloads is in plaintext"), "{text}");
}

#[test]
fn missing_rules_are_named() {
    let mut scene = Scene::new();
    scene.machine.kernel.rules.clear();
    scene.rest.rules.clear();
    assert_eq!(
        scene.verdict(),
        "NOT encrypted: our rules are missing; nothing passes, nothing in plaintext either"
    );
    let text = scene.finding().to_string();
    assert!(text.starts_with("2 rules of ours are missing, such as `99: from "), "{text}");
    assert_eq!(scene.health().worst(), Some(Severity::Error));
}

#[test]
fn missing_routes_are_named_and_never_called_encrypted() {
    let flush = |scene: &mut Scene| scene.machine.kernel.routes.clear();
    let mut scene = Scene::new();
    flush(&mut scene);
    assert_eq!(scene.verdict(), "NOT encrypted: nothing passes to b, c (our routes are not in place)");
    assert_eq!(scene.peer("b").encrypted, Encryption::Refused { why: Why::NoRoute });
    let text = scene.finding().to_string();
    assert!(
        text.contains("routes of ours are missing from our table 1, such as that to 10.161.2.0/24"),
        "{text}"
    );
    assert_eq!(scene.health().worst(), Some(Severity::Error));

    let mut scene = Scene::with(|_| {}, |machine| machine.settings.guard = false);
    flush(&mut scene);
    assert_eq!(scene.verdict(), "NOT encrypted: plaintext with b, c (our routes are not in place)");
    // What is led past the tunnel is in plaintext whatever becomes of the peer.
    scene.machine.kernel.device.as_mut().unwrap().public_key = Some(key(7));
    assert_eq!(scene.peer("b").encrypted, Encryption::Plaintext { why: Why::OurKey });

    let mut scene = Scene::new();
    scene.machine.kernel.routes.retain(|route| route.destination != net("10.161.2.0/24"));
    assert_eq!(scene.verdict(), "partly: nothing passes to b (our routes are not in place)");
    assert!(scene.finding().to_string().starts_with("a route of ours is missing"));
}

#[test]
fn a_route_of_another_in_our_table_that_leads_elsewhere_is_never_called_encrypted() {
    let elsewhere = RouteKind::Other(OtherRoute { interface: Some("eth0".into()), ..OtherRoute::default() });
    let add = |scene: &mut Scene, to: &str, metric| {
        let route = Route { destination: net(to), kind: elsewhere.clone(), metric, protocol: 3 };
        scene.machine.kernel.routes.insert(route);
    };
    let mut scene = Scene::new();
    add(&mut scene, "10.161.2.0/24", 100);
    add(&mut scene, "10.0.0.0/8", 0);
    assert_eq!(scene.verdict(), "encrypted", "ours come first");
    add(&mut scene, "10.161.2.7/32", 100);
    assert_eq!(scene.verdict(), "partly: nothing passes to b (our routes are not in place)");
    let mut scene = Scene::with(|_| {}, |machine| machine.settings.guard = false);
    add(&mut scene, "10.161.2.7/32", 0);
    assert_eq!(scene.verdict(), "partly: plaintext with b (our routes are not in place)");
}

#[test]
fn a_local_workload_that_no_rule_covers_is_never_called_encrypted() {
    let scene = Scene::with(
        |mesh| {
            mesh.nodes.get_mut("a").unwrap().workloads.insert(net("10.99.0.0/24"));
        },
        |_| {},
    );
    let expected = "partly: what 10.99.0.0/24 here sends is in plaintext (no rule covers it)";
    assert_eq!(scene.verdict(), expected);
}

#[test]
fn a_missing_guard_is_partly_encrypted() {
    let mut scene = Scene::new();
    scene.machine.kernel.firewall = None;
    scene.machine.kernel.guarded.clear();
    assert_eq!(scene.finding(), Finding::GuardMissing);
    assert_eq!(scene.verdict(), "partly: the guard is missing, so nothing refuses plaintext");
    let without = Scene::with(|_| {}, |machine| machine.settings.guard = false);
    assert_eq!(without.findings(), [], "nobody wants it");
}

#[test]
fn another_key_than_the_mesh_has_encrypts_nothing() {
    let mut scene = Scene::new();
    scene.machine.kernel.device.as_mut().unwrap().public_key = Some(key(7));
    assert!(scene.verdict().starts_with("NOT encrypted: the mesh does not have this node's key"));
    let mut scene = Scene::new();
    scene.cluster.as_mut().unwrap().nodes.remove("a");
    assert!(scene.verdict().starts_with("NOT encrypted: the mesh has no node a"));
    scene.cluster = None;
    assert!(scene.verdict().starts_with("NOT encrypted: the mesh cannot be read"));
    assert_eq!(scene.health().peers.len(), 2, "those of the device");
}

#[test]
fn without_an_agent_and_anything_of_ours_one_finding_says_so() {
    let mut scene = Scene::new();
    scene.running = false;
    assert_eq!(scene.finding(), Finding::AgentNotRunning);
    scene.machine = Machine::new("a", key(1), scene.cluster.as_ref().unwrap());
    scene.rest.rules.clear();
    scene.answers = false;
    assert_eq!(scene.finding(), Finding::NothingProgrammed);
    assert!(scene.verdict().starts_with("NOT encrypted: "));
    let mut stuck = Scene::new();
    stuck.last_pass = ago(91);
    assert_eq!(stuck.finding(), Finding::AgentStuck { seconds: 91 });
}

#[test]
fn the_json_form_names_verdict_states_and_findings() {
    let mut scene = Scene::new();
    scene.send_in_vain(2, 33);
    let health = serde_json::to_value(scene.health()).unwrap();
    assert_eq!(health["verdict"]["is"], "partly");
    assert_eq!(health["verdict"]["reasons"][0], "nothing passes to b (no answer)");
    assert_eq!(health["peers"][0]["state"]["state"], "silent");
    assert_eq!(health["peers"][0]["encrypted"]["is"], "refused");
    assert_eq!(health["peers"][0]["encrypted"]["why"], "no_answer");
    assert_eq!(health["peers"][1]["last_handshake_age_seconds"], 60);
    assert_eq!(health["findings"][0]["warning"], "silent");
}
