//! The planner's in-memory twin of the kernel behaves as the kernel does.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use wireloom_kernel::Kernel as _;
use wireloom_lab::become_root;
use wireloom_plan::{
    address_range::AddressRange,
    diff::teardown,
    firewall::{Firewall, Guard, GuardSet, Guarded, IncomingMark, Source},
    observed::Observed,
    op::{FirewallOp, InterfaceOp, Op, RtnetlinkOp},
    routing::{Family, OtherSelectors, PROTOCOL, Route, RouteKind, Rule},
};
use wireloom_types::LinkAddress;

use super::roundtrip::{machine, narrow, own, route, rule, through, with_kernel};

/// The planner relies on its twin of the kernel: here both get the same operations.
#[test]
fn the_twin_in_memory_does_what_the_kernel_does() {
    become_root().unwrap();
    let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    runner
        .run(&prop::collection::vec(op(), 1..40), |ops| {
            let (_holder, space) = machine();
            with_kernel(&space, |kernel| {
                let mut twin = kernel.observe(&own()).unwrap();
                for op in &ops {
                    // The planner never asks for what the twin refuses.
                    if twin.apply(op).is_ok() {
                        kernel.apply(std::slice::from_ref(op)).unwrap();
                        assert_same(&kernel.observe(&own()).unwrap(), &twin, op);
                    }
                }
                let ops = teardown(&twin)
                    .into_iter()
                    .filter(|op| !matches!(op, Op::Interface(InterfaceOp::Remove)))
                    .collect::<Vec<_>>();
                kernel.apply(&ops).unwrap();
                let left = kernel.observe(&own()).unwrap();
                let foreign: BTreeSet<_> = twin.rules.iter().filter(|rule| !rule.is_ours()).collect();
                assert_eq!(left.rules.iter().collect::<BTreeSet<_>>(), foreign, "others' rules stay");
                assert!(left.routes.iter().all(|route| route.protocol != PROTOCOL));
            });
            Ok(())
        })
        .unwrap();
}

/// The same for our nftables table: operation by operation, and then all in one transaction.
#[test]
fn the_twin_in_memory_does_what_nftables_does() {
    become_root().unwrap();
    let mut runner = TestRunner::new(Config { cases: 16, failure_persistence: None, ..Config::default() });
    runner
        .run(&prop::collection::vec(firewall_op(), 1..30), |ops| {
            let (_holder, space) = machine();
            with_kernel(&space, |kernel| {
                let mut twin = kernel.observe(&own()).unwrap();
                let mut done = Vec::new();
                for op in &ops {
                    if twin.apply(op).is_ok() {
                        kernel.apply(std::slice::from_ref(op)).unwrap();
                        assert_same(&kernel.observe(&own()).unwrap(), &twin, op);
                        done.push(op.clone());
                    }
                }
                if let Some(last) = done.last() {
                    kernel.apply(&[Op::Firewall(FirewallOp::Remove)]).unwrap();
                    kernel.apply(&done).unwrap();
                    assert_same(&kernel.observe(&own()).unwrap(), &twin, last);
                }
            });
            Ok(())
        })
        .unwrap();
}

fn guard() -> impl Strategy<Value = Guard> {
    let interfaces = prop::sample::subsequence(vec!["eth0", "eth1", "eth*"], 0..=3);
    let v4 = prop::option::of(Just("10.161.1.1".parse().unwrap()));
    let v6 = prop::option::of(Just("fd61::1".parse().unwrap()));
    (prop::option::of(51820..51822_u16), any::<bool>(), interfaces, v4, v6).prop_map(
        |(port, reject, outward, error_source_v4, error_source_v6)| Guard {
            datagrams: port.map(|port| IncomingMark { port, mark: 0xa }),
            mark: 0xa,
            reject,
            outward: outward.into_iter().map(str::to_owned).collect(),
            error_source_v4,
            error_source_v6,
        },
    )
}

