//! The chains of the guard: what should be encrypted neither leaves nor enters in plaintext, whatever routing says.

use wireloom_plan::{
    firewall::{Guard, GuardSet, IncomingMark},
    routing::Family,
};

use super::{
    chain::{Chain, Hook},
    errors::{self, ERRORS_REFUSED, GUARD_ERRORS},
    exempt::{self, GUARD_EXEMPT, GUARD_EXEMPT_SENT},
    expression::{
        Expression, Key, Rule, accept, add_mark, connection, count, destination, drop, field, has_mark,
        is_for_us, is_reply, meta, reject, rule, source,
    },
    guard_sets::{FAMILIES, set},
};

/// Judges what is forwarded. Before the filters of others (0), behind destination NAT.
pub(super) const GUARD_FORWARD: Chain = filter("guard_forward", "forward", -10);
/// Judges what leaves, by the interface that it does leave by, and so what this machine sends itself: where destination
/// NAT or a chain of type `route` has a packet routed again, the output hook still shows the interface from before
/// (`nf_hook_slow` keeps its state). Before source NAT (100). Nothing can be rejected here, only dropped.
pub(super) const GUARD_LEAVING: Chain = filter("guard_leaving", "postrouting", -10);
/// In host mode, judges once more what leaves, behind source NAT (100): what gets this node's address there.
pub(super) const GUARD_TRANSLATED: Chain = filter("guard_translated", "postrouting", 110);
/// Judges what enters, as it was on the wire: before NAT and before connection tracking (-200), after
/// defragmentation (-400).
pub(super) const GUARD_INGRESS: Chain = filter("guard_ingress", "prerouting", -310);
/// Leads answers to connections that came in directly past the scoped rules. After connection tracking, before routing.
pub(super) const GUARD_ANSWERS: Chain = filter("guard_answers", "prerouting", -150);

/// The counter of packets from a local workload to one whose node has proved nothing.
pub(super) const UNPROVEN_OUT: &str = "unproven_out";
/// The counter of the opposite direction.
pub(super) const UNPROVEN_IN: &str = "unproven_in";
/// The counter of packets to an address that is elsewhere than the mesh says: they came out of the tunnel, or are
/// between two of our own workloads, and would have left in plaintext.
pub(super) const RETURNED: &str = "returned";
/// The counter of packets that came in from other machines with a local workload's address as their source.
pub(super) const FORGED: &str = "forged";

/// Neighbour discovery (RFC 4861).
const DISCOVERY: [&str; 5] =
    ["nd-router-solicit", "nd-router-advert", "nd-neighbor-solicit", "nd-neighbor-advert", "nd-redirect"];

const fn filter(name: &'static str, point: &'static str, priority: i32) -> Chain {
    Chain { name, hook: Hook { kind: "filter", point, priority } }
}

/// The chains with their rules.
pub(super) fn chains(guard: &Guard, interface: &str) -> Vec<(Chain, Vec<Rule>)> {
    let mut all = vec![
        (GUARD_FORWARD, forward(guard, interface)),
        (GUARD_LEAVING, leaving(guard, interface)),
        (GUARD_INGRESS, ingress(guard, interface)),
        (GUARD_ERRORS, errors::sources(guard, interface)),
    ];
    match guard.datagrams {
        Some(_) => all.extend([
            (GUARD_TRANSLATED, translated(guard, interface)),
            (GUARD_EXEMPT, exempt::forwarded(guard.mark, interface)),
            (GUARD_EXEMPT_SENT, exempt::sent(guard.mark)),
        ]),
        None => all.push((GUARD_ANSWERS, answers(guard))),
    }
    all
}

/// The named counters.
pub(super) fn counters(guard: &Guard) -> impl Iterator<Item = &'static str> {
    let unproven = guard.reject.then_some([UNPROVEN_OUT, UNPROVEN_IN]);
    [RETURNED, FORGED, ERRORS_REFUSED].into_iter().chain(unproven.into_iter().flatten())
}

