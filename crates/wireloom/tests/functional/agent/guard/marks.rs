//! Packets that another program marks with bits of our mark skip the rule at 99, and still do not leave in plaintext.

use super::{Mode, Watched};
use crate::fixtures::fleet::Fleet;

/// Our mark 0xa, one of its bits, and a mark that happens to have one of them.
const MARKS: [&str; 4] = ["0x2", "0x8", "0xa", "0x539"];

/// Marks what comes from pods, and the pings that the node itself sends. (Not WireGuard's datagrams: they would enter
/// the tunnel that they are made for.)
const CHAINS: &str = "
    chain prerouting {
        type filter hook prerouting priority mangle
        iifname cni0 meta mark set MARK
    }
    chain output {
        type route hook output priority mangle
        icmp type { echo-request, echo-reply } meta mark set MARK
        icmpv6 type { echo-request, echo-reply } meta mark set MARK
    }
";

fn nothing_leaks_in(mode: Mode) {
    let mut watched = Watched::new(mode);
    for mark in MARKS {
        let add = |fleet: &mut Fleet| {
            let table = format!("table inet stranger {{ {} }}\n", CHAINS.replace("MARK", mark));
            fleet.lab.nodes[0].host.space.feed("nft -f -", &table).unwrap();
        };
        let remove = |fleet: &mut Fleet, ()| {
            fleet.lab.nodes[0].run("nft delete table inet stranger").unwrap();
        };
        watched.case(&format!("packets marked {mark} by others"), add, remove);
    }
    watched.settle();
    watched.assert_no_fault();
}

#[test]
fn marks_of_others_leak_nothing_in_scoped_mode() {
    nothing_leaks_in(Mode::Scoped);
}

#[test]
fn marks_of_others_leak_nothing_in_host_mode() {
    nothing_leaks_in(Mode::Host);
}

#[test]
fn marks_of_others_leak_nothing_with_reject() {
    nothing_leaks_in(Mode::Reject);
}
