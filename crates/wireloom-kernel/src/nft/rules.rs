//! The chains that mark incoming WireGuard packets and that check sources in link mode, and their rules.

use wireloom_plan::{firewall::IncomingMark, routing::Family};

use super::{
    chain::{Chain, Hook},
    expression::{Rule, accept, add_mark, count, drop, field, meta, rule},
    set::Set,
};

/// Marks incoming WireGuard packets.
pub(super) const MARK_INCOMING: Chain =
    Chain { name: "mark_incoming", hook: Hook { kind: "filter", point: "prerouting", priority: -300 } };

/// Checks the sources of packets from our interface.
///
/// Before `raw` (-300), so that neither connection tracking (-200) nor other rules ever meet a forged source;
/// after defragmentation (-400), if that is on.
pub(super) const JUDGE_SOURCES: Chain =
    Chain { name: "judge_sources", hook: Hook { kind: "filter", point: "prerouting", priority: -310 } };

/// The set of admitted `link address . IPv4 addresses`.
pub(super) const SOURCES_V4: Set =
    Set { name: "sources4", kind: &["ether_addr", "ipv4_addr"], intervals: true, counts: false };
/// The set of admitted `link address . IPv6 addresses`.
pub(super) const SOURCES_V6: Set =
    Set { name: "sources6", kind: &["ether_addr", "ipv6_addr"], intervals: true, counts: false };
/// The set of peers, with a counter of the refused packets of each.
pub(super) const REFUSED: Set =
    Set { name: "refused", kind: &["ether_addr"], intervals: false, counts: true };
/// The counter of the refused packets of senders that are not peers.
pub(super) const STRANGERS: &str = "strangers";

/// The rule of [`MARK_INCOMING`].
pub(super) fn mark_incoming(IncomingMark { port, mark }: &IncomingMark) -> Rule {
    rule([field("udp", "dport").is_number(*port), add_mark(*mark)])
}

/// The rules of [`JUDGE_SOURCES`], in order.
pub(super) fn judge_sources(interface: &str) -> Vec<Rule> {
    let link = || field("ether", "saddr");
    vec![
        rule([meta("iifname").is_not_named(interface), accept()]),
        // While the interface is one whose device checks allowed-IPs instead: before or after link mode.
        rule([meta("iiftype").is_not("ether"), accept()]),
        rule([link().and(&field("ip", "saddr")).is_in(SOURCES_V4.name), accept()]),
        rule([link().and(&field("ip6", "saddr")).is_in(SOURCES_V6.name), accept()]),
        // The device's own answers, also those about addresses that no peer has. The device drops neighbour
        // discovery from peers.
        rule([field("icmpv6", "type").is("nd-neighbor-advert"), accept()]),
        // Any router on the path may send errors. The stack matches them by the packet that they quote, not by
        // their source, so checking the source gains nothing; and without them neither path MTU discovery nor
        // traceroute works beyond a peer. Redirects (5) are left out: only a neighbour may send them.
        rule([field("icmp", "type").is_any_of(super::errors::types(Family::V4)), accept()]),
        // The types below 128, the echo request, are errors (RFC 4443, section 2.1).
        rule([field("icmpv6", "type").is_less_than("echo-request"), accept()]),
        // A host without an address sends group reports (RFC 3376, RFC 3590) and router solicitations
        // (RFC 4861) from the unspecified address.
        rule([field("ip", "saddr").is("0.0.0.0"), field("ip", "daddr").is_within("224.0.0.0", 24), accept()]),
        rule([field("ip6", "saddr").is("::"), field("ip6", "daddr").is_within("ff02::", 16), accept()]),
        // The elements of the set count what they match.
        rule([link().is_in(REFUSED.name), drop()]),
        rule([count(STRANGERS), drop()]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docs_firewall_md_shows_the_actual_rules() {
        let guide = include_str!("../../../../docs/firewall.md");
        let shown: Vec<String> =
            judge_sources("wg0").into_iter().map(|rule| format!("        {}\n", rule.text)).collect();
        assert!(guide.contains(&shown.concat()), "docs/firewall.md does not show {shown:#?}");
    }
}
