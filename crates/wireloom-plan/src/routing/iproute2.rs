//! Rules and routes as iproute2 prints them, so that an operator finds them again in `ip rule` and `ip route`.

use std::fmt;

use ipnet::IpNet;

use super::{Route, RouteKind, Rule};
use crate::health::{Action, PolicyRule};

/// `FRA_…` of include/uapi/linux/fib_rules.h.
const IIFNAME: u16 = 3;
const SUPPRESS_PREFIXLEN: u16 = 14;
const OIFNAME: u16 = 17;
const UID_RANGE: u16 = 20;
const IP_PROTO: u16 = 22;
const SPORT_RANGE: u16 = 23;
const DPORT_RANGE: u16 = 24;

/// The rule as `ip rule show` prints it.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = match self.table {
            253 => "default".to_owned(),
            254 => "main".to_owned(),
            255 => "local".to_owned(),
            number => number.to_string(),
        };
        self.write(f, &format!("lookup {table}"))
    }
}

/// The rule as `ip rule show` prints it.
impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.action {
            Action::Lookup => self.rule.fmt(f),
            Action::Goto(priority) => self.rule.write(f, &format!("goto {priority}")),
            Action::Nop => self.rule.write(f, "nop"),
            Action::Blackhole => self.rule.write(f, "blackhole"),
            Action::Unreachable => self.rule.write(f, "unreachable"),
            Action::Prohibit => self.rule.write(f, "prohibit"),
        }
    }
}

impl Rule {
    fn write(&self, f: &mut fmt::Formatter<'_>, action: &str) -> fmt::Result {
        write!(f, "{}:", self.priority)?;
        if self.invert {
            f.write_str(" not")?;
        }
        match self.from {
            Some(from) => write!(f, " from {}", short(from))?,
            None => f.write_str(" from all")?,
        }
        if let Some(to) = self.other.to {
            write!(f, " to {}", short(to))?;
        }
        if self.other.tos != 0 {
            write!(f, " tos {:#x}", self.other.tos)?;
        }
        match (self.mark, self.mask) {
            (_, 0) => {}
            (mark, u32::MAX) => write!(f, " fwmark {mark:#x}")?,
            (0, mask) => write!(f, " fwmark 0/{mask:#x}")?,
            (mark, mask) => write!(f, " fwmark {mark:#x}/{mask:#x}")?,
        }
        let mut suppress = String::new();
        for (kind, value) in &self.other.attributes {
            match (*kind, value.as_slice()) {
                (IIFNAME, name) => write!(f, " iif {}", text(name))?,
                (OIFNAME, name) => write!(f, " oif {}", text(name))?,
                (IP_PROTO, [protocol]) => write!(f, " ipproto {protocol}")?,
                (UID_RANGE, [a, b, c, d, e, g, h, i]) => {
                    let [first, last] = [[*a, *b, *c, *d], [*e, *g, *h, *i]].map(u32::from_ne_bytes);
                    write!(f, " uidrange {first}-{last}")?;
                }
                (SPORT_RANGE, [a, b, c, d]) => write!(f, " sport {}", ports([[*a, *b], [*c, *d]]))?,
                (DPORT_RANGE, [a, b, c, d]) => write!(f, " dport {}", ports([[*a, *b], [*c, *d]]))?,
                (SUPPRESS_PREFIXLEN, [a, b, c, d]) => {
                    suppress = format!(" suppress_prefixlength {}", u32::from_ne_bytes([*a, *b, *c, *d]));
                }
                (kind, _) => write!(f, " (selector {kind})")?,
            }
        }
        write!(f, " {action}{suppress}")?;
        // Unspecified and the kernel's: iproute2 leaves both out.
        if matches!(self.protocol, 0 | 2) {
            return Ok(());
        }
        write!(f, " proto {}", Protocol(self.protocol))
    }
}

/// The route as `ip route show table …` prints it. Of a foreign route out of our interface, which a route does not
/// name, it says so in words.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = match self.destination {
            all if all.prefix_len() == 0 => "default".to_owned(),
            some => short(some),
        };
        match &self.kind {
            RouteKind::Throw => write!(f, "throw {to}")?,
            RouteKind::Unreachable => write!(f, "unreachable {to}")?,
            RouteKind::Device { gateway, .. } => {
                f.write_str(&to)?;
                gateway.map_or(Ok(()), |gateway| write!(f, " via {gateway}"))?;
                f.write_str(" (out of our interface)")?;
            }
            RouteKind::Other(other) => {
                if !other.kind.is_empty() {
                    write!(f, "{} ", other.kind)?;
                }
                f.write_str(&to)?;
                other.gateway.map_or(Ok(()), |gateway| write!(f, " via {gateway}"))?;
                other.interface.iter().try_for_each(|interface| write!(f, " dev {interface}"))?;
            }
        }
        // `ip route add` gives `boot`, which iproute2 leaves out.
        if self.protocol != 3 {
            write!(f, " proto {}", Protocol(self.protocol))?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        Ok(())
    }
}

