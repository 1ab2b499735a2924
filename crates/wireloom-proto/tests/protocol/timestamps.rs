//! The timestamps of initiations, when the wall clock is set back.

use std::time::Duration;

use wireloom_proto::{DropReason, MessageKind, UnixTime};

use crate::world::{ALICE, BOB, World};

const HOUR: Duration = Duration::from_secs(3600);

/// Replaces Alice's device by a new one with the same key, as when its process starts again.
fn restart_alice(world: &mut World, kept: Option<UnixTime>) {
    world.restart(ALICE);
    if let Some(kept) = kept {
        world.nodes[ALICE].device.continue_timestamps_after(kept);
    }
    world.introduce(ALICE, BOB);
}

#[test]
fn a_device_that_restarts_with_a_clock_set_back_is_heard_by_what_was_kept() {
    for clean in [true, false] {
        let mut world = World::pair();
        world.assert_connected();
        let alice = &world.nodes[ALICE].device;
        let kept = match clean {
            true => alice.timestamp_reached(),
            false => Some(alice.timestamp_to_keep(world.now())),
        };
        world.run(Duration::from_secs(1));
        world.set_back = HOUR;
        restart_alice(&mut world, kept);
        world.send(ALICE, BOB, b"heard");
        world.run(Duration::from_secs(1));
        assert_eq!(world.nodes[BOB].drops, []);
        assert_eq!(world.count(MessageKind::Response), 2);
        world.assert_connected();
        // Sessions are renewed, and once more after the clock is right again.
        for set_back in [HOUR, Duration::ZERO] {
            world.set_back = set_back;
            for _ in 0..20 {
                world.send(ALICE, BOB, b"on");
                world.run(Duration::from_secs(10));
            }
        }
        assert_eq!(world.nodes[BOB].drops, []);
        assert!(world.count(MessageKind::Response) >= 4);
    }
}

/// What the tests of this module protect from.
#[test]
fn a_device_that_restarts_with_a_clock_set_back_is_ignored_when_nothing_was_kept() {
    let mut world = World::pair();
    world.assert_connected();
    world.run(Duration::from_secs(1));
    world.set_back = HOUR;
    restart_alice(&mut world, None);
    world.send(ALICE, BOB, b"ignored");
    world.run(Duration::from_secs(1));
    assert_eq!(world.nodes[BOB].drops, [DropReason::StaleTimestamp]);
}

#[test]
fn a_peer_that_is_removed_and_added_again_meanwhile_is_still_reached() {
    let mut world = World::pair();
    world.assert_connected();
    world.run(Duration::from_secs(1));
    world.set_back = HOUR;
    let (now, bob) = (world.now(), world.nodes[BOB].public_key);
    world.nodes[ALICE].device.configure(now, |configuration| configuration.remove_peer(&bob));
    world.introduce(ALICE, BOB);
    world.send(ALICE, BOB, b"heard");
    world.run(Duration::from_secs(1));
    assert_eq!(world.nodes[BOB].drops, []);
    world.assert_connected();
}
