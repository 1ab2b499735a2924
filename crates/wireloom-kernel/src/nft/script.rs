//! Operations in the syntax of `nft -f` (nft(8)).

use std::{collections::BTreeSet, fmt::Write as _, mem::discriminant};

use wireloom_plan::{
    firewall::{Firewall, Source},
    op::FirewallOp,
};

use super::{
    TABLE,
    rules::{
        JUDGE_SOURCES, MARK_INCOMING, REFUSED, Rule, SOURCES_V4, SOURCES_V6, STRANGERS, judge_sources,
        mark_incoming,
    },
};

/// The script of one transaction.
pub(super) fn of(ops: &[&FirewallOp], interface: &str) -> String {
    let mut script = Script { text: String::new(), interface };
    for run in ops.chunk_by(|one, next| is_element(one) && discriminant(*one) == discriminant(*next)) {
        let peers = run.iter().filter_map(|op| match op {
            FirewallOp::JudgePeer { peer } | FirewallOp::ForgetPeer { peer } => Some(peer),
            _ => None,
        });
        let sources = run.iter().filter_map(|op| match op {
            FirewallOp::AdmitSource(source) | FirewallOp::RefuseSource(source) => Some(source),
            _ => None,
        });
        match run[0] {
            FirewallOp::JudgePeer { .. } => script.elements("add", REFUSED, peers),
            FirewallOp::ForgetPeer { .. } => script.elements("delete", REFUSED, peers),
            FirewallOp::AdmitSource(_) => script.sources("add", sources),
            FirewallOp::RefuseSource(_) => script.sources("delete", sources),
            FirewallOp::Set { firewall, anew } => script.set_firewall(firewall, *anew),
            FirewallOp::ReplaceSources { sources } => script.replace_sources(sources),
            FirewallOp::Remove => script.remove_table(),
        }
    }
    script.text
}

/// Whether an operation adds or removes an element of a set. Consecutive ones of a kind share a line.
fn is_element(op: &FirewallOp) -> bool {
    use FirewallOp::{AdmitSource, ForgetPeer, JudgePeer, RefuseSource};
    matches!(op, JudgePeer { .. } | ForgetPeer { .. } | AdmitSource(_) | RefuseSource(_))
}

struct Script<'a> {
    text: String,
    interface: &'a str,
}

impl Script<'_> {
    fn line(&mut self, line: impl AsRef<str>) {
        self.text += line.as_ref();
        self.text.push('\n');
    }

    /// Adds the table first, so that its removal never fails.
    fn remove_table(&mut self) {
        self.line(format!("add table inet {TABLE}"));
        self.line(format!("delete table inet {TABLE}"));
    }

    fn set_firewall(&mut self, firewall: &Firewall, anew: bool) {
        // A table without sets holds nothing that is worth keeping.
        if anew || !firewall.judge_sources {
            self.remove_table();
        }
        self.line(format!("add table inet {TABLE}"));
        let chain = format!("chain inet {TABLE} {}", MARK_INCOMING.name);
        self.line(format!("add {chain} {}", MARK_INCOMING.hook()));
        self.line(format!("flush {chain}"));
        match &firewall.mark_incoming {
            Some(mark) => self.rules(MARK_INCOMING.name, [mark_incoming(mark)]),
            None => self.line(format!("delete {chain}")),
        }
        if firewall.judge_sources {
            self.line(format!("add set inet {TABLE} {REFUSED} {{ type ether_addr; counter; }}"));
            self.line(format!("add counter inet {TABLE} {STRANGERS}"));
            self.source_sets();
            let chain = format!("chain inet {TABLE} {}", JUDGE_SOURCES.name);
            self.line(format!("add {chain} {}", JUDGE_SOURCES.hook()));
            self.line(format!("flush {chain}"));
            self.rules(JUDGE_SOURCES.name, judge_sources(self.interface));
        }
    }

    fn source_sets(&mut self) {
        for (set, kind) in [(SOURCES_V4, "ipv4_addr"), (SOURCES_V6, "ipv6_addr")] {
            self.line(format!("add set inet {TABLE} {set} {{ type ether_addr . {kind}; flags interval; }}"));
        }
    }

    /// Recreates the sets: removing a whole set is fast, whatever it holds. No rule may refer to it meanwhile.
    fn replace_sources(&mut self, sources: &BTreeSet<Source>) {
        self.line(format!("flush chain inet {TABLE} {}", JUDGE_SOURCES.name));
        for set in [SOURCES_V4, SOURCES_V6] {
            self.line(format!("delete set inet {TABLE} {set}"));
        }
        self.source_sets();
        self.sources("add", sources);
        self.rules(JUDGE_SOURCES.name, judge_sources(self.interface));
    }

    fn rules(&mut self, chain: &str, rules: impl IntoIterator<Item = Rule>) {
        for rule in rules {
            self.line(format!("add rule inet {TABLE} {chain} {}", rule.text));
        }
    }

    fn sources<'a>(&mut self, verb: &str, sources: impl IntoIterator<Item = &'a Source>) {
        let (v4, v6): (Vec<&Source>, _) =
            sources.into_iter().partition(|source| source.addresses.first().is_ipv4());
        self.elements(verb, SOURCES_V4, v4);
        self.elements(verb, SOURCES_V6, v6);
    }

    fn elements(&mut self, verb: &str, set: &str, elements: impl IntoIterator<Item: std::fmt::Display>) {
        let mut elements = elements.into_iter();
        let Some(first) = elements.next() else { return };
        let text = &mut self.text;
        // Writing to a string cannot fail.
        let _ = write!(text, "{verb} element inet {TABLE} {set} {{ {first}");
        for element in elements {
            let _ = write!(text, ", {element}");
        }
        text.push_str(" }\n");
    }
}

