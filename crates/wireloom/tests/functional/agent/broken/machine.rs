//! Something on the machine, or in the mesh, is in the way of packets that would be encrypted.

use std::time::Instant;

use wireloom_lab::{Layout, Promise};
use wireloom_plan::routing::Family;

use super::{Broken, SCOPED, assert_refused_over, expect_gone, expect_told};
use crate::fixtures::fleet::{Fleet, run};

#[test]
fn what_is_in_the_way_on_this_machine_is_named() {
    let fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.wait_for_proofs();
    let node = &fleet.lab.nodes[0];
    fleet.wait("all to be well", |_| run(node, "status").0 == 0);
    let caught = "NOT encrypted: nothing passes to node-b (a foreign rule comes before ours)";
    // What is broken, how it is repaired, the words for it, and the first line.
    let drop = "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }\n}\n";
    for (what, broken, fixed, words, headline) in [
        (
            "a foreign rule by the source at 50",
            "ip rule add from 10.161.0.0/16 lookup main pref 50",
            "ip rule del pref 50",
            &["`50: from 10.161.0.0/16 lookup"][..],
            caught,
        ),
        (
            "a foreign rule by the destination at 50",
            "ip rule add to 10.161.2.0/24 lookup main pref 50",
            "ip rule del pref 50",
            &["`50: from all to 10.161.2.0/24 lookup"],
            caught,
        ),
        (
            "forwarding off",
            "sysctl -qw net.ipv4.ip_forward=0",
            "sysctl -qw net.ipv4.ip_forward=1",
            &["net.ipv4.ip_forward=1"],
            "encrypted",
        ),
        ("FORWARD drops", "nft -f -", "nft delete table ip filter", &["`FORWARD`", "drops"], "encrypted"),
        (
            "the underlay learnt over the link",
            "ip route add 192.168.1.2/32 dev wg0",
            "ip route del 192.168.1.2/32 dev wg0",
            &["192.168.1.2:51820", "leads into wg0 itself"],
            // Until the peer is silent.
            "",
        ),
    ] {
        let since = Instant::now();
        node.host.space.feed(broken, if broken.starts_with("nft") { drop } else { "" }).unwrap();
        let exit: &[i32] = match headline {
            "" => &[1, 2],
            "encrypted" => &[1],
            _ => &[2],
        };
        expect_told(&fleet, since, &[Broken { what, on: 0, words, headline, exit }]);
        if !what.contains("link") {
            assert_refused_over(&fleet, Family::V4, 0, 1);
        }
        node.run(fixed).unwrap();
        expect_gone(&fleet, 0, words);
        fleet.settle(Promise::SCOPED);
    }
}