fn firewall_op() -> impl Strategy<Value = Op> {
    let firewall =
        (prop::option::of(51820..51822_u16), prop::bool::weighted(0.8), prop::option::weighted(0.8, guard()))
            .prop_map(|(port, judge, guard)| {
                let mark_incoming = port.map(|port| IncomingMark { port, mark: 0xa });
                Firewall { mark_incoming, judge_sources: judge, guard, segment_v6: None, altered: false }
            });
    let peer = || (1..4_u8).prop_map(|number| LinkAddress::from_bytes([2, 0, 0, 0, 0, number]));
    let addresses = || {
        (any::<bool>(), 0..4_u8, 0..4_u8).prop_map(|(v4, one, other)| {
            let address = |last: u8| match v4 {
                true => IpAddr::from([10, 161, 0, last]),
                false => IpAddr::from([0xfd61, 0, 0, 0, 0, 0, 0, u16::from(last)]),
            };
            AddressRange::new(address(one.min(other)), address(one.max(other))).unwrap()
        })
    };
    let source = || (peer(), addresses()).prop_map(|(peer, addresses)| Source { peer, addresses });
    let set = || prop::sample::select(GuardSet::ALL.to_vec());
    let guarded = move || (set(), addresses()).prop_map(|(set, addresses)| Guarded { set, addresses });
    prop_oneof![
        3 => (firewall, prop::bool::weighted(0.2))
            .prop_map(|(firewall, anew)| FirewallOp::Set { firewall, anew }.into()),
        3 => peer().prop_map(|peer| Op::Firewall(FirewallOp::JudgePeer { peer })),
        1 => peer().prop_map(|peer| Op::Firewall(FirewallOp::ForgetPeer { peer })),
        8 => guarded().prop_map(|it| FirewallOp::Guard(it).into()),
        4 => guarded().prop_map(|it| FirewallOp::Unguard(it).into()),
        8 => source().prop_map(|it| FirewallOp::AdmitSource(it).into()),
        4 => source().prop_map(|it| FirewallOp::RefuseSource(it).into()),
        1 => prop::collection::btree_set(source(), 0..3)
            .prop_map(|sources| FirewallOp::ReplaceSources { sources }.into()),
        1 => Just(Op::Firewall(FirewallOp::Remove)),
    ]
}

/// Asserts that both are the same. The kernel has a list of rules for each family: the order between families says
/// nothing.
fn assert_same(kernel: &Observed, twin: &Observed, op: &Op) {
    let by_family = |observed: &Observed| {
        let mut observed = observed.clone();
        observed.rules.sort_by_key(|rule| rule.family);
        // What the shell proposes is no effect of an operation.
        observed.free_table = None;
        observed
    };
    let (kernel, twin) = (by_family(kernel), by_family(twin));
    assert_eq!(kernel.rules, twin.rules, "rules after {op:?}");
    assert_eq!(kernel.routes, twin.routes, "routes after {op:?}");
    assert_eq!(kernel, twin, "after {op:?}");
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => any_rule().prop_map(|it| RtnetlinkOp::AddRule(it).into()),
        3 => any_rule().prop_map(|it| RtnetlinkOp::RemoveRule(it).into()),
        4 => any_route().prop_map(|it| RtnetlinkOp::SetRoute(it).into()),
        2 => any_route().prop_map(|it| RtnetlinkOp::RemoveRoute(it).into()),
        1 => prop::sample::select(vec![1300, 1420]).prop_map(|mtu| Op::Rtnetlink(RtnetlinkOp::SetMtu { mtu })),
    ]
}

/// From so few values that equal rules occur.
fn any_rule() -> impl Strategy<Value = Rule> {
    let families = prop::sample::select(vec![Family::V4, Family::V6]);
    let marks = prop::sample::select(vec![(0, 0), (0, 0xa), (0xa, 0xa)]);
    let iif = prop::option::weighted(0.2, Just((3, b"lo\0".to_vec())));
    (families, 98u32..100, any::<bool>(), 0usize..3, marks, prop::sample::select(vec![PROTOCOL, 3]), iif)
        .prop_map(|(family, priority, invert, from, (mark, mask), protocol, iif)| {
            let sources = match family {
                Family::V4 => [None, Some("10.161.0.0/16"), Some("10.162.0.0/16")],
                Family::V6 => [None, Some("fd61::/48"), Some("fd62::/48")],
            };
            let other = OtherSelectors { attributes: iif.into_iter().collect(), ..OtherSelectors::default() };
            Rule { priority, invert, mark, mask, protocol, other, ..rule(family, sources[from]) }
        })
}

fn any_route() -> impl Strategy<Value = Route> {
    let destinations =
        prop::sample::select(vec!["10.161.1.0/24", "10.161.1.7/32", "fd61::/64", "fd61::7/128"]);
    (destinations, 0usize..5, any::<bool>()).prop_map(|(destination, kind, ours)| {
        let destination: IpNet = destination.parse().unwrap();
        let source = if destination.addr().is_ipv4() { "192.0.2.1" } else { "2001:db8::1" };
        let kind = [RouteKind::Throw, RouteKind::Unreachable, through(None), through(Some(source)), narrow()]
            [kind]
            .clone();
        let protocol = if ours { PROTOCOL } else { 3 };
        Route { protocol, ..route(destination, kind) }
    })
}
