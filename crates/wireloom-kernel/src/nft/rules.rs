//! The chains and their rules, each in the syntax of `nft -f` and as `nft --json` lists it
//! (libnftables-json(5)). A listing that differs shows that somebody else changed the table.

use serde_json::{Value, json};
use wireloom_plan::firewall::IncomingMark;

/// Marks incoming WireGuard packets.
pub(super) const MARK_INCOMING: Chain = Chain { name: "mark_incoming", priority: -300 };

/// Checks the sources of packets from our interface.
///
/// Before `raw` (-300), so that neither connection tracking (-200) nor other rules ever meet a forged source;
/// after defragmentation (-400), if that is on.
pub(super) const JUDGE_SOURCES: Chain = Chain { name: "judge_sources", priority: -310 };

/// The set of admitted `link address . IPv4 addresses`.
pub(super) const SOURCES_V4: &str = "sources4";
/// The set of admitted `link address . IPv6 addresses`.
pub(super) const SOURCES_V6: &str = "sources6";
/// The set of peers, with a counter of the refused packets of each.
pub(super) const REFUSED: &str = "refused";
/// The counter of the refused packets of senders that are not peers.
pub(super) const STRANGERS: &str = "strangers";

/// A base chain of type filter in prerouting with the policy accept.
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) priority: i32,
}

/// A rule, as written and as listed.
pub(super) struct Rule {
    pub(super) text: String,
    pub(super) listed: Value,
}

impl Chain {
    /// Its declaration.
    pub(super) fn hook(&self) -> String {
        format!("{{ type filter hook prerouting priority {}; policy accept; }}", self.priority)
    }

    /// What `nft --json` lists besides its name, family, table and handle.
    pub(super) fn listed(&self) -> [(&'static str, Value); 4] {
        [
            ("type", json!("filter")),
            ("hook", json!("prerouting")),
            ("prio", json!(self.priority)),
            ("policy", json!("accept")),
        ]
    }
}

/// The rule of [`MARK_INCOMING`].
pub(super) fn mark_incoming(IncomingMark { port, mark }: &IncomingMark) -> Rule {
    Rule {
        text: format!("udp dport {port} meta mark set meta mark or {mark:#x}"),
        listed: json!([
            matches("==", &payload("udp", "dport"), &json!(port)),
            { "mangle": { "key": meta("mark"), "value": { "|": [meta("mark"), mark] } } }
        ]),
    }
}

/// The rules of [`JUDGE_SOURCES`], in order.
pub(super) fn judge_sources(interface: &str) -> Vec<Rule> {
    let link = || payload("ether", "saddr");
    let from = |protocol| json!({ "concat": [link(), payload(protocol, "saddr")] });
    let accept = || json!({ "accept": null });
    let rule = |text: &str, listed: Value| Rule { text: text.to_owned(), listed };
    let prefix = |address, length| json!({ "prefix": { "addr": address, "len": length } });
    vec![
        // nft takes a star at the end for a wildcard.
        rule(
            &format!("iifname != \"{}\" accept", interface.replace('*', "\\*")),
            json!([matches("!=", &meta("iifname"), &json!(interface)), accept()]),
        ),
        // While the interface is one whose device checks allowed-IPs instead: before or after link mode.
        rule(
            "meta iiftype != ether accept",
            json!([matches("!=", &meta("iiftype"), &json!("ether")), accept()]),
        ),
        rule(
            &format!("ether saddr . ip saddr @{SOURCES_V4} accept"),
            json!([matches("==", &from("ip"), &json!(format!("@{SOURCES_V4}"))), accept()]),
        ),
        rule(
            &format!("ether saddr . ip6 saddr @{SOURCES_V6} accept"),
            json!([matches("==", &from("ip6"), &json!(format!("@{SOURCES_V6}"))), accept()]),
        ),
        // The device's own answers, also those about addresses that no peer has. The device drops neighbour
        // discovery from peers.
        rule(
            "icmpv6 type nd-neighbor-advert accept",
            json!([matches("==", &payload("icmpv6", "type"), &json!("nd-neighbor-advert")), accept()]),
        ),
        // Any router on the path may send errors. The stack matches them by the packet that they quote, not by
        // their source, so checking the source gains nothing; and without them neither path MTU discovery nor
        // traceroute works beyond a peer. Redirects (5) are left out: only a neighbour may send them.
        rule(
            "icmp type { destination-unreachable, time-exceeded, parameter-problem } accept",
            json!([
                matches(
                    "==",
                    &payload("icmp", "type"),
                    &json!({ "set": ["destination-unreachable", "time-exceeded", "parameter-problem"] }),
                ),
                accept()
            ]),
        ),
        // The types below 128, the echo request, are errors (RFC 4443, section 2.1).
        rule(
            "icmpv6 type < echo-request accept",
            json!([matches("<", &payload("icmpv6", "type"), &json!("echo-request")), accept()]),
        ),
        // A host without an address sends group reports (RFC 3376, RFC 3590) and router solicitations
        // (RFC 4861) from the unspecified address.
        rule(
            "ip saddr 0.0.0.0 ip daddr 224.0.0.0/24 accept",
            json!([
                matches("==", &payload("ip", "saddr"), &json!("0.0.0.0")),
                matches("==", &payload("ip", "daddr"), &prefix("224.0.0.0", 24)),
                accept()
            ]),
        ),
        rule(
            "ip6 saddr :: ip6 daddr ff02::/16 accept",
            json!([
                matches("==", &payload("ip6", "saddr"), &json!("::")),
                matches("==", &payload("ip6", "daddr"), &prefix("ff02::", 16)),
                accept()
            ]),
        ),
        // The elements of the set count what they match.
        rule(
            &format!("ether saddr @{REFUSED} drop"),
            json!([matches("==", &link(), &json!(format!("@{REFUSED}"))), { "drop": null }]),
        ),
        rule(
            &format!("counter name \"{STRANGERS}\" drop"),
            json!([{ "counter": STRANGERS }, { "drop": null }]),
        ),
    ]
}

fn matches(op: &str, left: &Value, right: &Value) -> Value {
    json!({ "match": { "op": op, "left": left, "right": right } })
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
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

    #[test]
    fn a_star_in_an_interface_name_is_no_wildcard() {
        assert_eq!(judge_sources("wg*")[0].text, "iifname != \"wg\\*\" accept");
    }
}
