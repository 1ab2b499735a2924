//! Broken states that operators make: what `wireloom status` says of each, how soon, and that it is true.
//!
//! A laboratory takes seconds to build, and what only time shows takes a quarter of a minute. So each test breaks many
//! things at once, each on a node of its own, or one after the other on one node.

mod device;
mod keys;
mod machine;
mod mesh;
mod underlay;

use std::{fmt::Write as _, time::Instant};

use wireloom_lab::{
    FAMILIES, Node, Wire,
    mesh::Mesh,
    probe::{Exchange, probe},
    until,
};
use wireloom_plan::routing::Family;

use crate::fixtures::fleet::{Fleet, LONG, run};

const SCOPED: &str = "encrypt_host_traffic = false";

/// A broken state, and what is to be said of it.
struct Broken<'a> {
    /// What was broken.
    what: &'static str,
    /// The node that says so, an index.
    on: usize,
    /// The line that says so has all of these.
    words: &'a [&'a str],
    /// What the first line begins with, after the node's name; empty where that depends on more than this state.
    headline: &'a str,
    /// The exit statuses that are right; another state may be there, too.
    exit: &'a [i32],
}

/// Waits until the status of every state has its line, its headline and an exit status that is right, and prints what
/// each said and after how long.
#[track_caller]
fn expect_told(fleet: &Fleet, since: Instant, states: &[Broken<'_>]) {
    let mut told: Vec<Option<String>> = vec![None; states.len()];
    let mut last = String::new();
    let all = until(LONG, "all states to be told", || {
        last.clear();
        for (place, state) in
            states.iter().enumerate().filter(|(place, _)| told[*place].is_none()).collect::<Vec<_>>()
        {
            let (exit, shown, errors) = run(&fleet.lab.nodes[state.on], "status");
            let is_it = |line: &&str| state.words.iter().all(|word| line.contains(word));
            let first = shown.lines().next().and_then(|first| first.split_once(": ")).unwrap_or_default().1;
            let is_right = first.starts_with(state.headline) && state.exit.contains(&exit);
            let line = shown.lines().find(is_it).filter(|_| is_right);
            told[place] = line.map(|line| {
                let seconds = since.elapsed().as_secs_f64();
                format!("{} | {first} | exit {exit} | {} | {seconds:.1} s", state.what, line.trim())
            });
            if line.is_none() {
                let _ = writeln!(
                    last,
                    "== {}, on node {}: {:?}, {:?}, exit {exit}\n{shown}{errors}",
                    state.what, state.on, state.headline, state.words
                );
            }
        }
        told.iter().all(Option::is_some).then_some(())
    });
    for line in told.iter().flatten() {
        println!("figure: {line}");
    }
    assert!(all.is_ok(), "{}\n{last}", all.unwrap_err());
}

/// Waits until no line of a node's status has all of these words.
#[track_caller]
fn expect_gone(fleet: &Fleet, on: usize, words: &[&str]) {
    fleet.wait(&format!("{words:?} to go"), |fleet| {
        let (_, shown, _) = run(&fleet.lab.nodes[on], "status");
        !shown.lines().any(|line| words.iter().all(|word| line.contains(word)))
    });
}

/// Asserts that what the first pod of one node sends to that of another does not arrive, and is not in plaintext.
#[track_caller]
fn assert_refused(fleet: &Fleet, from: usize, to: usize) {
    FAMILIES.iter().for_each(|family| assert_refused_over(fleet, *family, from, to));
}

/// As [`assert_refused`], over one family.
#[track_caller]
fn assert_refused_over(fleet: &Fleet, family: Family, from: usize, to: usize) {
    let (from, to) = (&fleet.lab.nodes[from].pods[0], &fleet.lab.nodes[to].pods[0]);
    let cell = probe(fleet.lab.underlay(), from, to, family, Exchange::Ping).unwrap();
    let plain = matches!(cell.wire, Wire::Direct | Wire::Both);
    assert!(!cell.reachable && !plain, "{} to {} over {family:?}: {cell}", from.name, to.name);
}

/// Writes a changed mesh on one node only.
fn write_on(fleet: &Fleet, node: &Node, change: impl FnOnce(&mut Mesh)) {
    let mut mesh = fleet.mesh.clone();
    change(&mut mesh);
    mesh.write_on(node).unwrap();
}
