//! What a proven node gave up stays refused until another node claims it, or for a minute.

use crate::world::{World, net};

const BLOCK: &str = "10.161.2.0/24";

#[test]
fn a_block_that_a_record_lost_stays_for_a_minute() {
    let mut world = World::with_b();
    world.edit_node("b", |b| b.workloads = [net("10.161.9.0/24")].into());
    assert!(world.has("b", BLOCK) && world.has("b", "10.161.9.0/24"));
    world.pass(30.0);
    world.restart();
    world.pass(29.9);
    assert!(world.has("b", BLOCK));
    world.pass(0.1);
    assert!(!world.has("b", BLOCK) && world.has("b", "10.161.9.0/24"));
    assert_eq!(world.refuses("b"), [true; 2]);
}

#[test]
fn it_is_noticed_although_no_agent_ran() {
    let mut world = World::with_b();
    world.mesh.nodes.get_mut("b").unwrap().workloads.clear();
    world.restart();
    assert!(world.has("b", BLOCK));
}

#[test]
fn whoever_claims_it_has_it() {
    // As it is, a wider one, and at the same moment.
    for claim in [BLOCK, "10.161.2.0/23"] {
        let mut world = World::with_b();
        world.edit_node("b", |b| b.workloads.clear());
        world.pass(1.0);
        world.edit_node("d", |d| _ = d.workloads.insert(net(claim)));
        assert!(!world.has("b", BLOCK) && world.has("d", claim));

        let mut world = World::with_b();
        world.edit(|mesh| {
            mesh.nodes.get_mut("b").unwrap().workloads.clear();
            mesh.nodes.get_mut("d").unwrap().workloads.insert(net(claim));
        });
        assert!(!world.has("b", BLOCK) && world.has("d", claim));
    }
    // A single address of it wins by its longer prefix.
    let mut world = World::with_b();
    world.edit_node("b", |b| b.workloads.clear());
    world.edit_node("d", |d| _ = d.workloads.insert(net("10.161.2.7/32")));
    assert!(world.has("b", BLOCK) && world.has("d", "10.161.2.7/32"));
}

#[test]
fn a_borrowed_address_returns_to_its_block_at_once() {
    let mut world = World::with_b();
    world.edit_node("b", |b| _ = b.workloads.insert(net("10.161.3.7/32")));
    world.edit_node("b", |b| _ = b.workloads.remove(&net("10.161.3.7/32")));
    assert!(!world.has("b", "10.161.3.7/32"));
}

#[test]
fn a_node_that_leaves_stays_refused_for_a_minute_and_is_forgotten() {
    let mut world = World::with_b();
    world.edit(|mesh| _ = mesh.nodes.remove("b"));
    let b = &world.effective.nodes["b"];
    assert_eq!((b.public_key, b.endpoint), (None, None));
    assert!(world.has("b", BLOCK));
    world.restart();
    world.pass(59.9);
    assert!(world.has("b", BLOCK));
    assert_eq!(world.refuses("b"), [true; 2]);
    world.pass(0.1);
    assert!(!world.effective.nodes.contains_key("b"));
    assert_eq!(world.standing("b"), None);
}

#[test]
fn a_node_that_comes_back_in_time_is_still_proven() {
    let mut world = World::with_b();
    world.handshakes.clear();
    let b = world.mesh.nodes["b"].clone();
    world.edit(|mesh| _ = mesh.nodes.remove("b"));
    world.pass(30.0);
    world.edit(|mesh| _ = mesh.nodes.insert("b".to_owned(), b.clone()));
    assert_eq!(world.effective.nodes["b"], b);
    world.pass(100.0);
    assert_eq!(world.refuses("b"), [true; 2]);
}

#[test]
fn a_renamed_node_takes_everything_with_it() {
    let mut world = World::with_b();
    world.edit(|mesh| {
        let b = mesh.nodes.remove("b").unwrap();
        mesh.nodes.insert("e".to_owned(), b);
    });
    assert!(!world.effective.nodes.contains_key("b"));
    assert_eq!(world.standing("b"), None);
    world.pass(1.0);
    assert_eq!(world.refuses("e"), [true, false], "it has the same key, which the device knows");
}

#[test]
fn a_node_that_left_in_order_leaves_nothing_behind() {
    let mut world = World::with_b();
    world.edit_node("b", |b| b.encrypt = false);
    world.pass(20.0);
    world.edit(|mesh| _ = mesh.nodes.remove("b"));
    assert_eq!(world.effective, world.mesh);
    // Nor when it was not given the time.
    let mut world = World::with_b();
    world.edit_node("b", |b| b.encrypt = false);
    world.edit(|mesh| _ = mesh.nodes.remove("b"));
    assert_eq!(world.effective, world.mesh);
    assert_eq!(world.standing("b"), None);
}

#[test]
fn nothing_is_kept_for_nodes_without_a_proof() {
    let mut world = World::with_b();
    world.edit_node("c", |c| c.workloads.clear());
    world.edit(|mesh| _ = mesh.nodes.remove("d"));
    assert_eq!(world.effective, world.mesh);
}
