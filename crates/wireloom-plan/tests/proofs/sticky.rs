//! How a node becomes proven, what its proof outlives, and the two ways back.

use std::collections::BTreeSet;

use wireloom_plan::{
    proofs::{Account, Because, Preconditions},
    routing::Family,
    standing::Standing,
};

use crate::world::{START, World, key, seconds};

const READY: Preconditions = Preconditions { ready: true, forwarding_v4: true, forwarding_v6: true };

fn because(world: &World, name: &str) -> Option<Because> {
    match &world.proofs.accounts(&READY)[name] {
        Account::Proven { .. } => None,
        Account::Unproven { because, .. } => Some(because.clone()),
    }
}

#[test]
fn a_handshake_proves_a_node_one_direction_at_once_and_the_other_after_fifteen_seconds() {
    let mut world = World::new();
    world.pass(5.0);
    assert_eq!(world.proofs.standings().len(), 0);
    assert_eq!(because(&world, "b"), Some(Because::NoAnswer));
    world.handshake(2);
    let fresh = Standing { key: key(2), egress: true, ingress: false, fresh: true };
    assert_eq!(world.standing("b"), Some(fresh));
    assert_eq!(world.proofs.due(world.now), Some(seconds(15.0)));
    world.pass(14.9);
    assert_eq!(world.standing("b"), Some(fresh));
    world.pass(0.1);
    assert_eq!(world.standing("b"), Some(Standing { ingress: true, fresh: false, ..fresh }));
    assert_eq!(world.proofs.due(world.now), None);
    let account = Account::Proven { since: START + seconds(5.0), ends: None };
    assert_eq!(world.proofs.accounts(&READY)["b"], account);
    assert_eq!(world.standing("c"), None);
}

#[test]
fn a_proof_outlives_restarts_keys_and_records_without_a_key() {
    let mut world = World::with_b();
    world.restart();
    assert_eq!(world.refuses("b"), [true; 2], "before anything is looked at");
    world.handshakes.clear();
    world.pass(1.0);
    world.edit_node("b", |b| b.public_key = None);
    assert_eq!(world.standing("b").unwrap().key, key(2));
    assert_eq!(world.refuses("b"), [true; 2]);
    // A new key is not proven yet.
    world.edit_node("b", |b| b.public_key = Some(key(9)));
    world.pass(100.0);
    assert_eq!(
        world.standing("b"),
        Some(Standing { key: key(2), egress: true, ingress: true, fresh: false })
    );
    assert!(world.proofs.to_ask().any(|it| it.key == key(9)));
    world.handshake(9);
    assert_eq!(
        world.standing("b"),
        Some(Standing { key: key(9), egress: true, ingress: true, fresh: false })
    );
}

#[test]
fn of_two_nodes_with_one_key_the_proven_one_keeps_it_and_without_a_proof_it_proves_nobody() {
    let mut world = World::with_b();
    world.edit_node("c", |c| c.public_key = Some(key(2)));
    world.pass(100.0);
    assert_eq!(world.refuses("b"), [true; 2]);
    assert_eq!(world.standing("c"), None);
    assert_eq!(because(&world, "c"), Some(Because::SharedKey { with: vec!["b".to_owned()] }));
    // Nor can another node take the key when its owner's record has lost it.
    world.edit_node("b", |b| b.public_key = None);
    world.pass(100.0);
    assert_eq!(world.standing("c"), None);
    assert_eq!(world.refuses("b"), [true; 2]);
    // Without a proof, nobody has it.
    world.edit_node("d", |d| d.public_key = Some(key(3)));
    world.edit_node("c", |c| c.public_key = Some(key(3)));
    world.handshake(3);
    assert_eq!((world.standing("c"), world.standing("d")), (None, None));
}

#[test]
fn swapped_keys_can_be_put_right() {
    let mut world = World::new();
    world.edit_node("b", |b| b.public_key = Some(key(3)));
    world.edit_node("c", |c| c.public_key = Some(key(2)));
    world.handshake(2);
    world.handshake(3);
    world.edit_node("b", |b| b.public_key = Some(key(2)));
    world.edit_node("c", |c| c.public_key = Some(key(3)));
    world.pass(1.0);
    assert_eq!(world.standing("b").unwrap().key, key(2));
    assert_eq!(world.standing("c").unwrap().key, key(3));
}

#[test]
fn our_own_key_proves_nobody() {
    let mut world = World::new();
    world.edit_node("b", |b| b.public_key = Some(key(1)));
    world.handshake(1);
    assert_eq!(world.proofs.standings().len(), 0);
    assert_eq!(because(&world, "b"), Some(Because::OwnKey));
    // Nor does the key that our record has, if the device has another.
    world.edit_node("a", |a| a.public_key = Some(key(7)));
    world.edit_node("b", |b| b.public_key = Some(key(7)));
    world.handshake(7);
    assert_eq!(world.proofs.standings().len(), 0);
}