#[cfg(test)]
mod tests {
    use wireloom_plan::firewall::IncomingMark;
    use wireloom_types::LinkAddress;

    use super::*;

    fn source(peer: u8, addresses: &str) -> Source {
        let addresses: ipnet::IpNet = addresses.parse().unwrap();
        Source { peer: LinkAddress::from_bytes([2, 0, 0, 0, 0, peer]), addresses: addresses.into() }
    }

    #[test]
    fn a_table_without_sets_is_recreated() {
        let mark_incoming = Some(IncomingMark { port: 51820, mark: 0xa });
        let firewall = Firewall { mark_incoming, ..Firewall::default() };
        assert_eq!(
            of(&[&FirewallOp::Set { firewall, anew: false }], "wg0"),
            "add table inet wireloom\ndelete table inet wireloom\nadd table inet wireloom\n\
             add chain inet wireloom mark_incoming { type filter hook prerouting priority -300; policy accept; }\n\
             flush chain inet wireloom mark_incoming\n\
             add rule inet wireloom mark_incoming udp dport 51820 meta mark set meta mark or 0xa\n"
        );
    }

    #[test]
    fn sets_are_kept_unless_the_table_is_recreated() {
        let firewall = Firewall { judge_sources: true, ..Firewall::default() };
        let kept = of(&[&FirewallOp::Set { firewall: firewall.clone(), anew: false }], "wg0");
        assert!(!kept.contains("delete table") && !kept.contains("delete set"), "{kept}");
        let anew = of(&[&FirewallOp::Set { firewall, anew: true }], "wg0");
        assert_eq!(anew, format!("add table inet wireloom\ndelete table inet wireloom\n{kept}"));
    }

    #[test]
    fn consecutive_elements_share_a_line_in_order() {
        let ops = [
            FirewallOp::RefuseSource(source(1, "10.1.0.0/16")),
            FirewallOp::AdmitSource(source(1, "10.1.0.0/24")),
            FirewallOp::AdmitSource(source(2, "fd00::1/128")),
            FirewallOp::AdmitSource(source(2, "10.2.0.0/24")),
            FirewallOp::ForgetPeer { peer: LinkAddress::from_bytes([2, 0, 0, 0, 0, 3]) },
        ];
        assert_eq!(
            of(&ops.iter().collect::<Vec<_>>(), "wg0"),
            "delete element inet wireloom sources4 { 02:00:00:00:00:01 . 10.1.0.0/16 }\n\
             add element inet wireloom sources4 { 02:00:00:00:00:01 . 10.1.0.0/24, 02:00:00:00:00:02 . 10.2.0.0/24 }\n\
             add element inet wireloom sources6 { 02:00:00:00:00:02 . fd00::1 }\n\
             delete element inet wireloom refused { 02:00:00:00:00:03 }\n"
        );
    }
}
