//! Proves [`giver`] and [`taker`] by looking at every state that processes with them can reach.
//!
//! Process 0 serves at first. The others take over from whoever listens, when they like, and again when an attempt has
//! failed; who serves gives. At any moment any one process may take its next step, so each may hang anywhere and come
//! back late. A deadline may fire whenever it is set. Each process may die between any two steps, and a taker kills a
//! giver that does not answer. What the kernel does is modelled: who has the descriptors, whom the listening socket
//! names, what is left in a connection whose end was closed.
//!
//! In every state: at most one process serves; no counter of a session is used twice; no packet is accepted twice. From
//! every state somebody can come to serve without another fault, also if one process never takes a step again (unless
//! no other one is left that could).
//!
//! [`giver`]: super::giver
//! [`taker`]: super::taker

mod explore;
mod world;

use self::{
    explore::explore,
    world::{Fault, World},
};
use super::envelope::Versions;

const ONE: Versions = Versions { oldest: 1, newest: 1 };
const LATER: Versions = Versions { oldest: 2, newest: 2 };

#[track_caller]
fn check(versions: &[Versions], packets: u8, deaths: u8) {
    let explored = explore(&World::new(versions, packets, deaths))
        .unwrap_or_else(|Fault { what, way }| panic!("{what}:\n{}", way.join("\n")));
    println!("{} states, {} steps", explored.states, explored.steps);
    assert!(explored.handed_over, "no hand-over succeeds");
    assert_eq!(explored.stuck_if_hung, 0, "whichever hangs for ever, another one comes to serve");
}

#[test]
fn one_taker_takes_over_or_the_giver_serves_on() {
    check(&[ONE, ONE], 2, 2);
}

#[test]
fn a_taker_of_another_version_does_too() {
    check(&[ONE, LATER], 2, 2);
}

#[test]
fn a_second_taker_changes_nothing() {
    check(&[ONE, ONE, ONE], 0, 3);
}
