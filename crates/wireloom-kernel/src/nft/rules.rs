//! The chains and their rules, each as `nft -f` takes it and as `nft --json` lists it
//! (libnftables-json(5)). What is listed must be just this: so a stranger's rule is noticed.

use serde_json::{Value, json};
use wireloom_plan::kernel::IncomingMark;

/// Marks incoming WireGuard packets.
pub(super) const MARK_INCOMING: Chain = Chain { name: "mark_incoming", priority: -300 };

/// Judges the sources of what comes out of our interface.
///
/// Before `raw` (-300), so that neither connection tracking (-200) nor anybody's rules ever meet a
/// forged source; after defragmentation (-400), should there be any.
pub(super) const JUDGE_SOURCES: Chain = Chain { name: "judge_sources", priority: -310 };

/// The set of `link address . IPv4 addresses` that may be.
pub(super) const SOURCES_V4: &str = "sources4";
/// The set of `link address . IPv6 addresses` that may be.
pub(super) const SOURCES_V6: &str = "sources6";
/// The set of the peers, with a count of what each was refused.
pub(super) const REFUSED: &str = "refused";
/// The counter of what was refused to whoever is no peer here.
pub(super) const STRANGERS: &str = "strangers";

/// A base chain of type filter in prerouting, which lets through what no rule drops.
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) priority: i32,
}

/// A rule, written and read.
pub(super) struct Rule {
    pub(super) text: String,
    pub(super) listed: Value,
}

impl Chain {
    /// As it is declared.
    pub(super) fn hook(&self) -> String {
        format!("{{ type filter hook prerouting priority {}; policy accept; }}", self.priority)
    }

    /// What `nft --json` lists beside its name, family, table and handle.
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
        // A star at the end would stand for any ending.
        rule(
            &format!("iifname != \"{}\" accept", interface.replace('*', "\\*")),
            json!([matches("!=", &meta("iifname"), &json!(interface)), accept()]),
        ),
        // While the interface is still, or again, one whose device judges by allowed-IPs.
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
        // The device's own answers, also about addresses that no peer has: what a peer sends of
        // neighbour discovery never arrives.
        rule(
            "icmpv6 type nd-neighbor-advert accept",
            json!([matches("==", &payload("icmpv6", "type"), &json!("nd-neighbor-advert")), accept()]),
        ),
        // Errors come from whatever router noticed them. The stack goes by the packet that they quote,
        // whoever seems to send them, so the source is nothing to judge them by; without them neither
        // path MTU discovery nor traceroute works beyond a peer. No redirects (5): they are a neighbour's.
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
        // The types below that of the echo request, 128, are errors (RFC 4443, section 2.1).
        rule(
            "icmpv6 type < echo-request accept",
            json!([matches("<", &payload("icmpv6", "type"), &json!("echo-request")), accept()]),
        ),
        // Who has no address yet says so to its neighbours: reports of groups (RFC 3376, RFC 3590) and
        // router solicitations (RFC 4861).
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
        // The set's element counts what it matches.
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
    fn the_guide_shows_the_rules_as_they_are() {
        let guide = include_str!("../../../../docs/firewall.md");
        let shown: Vec<String> =
            judge_sources("wg0").into_iter().map(|rule| format!("        {}\n", rule.text)).collect();
        assert!(guide.contains(&shown.concat()), "docs/firewall.md does not show {shown:#?}");
    }

    #[test]
    fn a_star_in_an_interfaces_name_is_a_star() {
        assert_eq!(judge_sources("wg*")[0].text, "iifname != \"wg\\*\" accept");
    }
}