fn forward(guard: &Guard, interface: &str) -> Vec<Rule> {
    let mut rules = Vec::new();
    if guard.datagrams.is_some() {
        rules.extend(exempt::refused_for_us(interface));
    }
    rules.push(rule([meta("oifname").is_named(interface), accept()]));
    rules.extend(may_leave(guard));
    // The lookup that counts comes last.
    rules.extend(FAMILIES.map(|family| {
        rule([is_from(GuardSet::Own, family), is_to(GuardSet::RefusedOut, family), reject(family)])
    }));
    if guard.datagrams.is_some() {
        rules.extend(exempt::refused_led_on());
    }
    if guard.outward.is_empty() {
        return rules;
    }
    rules.extend(FAMILIES.map(|family| {
        rule([
            meta("iifname").is_named(interface),
            meta("oifname").is_named_any_of(&guard.outward),
            is_from(GuardSet::Pools, family),
            is_to(GuardSet::Pools, family),
            count(RETURNED),
            reject(family),
        ])
    }));
    rules.extend(FAMILIES.map(|family| {
        let [leaving, from, to, counted] = elsewhere(guard, family);
        rule([leaving, from, to, counted, reject(family)])
    }));
    // What passes so far may come from a workload that is still here, although the mesh says that its address has
    // moved. A router between two others gets theirs from an interface that leads to other machines.
    let from_here = || meta("iifname").is_named_none_of(&guard.outward);
    rules.extend(FAMILIES.map(|family| {
        let (from, to) = (is_from(GuardSet::Pools, family), is_to(GuardSet::RefusedOut, family));
        rule([from_here(), from, to, reject(family)])
    }));
    if guard.reject {
        rules.extend(FAMILIES.map(|family| {
            let out = meta("oifname").is_named_any_of(&guard.outward);
            let (from, to) = (is_from(GuardSet::Pools, family), is_to(GuardSet::Pools, family));
            rule([from_here(), out, from, to, count(UNPROVEN_OUT), reject(family)])
        }));
    }
    rules
}

fn leaving(guard: &Guard, interface: &str) -> Vec<Rule> {
    let mut rules = vec![rule([meta("oifname").is_named(interface), accept()])];
    rules.extend(datagrams(guard));
    rules.extend(errors::refusals(guard, interface));
    rules.extend(may_leave(guard));
    rules.extend(to_refused());
    if !guard.outward.is_empty() {
        rules.extend(FAMILIES.map(|family| {
            let [leaving, from, to, counted] = elsewhere(guard, family);
            rule([leaving, from, to, counted, drop()])
        }));
    }
    rules
}

fn translated(guard: &Guard, interface: &str) -> Vec<Rule> {
    let mut rules = vec![rule([meta("oifname").is_named(interface), accept()])];
    rules.extend(datagrams(guard));
    rules.extend(may_leave(guard));
    rules.extend(to_refused());
    rules
}

/// The rule that counts, where nothing can be rejected.
fn to_refused() -> [Rule; 2] {
    FAMILIES.map(|family| rule([is_from(GuardSet::Own, family), is_to(GuardSet::RefusedOut, family), drop()]))
}

/// Our own encrypted datagrams: they alone have both.
fn datagrams(guard: &Guard) -> Option<Rule> {
    let IncomingMark { port, mark } = guard.datagrams.as_ref()?;
    Some(rule([field("udp", "sport").is_number(*port), has_mark(*mark), accept()]))
}

/// What leaves in plaintext by promise.
fn may_leave(guard: &Guard) -> Vec<Rule> {
    if guard.datagrams.is_some() {
        return [discovery()].into_iter().chain(exempt::may_leave()).collect();
    }
    // A connection that a workload opened towards an address that is no workload came in directly. A packet without a
    // connection matches neither.
    let answers = FAMILIES.map(to_no_workload).into_iter().flatten();
    let answers = answers.map(|to_no_workload| rule([is_reply(), to_no_workload, accept()]));
    answers.chain(nodes()).collect()
}

