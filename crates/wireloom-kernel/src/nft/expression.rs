//! The parts of rules, each in the syntax of `nft -f` (nft(8)) and as `nft --json` lists it (libnftables-json(5)).
//! A listing that differs shows that somebody else changed the table.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::{Value, json};
use wireloom_plan::routing::Family;

/// A rule, as written and as listed.
pub(super) struct Rule {
    pub(super) text: String,
    pub(super) listed: Value,
}

/// A part of a rule: a match or a statement.
pub(super) struct Expression {
    text: String,
    listed: Value,
}

/// What a match compares, such as a field of a header.
#[derive(Clone)]
pub(super) struct Key {
    text: String,
    listed: Value,
}

pub(super) fn rule(expressions: impl IntoIterator<Item = Expression>) -> Rule {
    let (texts, listed): (Vec<String>, Vec<Value>) =
        expressions.into_iter().map(|expression| (expression.text, expression.listed)).unzip();
    Rule { text: texts.join(" "), listed: listed.into() }
}

/// A field of a packet's headers.
pub(super) fn field(protocol: &str, field: &str) -> Key {
    Key {
        text: format!("{protocol} {field}"),
        listed: json!({ "payload": { "protocol": protocol, "field": field } }),
    }
}

/// The source address of the IP header.
pub(super) fn source(family: Family) -> Key {
    field(ip(family), "saddr")
}

/// The destination address of the IP header.
pub(super) fn destination(family: Family) -> Key {
    field(ip(family), "daddr")
}

/// An address of the packet's connection, as its first packet had it (`original`) or as answers to that have it
/// (`reply`). Matches nothing without a connection, and nothing of the other family, whatever the comparison.
pub(super) fn connection(direction: &str, family: Family, field: &str) -> Key {
    let ip = ip(family);
    Key {
        text: format!("ct {direction} {ip} {field}"),
        listed: json!({ "ct": { "key": format!("{ip} {field}"), "dir": direction } }),
    }
}

/// The name of the interface that a packet came in by (`iifname`) or goes out by (`oifname`), the type of one.
pub(super) fn meta(key: &str) -> Key {
    let named = matches!(key, "iifname" | "oifname");
    Key {
        text: if named { key.into() } else { format!("meta {key}") },
        listed: json!({ "meta": { "key": key } }),
    }
}

impl Key {
    /// Both, one after the other.
    pub(super) fn and(&self, other: &Self) -> Self {
        Self {
            text: format!("{} . {}", self.text, other.text),
            listed: json!({ "concat": [self.listed, other.listed] }),
        }
    }

    pub(super) fn is(self, value: &str) -> Expression {
        self.compare("==", value, &json!(value))
    }

    pub(super) fn is_not(&self, value: &str) -> Expression {
        self.compare("!=", value, &json!(value))
    }

    pub(super) fn is_less_than(&self, value: &str) -> Expression {
        self.compare("<", value, &json!(value))
    }

    pub(super) fn is_number(&self, value: u16) -> Expression {
        self.compare("==", &value.to_string(), &json!(value))
    }

    pub(super) fn is_within(&self, address: &str, length: u8) -> Expression {
        let listed = json!({ "prefix": { "addr": address, "len": length } });
        self.compare("==", &format!("{address}/{length}"), &listed)
    }

    /// One of several words.
    pub(super) fn is_any_of(&self, words: &[&str]) -> Expression {
        self.compare("==", &format!("{{ {} }}", words.join(", ")), &json!({ "set": words }))
    }

    /// An interface's name.
    pub(super) fn is_named(&self, name: &str) -> Expression {
        let quoted = quoted(name);
        self.compare("==", &format!("\"{quoted}\""), &json!(quoted))
    }

    pub(super) fn is_not_named(&self, name: &str) -> Expression {
        let quoted = quoted(name);
        self.compare("!=", &format!("\"{quoted}\""), &json!(quoted))
    }

    /// One of several interfaces' names, at least one.
    pub(super) fn is_named_any_of(&self, names: &BTreeSet<String>) -> Expression {
        self.compare_names("==", names)
    }

    /// None of several interfaces' names, at least one.
    pub(super) fn is_named_none_of(&self, names: &BTreeSet<String>) -> Expression {
        self.compare_names("!=", names)
    }

    fn compare_names(&self, operator: &str, names: &BTreeSet<String>) -> Expression {
        match names.first() {
            Some(only) if names.len() == 1 => {
                let quoted = quoted(only);
                self.compare(operator, &format!("\"{quoted}\""), &json!(quoted))
            }
            _ => {
                let quoted: Vec<String> = names.iter().map(|name| format!("\"{}\"", quoted(name))).collect();
                // Members are listed without the backslash.
                self.compare(operator, &format!("{{ {} }}", quoted.join(", ")), &json!({ "set": names }))
            }
        }
    }

    /// An element of a named set.
    pub(super) fn is_in(&self, set: &str) -> Expression {
        let set = format!("@{set}");
        self.compare("==", &set, &json!(set))
    }

    pub(super) fn is_not_in(&self, set: &str) -> Expression {
        let set = format!("@{set}");
        self.compare("!=", &set, &json!(set))
    }

    fn compare(&self, operator: &str, right: &str, listed: &Value) -> Expression {
        let shown = if operator == "==" { String::new() } else { format!("{operator} ") };
        Expression {
            text: format!("{} {shown}{right}", self.text),
            listed: json!({ "match": { "op": operator, "left": self.listed, "right": listed } }),
        }
    }
}

/// Addressed to this machine.
pub(super) fn is_for_us() -> Expression {
    let key = Key {
        text: "fib daddr type".into(),
        listed: json!({ "fib": { "result": "type", "flags": ["daddr"] } }),
    };
    key.is("local")
}