/// A number of `/etc/iproute2/rt_protos`, with the name that iproute2 6.1 has for it.
pub(crate) struct Protocol(pub(crate) u8);

impl Protocol {
    pub(crate) fn name(&self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "unspec",
            1 => "redirect",
            2 => "kernel",
            3 => "boot",
            4 => "static",
            8 => "gated",
            9 => "ra",
            10 => "mrt",
            11 => "zebra",
            12 => "bird",
            13 => "dnrouted",
            14 => "xorp",
            15 => "ntk",
            16 => "dhcp",
            18 => "keepalived",
            42 => "babel",
            99 => "openr",
            186 => "bgp",
            187 => "isis",
            188 => "ospf",
            189 => "rip",
            192 => "eigrp",
            _ => return None,
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A single address without its prefix length.
fn short(prefix: IpNet) -> String {
    match prefix.prefix_len() == prefix.max_prefix_len() {
        true => prefix.addr().to_string(),
        false => prefix.to_string(),
    }
}

/// An interface's name in an attribute, with its closing zero.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

/// `struct fib_rule_port_range`
fn ports(range: [[u8; 2]; 2]) -> String {
    match range.map(u16::from_ne_bytes) {
        [first, last] if first == last => first.to_string(),
        [first, last] => format!("{first}-{last}"),
    }
}

#[cfg(test)]
mod tests {
    use crate::routing::{Family, OtherRoute, OtherSelectors};

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

    #[test]
    fn rules_are_written_as_iproute2_prints_them() {
        assert_eq!(rule().to_string(), "99: from 10.161.0.0/16 fwmark 0/0xa lookup 1 proto 157");
        let host = Rule { invert: true, from: None, mark: 0xa, protocol: 0, ..rule() };
        assert_eq!(host.to_string(), "99: not from all fwmark 0xa/0xa lookup 1");
        let single = Rule { from: Some("203.0.113.2/32".parse().unwrap()), mask: 0, protocol: 4, ..rule() };
        assert_eq!(single.to_string(), "99: from 203.0.113.2 lookup 1 proto static");
        let attributes = [
            (IIFNAME, b"eth0\0".to_vec()),
            (SUPPRESS_PREFIXLEN, 0_u32.to_ne_bytes().to_vec()),
            (IP_PROTO, vec![6]),
            (DPORT_RANGE, [80_u16.to_ne_bytes(), 90_u16.to_ne_bytes()].concat()),
            (SPORT_RANGE, vec![1]),
        ];
        let to = Some("10.0.0.0/8".parse().unwrap());
        let other = OtherSelectors { to, tos: 0x10, attributes: attributes.into() };
        assert_eq!(
            Rule { from: None, mask: u32::MAX, mark: 1, protocol: 2, other, ..rule() }.to_string(),
            "99: from all to 10.0.0.0/8 tos 0x10 fwmark 0x1 iif eth0 ipproto 6 (selector 23) dport 80-90 lookup 1 \
             suppress_prefixlength 0"
        );
    }

    #[test]
    fn a_rule_that_looks_up_no_table_is_written_with_its_action() {
        let shown = |action| PolicyRule { rule: Rule { mask: 0, protocol: 0, ..rule() }, action }.to_string();
        assert_eq!(shown(Action::Lookup), "99: from 10.161.0.0/16 lookup 1");
        assert_eq!(shown(Action::Goto(200)), "99: from 10.161.0.0/16 goto 200");
        assert_eq!(shown(Action::Blackhole), "99: from 10.161.0.0/16 blackhole");
    }

    #[test]
    fn routes_are_written_as_iproute2_prints_them() {
        let other = |kind, gateway: Option<&str>, interface: Option<&str>| {
            let gateway = gateway.map(|gateway| gateway.parse().unwrap());
            RouteKind::Other(OtherRoute { kind, gateway, interface: interface.map(str::to_owned) })
        };
        let shown = |destination: &str, kind, metric, protocol| {
            Route { destination: destination.parse().unwrap(), kind, metric, protocol }.to_string()
        };
        let via = other("", Some("203.0.113.1"), Some("eth0"));
        assert_eq!(shown("0.0.0.0/0", via, 0, 3), "default via 203.0.113.1 dev eth0");
        let blackhole = other("blackhole", None, None);
        assert_eq!(shown("10.0.0.0/8", blackhole, 5, 80), "blackhole 10.0.0.0/8 proto 80 metric 5");
        assert_eq!(shown("192.0.2.1/32", RouteKind::Throw, 0, 12), "throw 192.0.2.1 proto bird");
    }
}
