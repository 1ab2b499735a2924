//! Operations in the syntax of `nft -f` (nft(8)).

use std::{collections::BTreeSet, fmt::Write as _, mem::discriminant};

use wireloom_plan::{
    firewall::{Firewall, Guarded, Source},
    op::FirewallOp,
};

use super::{
    TABLE,
    contents::{self, Contents},
    expression::Rule,
    guard_sets,
    rules::{JUDGE_SOURCES, REFUSED, SOURCES_V4, SOURCES_V6, judge_sources},
    set::Set,
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
        let guarded = run.iter().filter_map(|op| match op {
            FirewallOp::Guard(guarded) | FirewallOp::Unguard(guarded) => Some(guarded),
            _ => None,
        });
        match run[0] {
            FirewallOp::JudgePeer { .. } => script.elements("add", REFUSED, peers),
            FirewallOp::ForgetPeer { .. } => script.elements("delete", REFUSED, peers),
            FirewallOp::AdmitSource(_) => script.sources("add", sources),
            FirewallOp::RefuseSource(_) => script.sources("delete", sources),
            FirewallOp::Guard(_) => script.guarded("add", guarded),
            FirewallOp::Unguard(_) => script.guarded("delete", guarded),
            FirewallOp::Set { firewall, anew } => script.set_firewall(firewall, *anew),
            FirewallOp::ReplaceSources { sources } => script.replace_sources(sources),
            FirewallOp::Remove => script.remove_table(),
        }
    }
    script.text
}

/// Whether an operation adds or removes an element of a set. Consecutive ones of a kind share a line.
fn is_element(op: &FirewallOp) -> bool {
    use FirewallOp::{AdmitSource, ForgetPeer, Guard, JudgePeer, RefuseSource, Unguard};
    matches!(
        op,
        JudgePeer { .. } | ForgetPeer { .. } | AdmitSource(_) | RefuseSource(_) | Guard(_) | Unguard(_)
    )
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
        let wanted = Contents::of(firewall, self.interface);
        // A table without sets holds nothing that is worth keeping.
        if anew || wanted.sets.is_empty() {
            self.remove_table();
            self.line(format!("add table inet {TABLE}"));
        } else {
            self.line(format!("add table inet {TABLE}"));
            self.remove_all_but(&wanted);
        }
        for set in &wanted.sets {
            self.add_set(*set);
        }
        for counter in &wanted.counters {
            self.line(format!("add counter inet {TABLE} {counter}"));
        }
        for (chain, rules) in wanted.chains {
            self.line(format!("add chain inet {TABLE} {} {}", chain.name, chain.declaration()));
            self.rules(chain.name, rules);
        }
    }

    /// Empties all chains, and removes what is not wanted. Adds everything first, so that its removal never fails.
    fn remove_all_but(&mut self, wanted: &Contents) {
        for chain in contents::CHAINS {
            self.line(format!("add chain inet {TABLE} {} {}", chain.name, chain.declaration()));
            self.line(format!("flush chain inet {TABLE} {}", chain.name));
        }
        for chain in contents::CHAINS {
            if wanted.chains.iter().all(|(other, _)| other.name != chain.name) {
                self.line(format!("delete chain inet {TABLE} {}", chain.name));
            }
        }
        for set in contents::sets() {
            if wanted.sets.iter().all(|other| other.name != set.name) {
                self.add_set(set);
                self.line(format!("delete set inet {TABLE} {}", set.name));
            }
        }
        for counter in contents::COUNTERS {
            if !wanted.counters.contains(&counter) {
                self.line(format!("add counter inet {TABLE} {counter}"));
                self.line(format!("delete counter inet {TABLE} {counter}"));
            }
        }
    }

    fn add_set(&mut self, set: Set) {
        self.line(format!("add set inet {TABLE} {} {}", set.name, set.declaration()));
    }

    /// Recreates the sets: removing a whole set is fast, whatever it holds. No rule may refer to it meanwhile.
    fn replace_sources(&mut self, sources: &BTreeSet<Source>) {
        self.line(format!("flush chain inet {TABLE} {}", JUDGE_SOURCES.name));
        for set in [SOURCES_V4, SOURCES_V6] {
            self.line(format!("delete set inet {TABLE} {}", set.name));
            self.add_set(set);
        }
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

    fn guarded<'a>(&mut self, verb: &str, guarded: impl Iterator<Item = &'a Guarded>) {
        let guarded: Vec<&Guarded> = guarded.collect();
        for (_, set) in guard_sets::all() {
            let of_set = guarded.iter().filter(|element| guard_sets::of(element).name == set.name);
            self.elements(verb, set, of_set.map(|element| element.addresses));
        }
    }

    fn elements(&mut self, verb: &str, set: Set, elements: impl IntoIterator<Item: std::fmt::Display>) {
        let mut elements = elements.into_iter();
        let Some(first) = elements.next() else { return };
        let text = &mut self.text;
        // Writing to a string cannot fail.
        let _ = write!(text, "{verb} element inet {TABLE} {} {{ {first}", set.name);
        for element in elements {
            let _ = write!(text, ", {element}");
        }
        text.push_str(" }\n");
    }
}