/// An answer: a packet against the direction of its connection's first one.
pub(super) fn is_reply() -> Expression {
    Key { text: "ct direction".into(), listed: json!({ "ct": { "key": "direction" } }) }.is("reply")
}

/// In the direction of its connection's first packet.
pub(super) fn is_original() -> Expression {
    Key { text: "ct direction".into(), listed: json!({ "ct": { "key": "direction" } }) }.is("original")
}

/// Of a connection whose destination NAT has changed.
pub(super) fn is_led_elsewhere() -> Expression {
    let status = json!({ "ct": { "key": "status" } });
    Expression {
        text: "ct status dnat".into(),
        listed: json!({ "match": { "op": "in", "left": status, "right": "dnat" } }),
    }
}

/// Of no connection that is known, or exempt from connection tracking (`notrack`).
pub(super) fn has_no_connection() -> Expression {
    Expression {
        text: "ct state invalid,untracked".into(),
        listed: json!({
            "match": { "op": "in", "left": { "ct": { "key": "state" } }, "right": ["invalid", "untracked"] }
        }),
    }
}

/// Carries all bits of the mark.
pub(super) fn has_mark(mark: u32) -> Expression {
    Expression {
        text: format!("meta mark and {mark:#x} == {mark:#x}"),
        listed: json!({
            "match": { "op": "==", "left": { "&": [{ "meta": { "key": "mark" } }, mark] }, "right": mark }
        }),
    }
}

/// Adds the bits to the packet's mark.
pub(super) fn add_mark(mark: u32) -> Expression {
    let key = json!({ "meta": { "key": "mark" } });
    Expression {
        text: format!("meta mark set meta mark or {mark:#x}"),
        listed: json!({ "mangle": { "key": key, "value": { "|": [key, mark] } } }),
    }
}

/// Takes the bits from the packet's mark.
pub(super) fn take_mark(mark: u32) -> Expression {
    let (key, others) = (json!({ "meta": { "key": "mark" } }), !mark);
    Expression {
        text: format!("meta mark set meta mark and {others:#x}"),
        listed: json!({ "mangle": { "key": key, "value": { "&": [key, others] } } }),
    }
}

/// Changes the packet's source address, checksums included.
pub(super) fn set_source(address: IpAddr) -> Expression {
    let ip = ip(if address.is_ipv4() { Family::V4 } else { Family::V6 });
    Expression {
        text: format!("{ip} saddr set {address}"),
        listed: json!({
            "mangle": { "key": { "payload": { "protocol": ip, "field": "saddr" } }, "value": address }
        }),
    }
}

/// Begins a connection, or answers that: only such segments say how long segments may be.
pub(super) fn is_syn() -> Expression {
    let flags = json!({ "payload": { "protocol": "tcp", "field": "flags" } });
    Expression {
        text: "tcp flags syn".into(),
        listed: json!({ "match": { "op": "in", "left": flags, "right": "syn" } }),
    }
}

/// Lowers the longest segment that the sender takes, bytes. The kernel never raises it (`nft_exthdr_tcp_set_eval`).
pub(super) fn limit_segments(bytes: u16) -> Expression {
    let option = json!({ "tcp option": { "name": "maxseg", "field": "size" } });
    Expression {
        text: format!("tcp option maxseg size set {bytes}"),
        listed: json!({ "mangle": { "key": option, "value": bytes } }),
    }
}

pub(super) fn count(counter: &str) -> Expression {
    Expression { text: format!("counter name \"{counter}\""), listed: json!({ "counter": counter }) }
}

pub(super) fn accept() -> Expression {
    Expression { text: "accept".into(), listed: json!({ "accept": null }) }
}

pub(super) fn drop() -> Expression {
    Expression { text: "drop".into(), listed: json!({ "drop": null }) }
}

/// Refuses with the error "communication administratively prohibited" (RFC 1812, RFC 4443).
pub(super) fn reject(family: Family) -> Expression {
    let icmp = icmp(family);
    Expression {
        text: format!("reject with {icmp} type admin-prohibited"),
        listed: json!({ "reject": { "type": icmp, "expr": "admin-prohibited" } }),
    }
}

/// The name of a family's header.
pub(super) fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// The name of a family's control messages.
pub(super) fn icmp(family: Family) -> &'static str {
    match family {
        Family::V4 => "icmp",
        Family::V6 => "icmpv6",
    }
}

/// nft takes a star at the end for a wildcard.
fn quoted(interface: &str) -> String {
    interface.replace('*', "\\*")
}

/// An interface's name as it is listed alone, as the kernel knows it.
pub(super) fn unquoted(listed: &str) -> String {
    listed.replace("\\*", "*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_in_an_interface_name_is_no_wildcard() {
        let rule = rule([meta("iifname").is_not_named("wg*"), accept()]);
        assert_eq!(rule.text, "iifname != \"wg\\*\" accept");
        let names = ["eth*".to_owned(), "eth0".to_owned()].into();
        assert_eq!(meta("oifname").is_named_any_of(&names).text, "oifname { \"eth\\*\", \"eth0\" }");
        let none = meta("iifname").is_named_none_of(&names);
        assert_eq!(none.text, "iifname != { \"eth\\*\", \"eth0\" }");
        assert_eq!(unquoted("wg\\*"), "wg*");
    }

    #[test]
    fn one_interface_is_written_without_a_set() {
        let expression = meta("oifname").is_named_any_of(&["eth0".to_owned()].into());
        assert_eq!(expression.text, "oifname \"eth0\"");
        assert_eq!(expression.listed["match"]["right"], "eth0");
    }
}