#[test]
fn a_node_that_says_so_becomes_direct_again_and_must_be_proven_anew() {
    for whose in ["b", "a"] {
        let mut world = World::with_b();
        world.edit_node(whose, |node| node.encrypt = false);
        assert_eq!(world.refuses("b"), [true, false], "ingress opens at once");
        assert!(!world.standing("b").unwrap().fresh);
        world.pass(14.9);
        world.restart();
        assert_eq!(world.refuses("b"), [true, false]);
        assert_eq!(world.proofs.to_ask().filter(|it| it.name == "b").count(), 0);
        world.pass(0.1);
        assert_eq!(world.refuses("b"), [false; 2]);
        world.pass(59.9);
        assert!(world.standing("b").is_some(), "the device still decrypts what b sends");
        world.pass(0.1);
        assert_eq!(world.standing("b"), None);
        world.pass(100.0);
        let expected = if whose == "a" { Because::WeDoNotEncrypt } else { Because::ItDoesNotEncrypt };
        assert_eq!(because(&world, "b"), Some(expected));
        // The device has forgotten the peer meanwhile.
        world.handshakes.clear();
        world.edit_node(whose, |node| node.encrypt = true);
        world.pass(1.0);
        assert_eq!(world.standing("b"), None);
        world.handshake(2);
        assert_eq!(world.refuses("b"), [true, false]);
    }
}

#[test]
fn a_node_that_changes_its_mind_in_time_stays_proven() {
    let mut world = World::with_b();
    world.edit_node("b", |b| b.encrypt = false);
    world.pass(10.0);
    world.edit_node("b", |b| b.encrypt = true);
    assert_eq!(
        world.standing("b"),
        Some(Standing { key: key(2), egress: true, ingress: false, fresh: true })
    );
    world.pass(15.0);
    assert_eq!(world.refuses("b"), [true; 2]);
}

#[test]
fn a_clock_that_is_set_back_takes_nothing_back_and_stops_nothing() {
    let mut world = World::with_b();
    world.handshake(3);
    world.now -= seconds(1_000_000.0);
    world.look();
    assert_eq!(world.refuses("b"), [true; 2]);
    assert_eq!(world.refuses("c"), [true, false]);
    world.pass(15.0);
    assert_eq!(world.refuses("c"), [true; 2]);
    world.edit_node("c", |c| c.encrypt = false);
    world.now -= seconds(1_000_000.0);
    world.look();
    world.pass(15.0);
    assert_eq!(world.refuses("c"), [false; 2]);
}

#[test]
fn nobody_is_asked_while_we_could_not_deliver() {
    let mut world = World::new();
    assert_eq!(world.proofs.unmet(&READY), None);
    assert_eq!(world.proofs.to_ask().map(|it| it.name.to_owned()).collect::<Vec<_>>(), ["b", "c", "d"]);
    let unready = Preconditions { ready: false, ..READY };
    assert_eq!(world.proofs.unmet(&unready), Some(Because::NotReady));
    let still = Preconditions { forwarding_v4: false, ..READY };
    assert_eq!(world.proofs.unmet(&still), Some(Because::NoForwarding { family: Family::V4 }));
    let without_v6 = Preconditions { forwarding_v6: false, ..READY };
    assert_eq!(world.proofs.unmet(&without_v6), None, "our workloads have IPv4 only");
    world.handshake(2);
    world.edit_node("c", |c| c.endpoint = None);
    world.edit_node("d", |d| d.encrypt = false);
    assert_eq!(world.proofs.to_ask().count(), 0);
    assert_eq!(because(&world, "c"), Some(Because::NoEndpoint));
}

#[test]
fn nobody_is_said_not_to_answer_while_the_mesh_does_not_have_our_key() {
    for key in [None, Some(key(9))] {
        let mut world = World::new();
        world.edit_node("a", |a| a.public_key = key);
        assert_eq!(because(&world, "b"), Some(Because::OurKeyUnknown));
        world.edit_node("c", |c| c.public_key = None);
        assert_eq!(because(&world, "c"), Some(Because::NoKey));
    }
}

#[test]
fn every_reason_names_what_to_do() {
    let told = |because: Because| because.to_string();
    assert_eq!(
        told(Because::SharedKey { with: vec!["b".to_owned(), "c".to_owned()] }),
        "b, c claims the same key; give each node a key of its own"
    );
    assert_eq!(
        told(Because::NoForwarding { family: Family::V6 }),
        "this machine does not forward IPv6; set net.ipv6.conf.all.forwarding=1"
    );
    let texts: BTreeSet<_> =
        [Because::NoKey, Because::OwnKey, Because::OurKeyUnknown, Because::NoEndpoint, Because::NoAnswer]
            .map(told)
            .into();
    assert!(texts.iter().all(|text| text.contains("; ") || text.contains(", ")));
}
