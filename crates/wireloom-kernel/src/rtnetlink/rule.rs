//! Policy rules (`ip rule`).
//!
//! Beware: "from P and unmarked" is mark 0 under the mask. A request must *send* `FRA_FWMARK` = 0 together
//! with `FRA_FWMASK`, but a dump leaves it out when it is 0 (`fib_nl_fill_rule` in net/core/fib_rules.c).

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, Nla};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleHeader, RuleMessage},
};
use wireloom_plan::{
    health::{Action, PolicyRule},
    routing::{Family, OtherSelectors, Rule},
};

use super::{Request, Rtnetlink, address_family, is_absent_family, unspecified};
use crate::error::Cause;

/// `FRA_SUPPRESS_PREFIXLEN` and `FRA_SUPPRESS_IFGROUP` when nothing is suppressed (-1).
const NOT_SET: u32 = u32::MAX;

/// Every rule that looks up a table, in the kernel's order.
pub(crate) fn observe(netlink: &mut Rtnetlink) -> Result<Vec<Rule>, Cause> {
    let rules = observe_all(netlink)?.into_iter();
    Ok(rules.filter(|rule| rule.action == Action::Lookup).map(|rule| rule.rule).collect())
}

/// Every rule, in the kernel's order.
pub(crate) fn observe_all(netlink: &mut Rtnetlink) -> Result<Vec<PolicyRule>, Cause> {
    let mut rules = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RuleMessage::default();
        request.header.family = family;
        let dumped = match netlink.dump(&RouteNetlinkMessage::GetRule(request)) {
            Err(error) if is_absent_family(&error) => continue,
            dumped => dumped?,
        };
        rules.extend(dumped.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRule(message) => decode_any(&message),
            _ => None,
        }));
    }
    Ok(rules)
}

/// Without `NLM_F_EXCL`: `rule_exists` in net/core/fib_rules.c would find rules other than this one.
pub(crate) fn add(rule: &Rule) -> Request {
    Request { message: RouteNetlinkMessage::NewRule(encode(rule)), flags: NLM_F_CREATE }
}

pub(crate) fn remove(rule: &Rule) -> Request {
    Request { message: RouteNetlinkMessage::DelRule(encode(rule)), flags: 0 }
}

/// Whether a notification is about a rule that looks up the table.
pub(crate) fn concerns(message: &RuleMessage, table: u32) -> bool {
    decode(message).is_some_and(|rule| rule.table == table)
}

pub(super) fn encode(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header = RuleHeader {
        family: address_family(rule.family),
        dst_len: rule.other.to.map_or(0, |to| to.prefix_len()),
        src_len: rule.from.map_or(0, |from| from.prefix_len()),
        tos: rule.other.tos,
        // RT_TABLE_UNSPEC: FRA_TABLE decides, which has room for every table number.
        table: 0,
        action: RuleAction::ToTable,
        flags: if rule.invert { RuleFlags::Invert } else { RuleFlags::empty() },
    };
    let attributes = &mut message.attributes;
    attributes.push(RuleAttribute::Table(rule.table));
    attributes.push(RuleAttribute::Priority(rule.priority));
    attributes.push(RuleAttribute::Protocol(rule.protocol.into()));
    attributes.extend(rule.from.map(|from| RuleAttribute::Source(from.network())));
    attributes.extend(rule.other.to.map(|to| RuleAttribute::Destination(to.network())));
    if rule.mask != 0 {
        attributes.push(RuleAttribute::FwMark(rule.mark));
        attributes.push(RuleAttribute::FwMask(rule.mask));
    }
    attributes.extend(
        rule.other
            .attributes
            .iter()
            .map(|(kind, value)| RuleAttribute::Other(DefaultNla::new(*kind, value.clone()))),
    );
    message
}

/// `None` for a rule that looks up no table.
fn decode(message: &RuleMessage) -> Option<Rule> {
    let PolicyRule { rule, action } = decode_any(message)?;
    (action == Action::Lookup).then_some(rule)
}

