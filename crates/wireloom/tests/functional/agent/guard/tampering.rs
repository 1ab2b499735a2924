//! Somebody removes or disarms the agent's nftables table: the rules alone keep the promise, and the table is back at
//! once.

use std::time::Instant;

use super::{Mode, Watched, delete_rules, has_table};
use crate::fixtures::fleet::Fleet;

/// Packets of two pods' pings that may be in plaintext when table and rules go at the same moment: those of an eighth
/// of a second. In host mode, two nodes' pings come on top.
const FEW: usize = 50;

const HARMS: [&str; 5] = [
    "nft flush ruleset",
    "nft delete table inet wireloom",
    "nft flush table inet wireloom",
    "nft add table inet wireloom { flags dormant; }",
    "nft insert rule inet wireloom guard_forward accept; insert rule inet wireloom guard_leaving accept",
];

fn few_leak_in(mode: Mode) {
    let mut watched = Watched::new(mode);
    let few = if mode == Mode::Host { 2 * FEW } else { FEW };
    for harm in HARMS {
        watched.settle();
        let guarded = has_table(&watched.fleet.lab.nodes[0]);
        watched.check(&format!("there is a table to harm with `{harm}`"), guarded);
        // Without a table, most of these commands fail.
        let take_away = |fleet: &Fleet| drop(fleet.lab.nodes[0].run(harm));
        watched.case(&format!("`{harm}`"), |fleet| take_away(fleet), |_, ()| {});
        watched.settle();
        let begun = Instant::now();
        watched.measure(
            &format!("`{harm}` and rule 99 deleted"),
            few,
            |fleet| {
                take_away(fleet);
                delete_rules(&fleet.lab.nodes[0]);
            },
            |_, ()| {},
        );
        watched.settle();
        println!("figure: {mode}: `{harm}` and rule 99 deleted: all is well after {:?}", begun.elapsed());
    }
    watched.assert_no_fault();
}

#[test]
fn a_table_that_is_taken_away_is_back_at_once_in_scoped_mode() {
    few_leak_in(Mode::Scoped);
}

#[test]
fn a_table_that_is_taken_away_is_back_at_once_in_host_mode() {
    few_leak_in(Mode::Host);
}