/// Out of an interface that leads to other machines, from a local workload to another of ours: that one has moved
/// there, or has not come yet, and its answers would be forged ones. If plaintext is refused, to anything in a pool.
fn elsewhere(guard: &Guard, family: Family) -> [Expression; 4] {
    let leaving = meta("oifname").is_named_any_of(&guard.outward);
    let (to, counter) =
        if guard.reject { (GuardSet::Pools, UNPROVEN_OUT) } else { (GuardSet::Own, RETURNED) };
    [leaving, is_from(GuardSet::Own, family), is_to(to, family), count(counter)]
}

fn ingress(guard: &Guard, interface: &str) -> Vec<Rule> {
    let mut rules = vec![rule([meta("iifname").is_named(interface), accept()])];
    match &guard.datagrams {
        Some(datagrams) => {
            rules.push(rule([field("udp", "dport").is_number(datagrams.port), is_for_us(), accept()]));
            rules.push(discovery());
            rules.extend(exempt::may_enter(guard.mark));
        }
        None => rules.extend(nodes()),
    }
    rules
        .extend(FAMILIES.map(|family| {
            rule([is_to(GuardSet::Own, family), is_from(GuardSet::RefusedIn, family), drop()])
        }));
    if guard.outward.is_empty() {
        return rules;
    }
    let came_in = || meta("iifname").is_named_any_of(&guard.outward);
    if guard.reject {
        rules.extend(FAMILIES.map(|family| {
            let (to, from) = (is_to(GuardSet::Own, family), is_from(GuardSet::Pools, family));
            rule([came_in(), to, from, count(UNPROVEN_IN), drop()])
        }));
    }
    // Source validation of underlay interfaces is loose, and would let these pass.
    rules.extend(
        FAMILIES.map(|family| rule([came_in(), is_from(GuardSet::Own, family), count(FORGED), drop()])),
    );
    rules
}

/// Judged by the addresses with which the connection was opened: with a node port that masquerades, an answer is still
/// addressed to this node here.
fn answers(guard: &Guard) -> Vec<Rule> {
    let both = FAMILIES.into_iter().flat_map(|family| {
        to_no_workload(family).map(|to_no_workload| {
            let opened_by = || connection("original", family, "saddr");
            rule([
                is_reply(),
                in_set(&opened_by(), GuardSet::Pools, family),
                opened_by().is_not_in(set(GuardSet::Own, family).name),
                to_no_workload,
                add_mark(guard.mark),
            ])
        })
    });
    both.collect()
}

/// The connection was opened towards an address outside the pools, or towards that of a node.
fn to_no_workload(family: Family) -> [Expression; 2] {
    let opened_to = || connection("original", family, "daddr");
    [opened_to().is_not_in(set(GuardSet::Pools, family).name), in_set(&opened_to(), GuardSet::Nodes, family)]
}

/// Lets packets from and to nodes pass.
fn nodes() -> impl Iterator<Item = Rule> {
    FAMILIES.into_iter().flat_map(|family| {
        [is_from(GuardSet::Nodes, family), is_to(GuardSet::Nodes, family)].map(|node| rule([node, accept()]))
    })
}

/// Only neighbours can send with this hop limit (RFC 4861, section 3.1).
fn discovery() -> Rule {
    rule([field("ip6", "hoplimit").is_number(255), field("icmpv6", "type").is_any_of(&DISCOVERY), accept()])
}

fn is_from(of: GuardSet, family: Family) -> Expression {
    in_set(&source(family), of, family)
}

fn is_to(of: GuardSet, family: Family) -> Expression {
    in_set(&destination(family), of, family)
}