/// `None` for a rule of another family, and for one that does what the kernel's headers do not have yet.
pub(super) fn decode_any(message: &RuleMessage) -> Option<PolicyRule> {
    let mut action = match message.header.action {
        RuleAction::ToTable => Action::Lookup,
        RuleAction::Goto => Action::Goto(0),
        RuleAction::Nop => Action::Nop,
        RuleAction::Blackhole => Action::Blackhole,
        RuleAction::Unreachable => Action::Unreachable,
        RuleAction::Prohibit => Action::Prohibit,
        _ => return None,
    };
    let family = super::family(message.header.family)?;
    let mut rule = Rule {
        family,
        priority: 0,
        invert: message.header.flags.contains(RuleFlags::Invert),
        from: prefix(family, None, message.header.src_len),
        mark: 0,
        mask: 0,
        table: message.header.table.into(),
        protocol: 0,
        other: OtherSelectors {
            to: prefix(family, None, message.header.dst_len),
            tos: message.header.tos,
            attributes: BTreeMap::new(),
        },
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Protocol(protocol) => rule.protocol = (*protocol).into(),
            RuleAttribute::FwMark(mark) => rule.mark = *mark,
            RuleAttribute::FwMask(mask) => rule.mask = *mask,
            RuleAttribute::Source(address) => {
                rule.from = prefix(family, Some(*address), message.header.src_len);
            }
            RuleAttribute::Destination(address) => {
                rule.other.to = prefix(family, Some(*address), message.header.dst_len);
            }
            RuleAttribute::Goto(priority) => action = Action::Goto(*priority),
            RuleAttribute::SuppressPrefixLen(NOT_SET) | RuleAttribute::SuppressIfGroup(NOT_SET) => {}
            other => {
                let mut value = vec![0; other.value_len()];
                other.emit_value(&mut value);
                rule.other.attributes.insert(other.kind(), value);
            }
        }
    }
    Some(PolicyRule { rule, action })
}

/// The kernel leaves the address out when the whole prefix is zero.
fn prefix(family: Family, address: Option<IpAddr>, length: u8) -> Option<IpNet> {
    if length == 0 {
        return None;
    }
    IpNet::new(address.unwrap_or(unspecified(family)), length).ok()
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable, Parseable};

    use super::*;

    fn rule() -> Rule {
        Rule {
            family: Family::V4,
            priority: 99,
            invert: false,
            from: Some("10.161.0.0/16".parse().unwrap()),
            mark: 0,
            mask: 0xa,
            table: 1,
            protocol: 157,
            other: OtherSelectors::default(),
        }
    }

    /// Through bytes, as to the kernel and back.
    fn round_trip(rule: &Rule) -> Rule {
        let message = encode(rule);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        decode(&RuleMessage::parse(bytes.as_slice()).unwrap()).unwrap()
    }

    #[test]
    fn a_zero_mark_is_sent_with_its_mask() {
        let attributes = encode(&rule()).attributes;
        assert!(attributes.contains(&RuleAttribute::FwMark(0)));
        assert!(attributes.contains(&RuleAttribute::FwMask(0xa)));
    }

    #[test]
    fn a_mask_without_a_mark_reads_back_as_mark_zero() {
        let mut message = encode(&rule());
        message.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::FwMark(_)));
        // The kernel adds this to every rule in a dump.
        message.attributes.push(RuleAttribute::SuppressPrefixLen(NOT_SET));
        assert_eq!(decode(&message), Some(rule()));
    }

    #[test]
    fn every_rule_is_read_back_as_written() {
        let inverted = Rule { invert: true, from: None, mark: 0xa, ..rule() };
        let v6 = Rule { family: Family::V6, from: Some("fd61::/48".parse().unwrap()), ..rule() };
        let far_table = Rule { table: 51820, ..rule() };
        let plain = Rule { from: None, mask: 0, protocol: 3, priority: 0, ..rule() };
        let zero = Rule { from: Some("0.0.0.0/8".parse().unwrap()), ..rule() };
        let foreign = Rule {
            other: OtherSelectors {
                to: Some("192.0.2.0/24".parse().unwrap()),
                tos: 0x10,
                attributes: [
                    (3, b"eth0\0".to_vec()),
                    (20, vec![0, 0, 0, 0, 1, 0, 0, 0]),
                    (99, vec![1, 2, 3]),
                ]
                .into(),
            },
            ..rule()
        };
        for rule in [rule(), inverted, v6, far_table, plain, zero, foreign] {
            assert_eq!(round_trip(&rule), rule);
        }
    }

    #[test]
    fn a_rule_that_looks_up_no_table_is_not_ours() {
        let mut message = encode(&rule());
        message.header.action = RuleAction::Unreachable;
        assert_eq!(decode(&message), None);
        assert_eq!(decode_any(&message), Some(PolicyRule { rule: rule(), action: Action::Unreachable }));
        message.header.action = RuleAction::Goto;
        message.attributes.push(RuleAttribute::Goto(200));
        assert_eq!(decode_any(&message), Some(PolicyRule { rule: rule(), action: Action::Goto(200) }));
    }
}
