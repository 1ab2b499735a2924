//! Rules and routes that somebody changes: pods, and in host mode nodes, do not fall back to plaintext.

use std::process::{Command, Stdio};

use wireloom_lab::{Addresses, Layout, Pinger};

use super::{Mode, Watched, delete_rules, ip, kill_agent, ping, start_agent};
use crate::fixtures::fleet::Fleet;

/// Rules of others that come before ours: `wg-quick` adds the first one.
const FOREIGN: [&str; 3] =
    ["pref 50 lookup main suppress_prefixlength 0", "pref 98 lookup main", "pref 10 iif cni0 lookup main"];

fn cases(watched: &mut Watched) {
    watched.case("rule 99 deleted", |fleet| delete_rules(&fleet.lab.nodes[0]), |_, ()| {});
    watched.case(
        "rule 99 deleted in a loop",
        |fleet| {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do ip rule del pref 99; ip -6 rule del pref 99; done"]);
            fleet.lab.nodes[0].host.space.spawn(command.stdin(Stdio::null()).stderr(Stdio::null())).unwrap()
        },
        |_, mut culprit| {
            culprit.kill().unwrap();
            culprit.wait().unwrap();
        },
    );
    watched.case(
        "the WireGuard table flushed",
        |fleet| ip(&fleet.lab.nodes[0], "route flush table 1"),
        |_, ()| {},
    );
    watched.case(
        "agent killed, rule 99 deleted",
        |fleet| {
            kill_agent(fleet, 0);
            delete_rules(&fleet.lab.nodes[0]);
        },
        |fleet, ()| start_agent(fleet, 0),
    );
    watched.case(
        "agent killed, the WireGuard table flushed",
        |fleet| {
            kill_agent(fleet, 0);
            ip(&fleet.lab.nodes[0], "route flush table 1");
        },
        |fleet, ()| start_agent(fleet, 0),
    );
    for rule in FOREIGN {
        let add = |fleet: &mut Fleet| ip(&fleet.lab.nodes[0], &format!("rule add {rule}"));
        let remove = |fleet: &mut Fleet, ()| ip(&fleet.lab.nodes[0], &format!("rule del {rule}"));
        watched.case(&format!("a foreign rule, {rule}"), add, remove);
    }
    // In default mode both sides had to prove themselves before; the guard is up at both.
    watched.case(
        "both agents killed, both nodes' rules deleted",
        |fleet| {
            kill_agent(fleet, 1);
            kill_agent(fleet, 0);
            fleet.lab.nodes.iter().take(2).for_each(delete_rules);
        },
        |fleet, ()| {
            start_agent(fleet, 0);
            start_agent(fleet, 1);
        },
    );
}

fn nothing_leaks_in(mode: Mode) {
    let mut watched = Watched::new(mode);
    cases(&mut watched);
    watched.settle();
    watched.assert_no_fault();
}

#[test]
fn changes_of_rules_and_routes_leak_nothing_in_scoped_mode() {
    nothing_leaks_in(Mode::Scoped);
}

#[test]
fn changes_of_rules_and_routes_leak_nothing_in_host_mode() {
    nothing_leaks_in(Mode::Host);
}

#[test]
fn changes_of_rules_and_routes_leak_nothing_with_reject() {
    nothing_leaks_in(Mode::Reject);
}

/// A node without a key, an address of the pool that no node has, and one of this node's own block whose pod has
/// moved away: with `reject` none of them is reached in plaintext.
#[test]
fn what_has_no_peer_is_refused_whatever_the_rules_say() {
    let mut fleet = Fleet::without_agents(Layout { nodes: 3, ..Layout::default() }, Mode::Reject.settings());
    fleet.edit(|mesh| mesh.nodes[2].public_key = None);
    fleet.start();
    let unclaimed = Addresses { v4: [10, 161, 9, 9].into(), v6: "fd00:10:161:9::9".parse().unwrap() };
    fleet.lab.attach(unclaimed, 1).unwrap();
    let moved_away = fleet.lab.lend_address(0, 66, 1).unwrap();
    let mut watched = Watched::over(fleet, Mode::Reject);
    watched.title += ", addresses without a peer";
    watched.settle();

    let [a, b, c] = &watched.fleet.lab.nodes[..] else { panic!("three nodes") };
    let to: Vec<_> = b.pods.iter().filter(|pod| [unclaimed, moved_away].contains(&pod.addresses)).collect();
    assert_eq!(to.len(), 2);
    let strangers = [to[0], to[1], &c.pods[0]];
    let pingers: Vec<_> = strangers.iter().flat_map(|to| ping(&a.pods[0], to)).collect();
    watched.case("undisturbed", |_| {}, |_, ()| {});
    cases(&mut watched);
    let answered: usize = pingers.iter().map(Pinger::answered).sum();
    watched.check("no ping to an address without a peer is answered", answered == 0);
    pingers.iter().for_each(Pinger::end);
    watched.assert_no_fault();
}