fn in_set(key: &Key, of: GuardSet, family: Family) -> Expression {
    key.is_in(set(of, family).name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(guard: &Guard, of: &Chain) -> Vec<String> {
        let chains = chains(guard, "wg0");
        let chain = chains.into_iter().find(|(chain, _)| chain.name == of.name);
        chain.into_iter().flat_map(|(_, rules)| rules).map(|rule| rule.text).collect()
    }

    fn scoped() -> Guard {
        Guard { mark: 0xa, reject: true, outward: ["eth0".into()].into(), ..Guard::default() }
    }

    fn host() -> Guard {
        Guard { datagrams: Some(IncomingMark { port: 51820, mark: 0xa }), ..scoped() }
    }

    #[test]
    fn what_was_proved_is_refused_before_what_was_not() {
        let forward = texts(&scoped(), &GUARD_FORWARD);
        let at = |text: &str| {
            forward.iter().position(|rule| rule == text).unwrap_or_else(|| panic!("{text} in {forward:#?}"))
        };
        let places = [
            at("oifname \"wg0\" accept"),
            at("ct direction reply ct original ip daddr != @pools4 accept"),
            at("ip daddr @nodes4 accept"),
            at("ip saddr @own4 ip daddr @refused_out4 reject with icmp type admin-prohibited"),
            at(
                "iifname \"wg0\" oifname \"eth0\" ip saddr @pools4 ip daddr @pools4 counter name \"returned\" \
                reject with icmp type admin-prohibited",
            ),
            at(
                "oifname \"eth0\" ip6 saddr @own6 ip6 daddr @pools6 counter name \"unproven_out\" reject with icmpv6 \
                type admin-prohibited",
            ),
        ];
        assert!(places.is_sorted(), "{forward:#?}");
    }

    #[test]
    fn what_moved_away_is_refused_from_here_and_not_from_other_machines() {
        let refused = "iifname != \"eth0\" ip saddr @pools4 ip daddr @refused_out4 reject with icmp type \
                       admin-prohibited";
        for guard in [scoped(), host()] {
            let forward = texts(&guard, &GUARD_FORWARD);
            assert!(forward.iter().any(|rule| rule == refused), "{forward:#?}");
        }
        let own = "oifname \"eth0\" ip saddr @own4 ip daddr @own4 counter name \"returned\" reject with icmp type \
                   admin-prohibited";
        let forward = texts(&Guard { reject: false, ..scoped() }, &GUARD_FORWARD);
        assert!(forward.iter().any(|rule| rule == own), "{forward:#?}");
    }

    #[test]
    fn in_host_mode_datagrams_pass_and_no_answers() {
        assert_eq!(texts(&host(), &GUARD_LEAVING)[1], "udp sport 51820 meta mark and 0xa == 0xa accept");
        assert_eq!(texts(&host(), &GUARD_INGRESS)[1], "udp dport 51820 fib daddr type local accept");
        assert!(texts(&host(), &GUARD_ANSWERS).is_empty());
        let forward = texts(&host(), &GUARD_FORWARD);
        let refused = "iifname != \"wg0\" ip daddr @own4 ip saddr @refused_in4 drop".to_owned();
        assert!(forward[..10].contains(&refused), "{forward:#?}");
        assert_eq!(
            texts(&host(), &GUARD_TRANSLATED).last().unwrap(),
            "ip6 saddr @own6 ip6 daddr @refused_out6 drop"
        );
        assert!(texts(&scoped(), &GUARD_TRANSLATED).is_empty());
        for chain in [GUARD_FORWARD, GUARD_INGRESS, GUARD_LEAVING] {
            assert!(texts(&host(), &chain).iter().all(|rule| !rule.contains("@nodes")));
        }
    }

    #[test]
    fn in_host_mode_what_is_exempt_gets_our_mark_and_passes() {
        let both_ends = |chain, before: &str, after: &str| {
            let rules = texts(&host(), chain);
            for end in ["saddr", "daddr"] {
                let expected = format!("{before}ip6 {end} @exempt6 {after}");
                assert!(rules.contains(&expected), "{expected} in {rules:#?}");
            }
        };
        both_ends(&GUARD_EXEMPT_SENT, "oifname != \"lo\" ", "meta mark set meta mark or 0xa");
        both_ends(&GUARD_EXEMPT, "iifname != \"wg0\" ", "meta mark set meta mark or 0xa");
        both_ends(&GUARD_INGRESS, "", "ip6 saddr != @own6 meta mark set meta mark or 0xa accept");
        for chain in [&GUARD_FORWARD, &GUARD_LEAVING, &GUARD_TRANSLATED] {
            both_ends(chain, "", "accept");
            assert!(texts(&scoped(), chain).iter().all(|rule| !rule.contains("@exempt")));
        }
        let ingress = texts(&host(), &GUARD_INGRESS);
        let tolerated = "ip saddr @tolerated4 ip saddr != @own4 accept".to_owned();
        assert!(ingress.contains(&tolerated), "taken, and not sent: {ingress:#?}");
    }

    #[test]
    fn in_host_mode_what_nat_leads_on_loses_our_mark_before_anything_gets_it() {
        let exempt = texts(&host(), &GUARD_EXEMPT);
        let taken = "iifname != \"wg0\" ct direction original ct status dnat ip6 daddr != @own6 ip6 daddr != \
                     @exempt6 meta mark set meta mark and 0xfffffff5 accept";
        let of_family: Vec<_> = exempt.iter().filter(|rule| rule.contains("@exempt6")).collect();
        assert_eq!(of_family[0], taken);
        let refused = "ct direction original ct status dnat ip saddr @pools4 ip daddr @refused_out4 reject with icmp \
                       type admin-prohibited";
        let is_refusal = |rule: &String| rule == refused;
        assert!(texts(&host(), &GUARD_FORWARD).iter().any(is_refusal));
        assert!(!texts(&scoped(), &GUARD_FORWARD).iter().any(is_refusal));
    }

    #[test]
    fn docs_firewall_md_shows_the_actual_rules() {
        let guide = include_str!("../../../../docs/firewall.md");
        let guard = Guard { reject: false, ..scoped() };
        for chain in [GUARD_FORWARD, GUARD_INGRESS] {
            let rules = texts(&guard, &chain);
            // Too long for a guide.
            let shown = rules.iter().filter(|rule| !rule.contains(RETURNED));
            let shown: String = shown.map(|rule| format!("        {rule}\n")).collect();
            assert!(guide.contains(&shown), "docs/firewall.md does not show {shown}");
        }
    }

    #[test]
    fn without_interfaces_that_lead_out_no_rule_is_about_them() {
        let guard = Guard { outward: [].into(), ..scoped() };
        for chain in [GUARD_FORWARD, GUARD_INGRESS] {
            let rules = texts(&guard, &chain);
            let about = |rule: &String| rule.contains("counter name") || rule.contains("ifname !=");
            assert!(!rules.iter().any(about), "{rules:#?}");
        }
    }

    #[test]
    fn errors_about_workloads_get_a_source_or_are_refused() {
        let about = "oifname != \"wg0\" icmp type { destination-unreachable, time-exceeded, parameter-problem } \
                     ip daddr @pools4 ip daddr != @own4 ip daddr != @nodes4 ct reply ip saddr @pools4 \
                     ct reply ip daddr @pools4";
        let guard = Guard { error_source_v4: Some([10, 161, 1, 1].into()), ..scoped() };
        assert!(texts(&guard, &GUARD_ERRORS).contains(&format!("{about} ip saddr set 10.161.1.1")));
        // Redirects quote packets, too.
        let refused = about.replace("destination-unreachable, ", "destination-unreachable, redirect, ");
        let refused = format!("{refused} counter name \"errors_refused\" drop");
        for guard in [&guard, &scoped()] {
            assert!(texts(guard, &GUARD_LEAVING).contains(&refused), "{:#?}", texts(guard, &GUARD_LEAVING));
        }
        assert!(texts(&scoped(), &GUARD_ERRORS).is_empty());
    }
}