#[cfg(test)]
mod tests {
    use wireloom_plan::firewall::{Guard, GuardSet, IncomingMark};
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
             add rule inet wireloom mark_incoming udp dport 51820 meta mark set meta mark or 0xa\n"
        );
    }

    #[test]
    fn sets_are_kept_unless_the_table_is_recreated() {
        let firewall = Firewall { judge_sources: true, ..Firewall::default() };
        let kept = of(&[&FirewallOp::Set { firewall: firewall.clone(), anew: false }], "wg0");
        for gone in ["delete table", "delete set inet wireloom sources", "delete set inet wireloom refused\n"]
        {
            assert!(!kept.contains(gone), "{gone} in {kept}");
        }
        let anew = of(&[&FirewallOp::Set { firewall, anew: true }], "wg0");
        assert!(anew.starts_with("add table inet wireloom\ndelete table inet wireloom\n"), "{anew}");
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

    fn guarded(set: GuardSet, addresses: &str) -> Guarded {
        let addresses: ipnet::IpNet = addresses.parse().unwrap();
        Guarded { set, addresses: addresses.into() }
    }

    #[test]
    fn elements_of_the_guard_go_to_the_set_of_their_family() {
        let ops = [
            FirewallOp::Unguard(guarded(GuardSet::RefusedOut, "10.161.2.0/24")),
            FirewallOp::Guard(guarded(GuardSet::RefusedOut, "10.161.2.0/25")),
            FirewallOp::Guard(guarded(GuardSet::Pools, "fd61::/48")),
            FirewallOp::Guard(guarded(GuardSet::RefusedOut, "10.161.3.0/24")),
        ];
        assert_eq!(
            of(&ops.iter().collect::<Vec<_>>(), "wg0"),
            "delete element inet wireloom refused_out4 { 10.161.2.0/24 }\n\
             add element inet wireloom pools6 { fd61::/48 }\n\
             add element inet wireloom refused_out4 { 10.161.2.0/25, 10.161.3.0/24 }\n"
        );
    }

    #[test]
    fn what_is_not_wanted_is_removed_and_the_sets_that_stay_are_not() {
        let guard = Some(Guard { mark: 0xa, ..Guard::default() });
        let script = of(
            &[&FirewallOp::Set { firewall: Firewall { guard, ..Firewall::default() }, anew: false }],
            "wg0",
        );
        for gone in [
            "chain inet wireloom judge_sources",
            "set inet wireloom sources4",
            "counter inet wireloom strangers",
        ] {
            assert!(script.contains(&format!("delete {gone}\n")), "{gone} in {script}");
        }
        for kept in [
            "table",
            "set inet wireloom own4",
            "counter inet wireloom forged",
            "chain inet wireloom guard_forward",
        ] {
            assert!(!script.contains(&format!("delete {kept}")), "{kept} in {script}");
        }
    }
}
