//! What is written to the kernel is read back as it was, and the planner's in-memory twin of the kernel behaves as the
//! kernel does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use ipnet::IpNet;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use wireloom_kernel::{Kernel as _, Linux, state::StateDir};
use wireloom_lab::{Holder, Space, become_root};
use wireloom_plan::{
    address_range::AddressRange,
    diff::teardown,
    firewall::{Firewall, IncomingMark, Source},
    observed::Observed,
    op::{FirewallOp, InterfaceOp, Op, RtnetlinkOp, SysctlOp},
    routing::{Family, OtherSelectors, PROTOCOL, Route, RouteKind, Rule},
    sysctl::UnderlaySysctl,
};
use wireloom_types::LinkAddress;

/// A machine with our interface, and `eth0` as its underlay.
fn machine() -> (Holder, Space) {
    become_root().unwrap();
    let (holder, space) = Holder::new("a machine").unwrap();
    for line in [
        "ip link set lo up",
        "ip link add eth0 type veth peer name eth1",
        "ip link set eth0 up",
        "ip link set eth1 up",
        "ip address add 192.0.2.1/24 dev eth0",
        "ip address add 2001:db8::1/64 dev eth0 nodad",
        "ip tuntap add wg0 mode tun",
        "ip link set wg0 addrgenmode none",
        "ip link set wg0 alias wireloom",
        "ip link set wg0 mtu 1420 up",
    ] {
        space.run(line).unwrap();
    }
    (holder, space)
}

fn own() -> BTreeSet<IpAddr> {
    ["192.0.2.1", "2001:db8::1"].iter().map(|address| address.parse().unwrap()).collect()
}

/// Runs `work` on the kernel of a machine, with a new state directory.
fn with_kernel<T: Send>(space: &Space, work: impl FnOnce(&mut Linux) -> T + Send) -> T {
    let state = tempfile::tempdir().unwrap();
    with_kernel_and_state(space, state.path(), work)
}

fn with_kernel_and_state<T: Send>(
    space: &Space,
    state: &Path,
    work: impl FnOnce(&mut Linux) -> T + Send,
) -> T {
    let state = StateDir::at(state);
    space.inside(|| work(&mut Linux::open("wg0", 1, state).unwrap())).unwrap()
}

fn rule(family: Family, from: Option<&str>) -> Rule {
    Rule {
        family,
        priority: 99,
        invert: false,
        from: from.map(|from| from.parse().unwrap()),
        mark: 0,
        mask: 0xa,
        table: 1,
        protocol: PROTOCOL,
        other: OtherSelectors::default(),
    }
}

fn route(destination: IpNet, kind: RouteKind) -> Route {
    let metric = if destination.addr().is_ipv4() { 0 } else { 1024 };
    Route { destination, kind, metric, protocol: PROTOCOL }
}

fn through(source: Option<&str>) -> RouteKind {
    RouteKind::Device { gateway: None, source: source.map(|source| source.parse().unwrap()) }
}

#[test]
fn rules_read_as_iproute2_prints_them_and_are_read_back() {
    let (_holder, space) = machine();
    let scoped = [
        rule(Family::V4, Some("10.161.0.0/16")),
        rule(Family::V4, Some("10.162.0.0/16")),
        rule(Family::V6, Some("fd61::/48")),
    ];
    let host = [Family::V4, Family::V6].map(|family| Rule { invert: true, mark: 0xa, ..rule(family, None) });
    let observed = with_kernel(&space, |kernel| {
        let rules = scoped.iter().chain(&host).cloned();
        kernel.apply(&rules.map(|it| RtnetlinkOp::AddRule(it).into()).collect::<Vec<_>>()).unwrap();
        kernel.observe(&own()).unwrap().rules
    });
    let expected = [&scoped[0], &scoped[1], &host[0], &scoped[2], &host[1]];
    assert_eq!(observed.iter().collect::<Vec<_>>(), expected);
    assert_eq!(
        space.run("ip -4 rule show pref 99").unwrap(),
        "99:\tfrom 10.161.0.0/16 fwmark 0/0xa lookup 1 proto 157\n\
         99:\tfrom 10.162.0.0/16 fwmark 0/0xa lookup 1 proto 157\n\
         99:\tnot from all fwmark 0xa/0xa lookup 1 proto 157\n"
    );
    assert_eq!(
        space.run("ip -6 rule show pref 99").unwrap(),
        "99:\tfrom fd61::/48 fwmark 0/0xa lookup 1 proto 157\n99:\tnot from all fwmark 0xa/0xa lookup 1 proto 157\n"
    );
}

#[test]
fn rules_that_others_wrote_are_read_and_removed_exactly() {
    let (_holder, space) = machine();
    for line in [
        "ip rule add from 10.1.0.0/16 to 10.2.0.0/16 iif lo oif eth0 lookup 1 pref 40",
        "ip rule add from all ipproto tcp dport 80-90 sport 5 uidrange 0-0 lookup 1 pref 41",
        "ip rule add from all fwmark 0x3/0xff lookup 1 suppress_prefixlength 0 pref 42",
        "ip rule add tos 0x10 lookup 1 pref 43",
        "ip rule add from 0.0.0.0/8 lookup 1 pref 44",
        "ip -6 rule add from fe00::/7 to 2001:db8::/32 lookup 1 pref 45",
        "ip rule add from 10.1.0.0/16 lookup 7 pref 46",
        "ip rule add from 10.1.0.0/16 unreachable pref 47",
    ] {
        space.run(line).unwrap();
    }
    with_kernel(&space, |kernel| {
        let rules = kernel.observe(&own()).unwrap().rules;
        assert_eq!(rules.iter().map(|rule| rule.priority).collect::<Vec<_>>(), [40, 41, 42, 43, 44, 45]);
        assert_eq!(rules[0].other.to, Some("10.2.0.0/16".parse().unwrap()));
        // Each is removed, and added again from what was read.
        kernel
            .apply(&rules.iter().cloned().map(|it| RtnetlinkOp::RemoveRule(it).into()).collect::<Vec<_>>())
            .unwrap();
        assert_eq!(kernel.observe(&own()).unwrap().rules, []);
        kernel
            .apply(&rules.iter().cloned().map(|it| RtnetlinkOp::AddRule(it).into()).collect::<Vec<_>>())
            .unwrap();
        assert_eq!(kernel.observe(&own()).unwrap().rules, rules);
    });
    assert!(space.run("ip rule show pref 41").unwrap().contains("ipproto tcp sport 5 dport 80-90"));
    assert!(space.run("ip rule show pref 46").unwrap().contains("lookup 7"));
}

#[test]
fn routes_change_their_kind_in_place() {
    let (_holder, space) = machine();
    let sources = [("10.161.2.0/24", "192.0.2.1"), ("fd61:0:0:2::/64", "2001:db8::1")];
    with_kernel(&space, |kernel| {
        for (destination, source) in sources {
            let destination: IpNet = destination.parse().unwrap();
            for kind in [
                through(None),
                RouteKind::Throw,
                through(Some(source)),
                RouteKind::Unreachable,
                through(None),
                through(Some(source)),
            ] {
                let wanted = route(destination, kind);
                kernel.apply(&[Op::Rtnetlink(RtnetlinkOp::SetRoute(wanted.clone()))]).unwrap();
                assert_eq!(kernel.observe(&own()).unwrap().routes, [wanted].into());
            }
            let there = kernel.observe(&own()).unwrap().routes;
            kernel
                .apply(&there.into_iter().map(|it| RtnetlinkOp::RemoveRoute(it).into()).collect::<Vec<_>>())
                .unwrap();
            assert_eq!(kernel.observe(&own()).unwrap().routes, [].into());
        }
    });
}

#[test]
fn foreign_routes_are_told_from_ours() {
    let (_holder, space) = machine();
    for line in [
        "ip route add 10.1.0.0/16 dev eth0 table 1",
        "ip route add 10.2.0.0/16 table 1 nexthop dev eth0 nexthop dev wg0",
        "ip -6 route add 2001:db8:1::/48 via 2001:db8::2 table 1",
        "ip route add throw 10.3.0.0/16 table 1 metric 5",
    ] {
        space.run(line).unwrap();
    }
    let routes = with_kernel(&space, |kernel| kernel.observe(&own()).unwrap().routes);
    assert_eq!(routes.len(), 4);
    assert!(routes.iter().all(|route| route.protocol != PROTOCOL));
    let others = routes.iter().filter(|route| matches!(route.kind, RouteKind::Other(_))).count();
    assert_eq!(others, 3);
    assert!(routes.iter().any(|route| route.kind == RouteKind::Throw && route.metric == 5));
}

#[test]
fn twenty_thousand_routes_and_one_that_the_kernel_refuses() {
    let (_holder, space) = machine();
    let networks: Vec<IpNet> = (0..10_000u32)
        .flat_map(|number| {
            let v4: IpNet = format!("10.{}.{}.0/24", number >> 8, number & 0xff).parse().unwrap();
            let v6: IpNet = format!("fd61:0:{number:x}::/64").parse().unwrap();
            [v4, v6]
        })
        .collect();
    let wanted: BTreeSet<Route> = networks.iter().map(|network| route(*network, through(None))).collect();
    with_kernel(&space, |kernel| {
        let mut ops: Vec<Op> = wanted.iter().cloned().map(|it| RtnetlinkOp::SetRoute(it).into()).collect();
        // A preferred source that is not an address of this machine.
        let bad = Route { kind: through(Some("198.51.100.1")), ..route(networks[0], RouteKind::Throw) };
        ops.insert(
            12_345,
            Op::Rtnetlink(RtnetlinkOp::SetRoute(Route {
                destination: "10.250.0.0/16".parse().unwrap(),
                ..bad
            })),
        );
        let errors = kernel.apply(&ops).unwrap_err();
        assert_eq!(errors.len(), 1);
        assert_eq!(
            errors[0].to_string(),
            "cannot set the route `10.250.0.0/16 dev wg0 src 198.51.100.1`: Invalid prefsrc address \
             (Invalid argument)"
        );
        assert!(!errors[0].retry_can_help());
        assert_eq!(kernel.observe(&own()).unwrap().routes, wanted);
    });
}

#[test]
fn rules_wait_for_routes_that_a_retry_can_set() {
    let (_holder, space) = machine();
    let add_rule = Op::Rtnetlink(RtnetlinkOp::AddRule(rule(Family::V4, Some("10.161.0.0/16"))));
    let set = |kind| Op::Rtnetlink(RtnetlinkOp::SetRoute(route("10.161.2.0/24".parse().unwrap(), kind)));
    let rules = |kernel: &mut Linux| kernel.observe(&own()).unwrap().rules.len();
    // A source that is not an address of this machine: the routes of the other peers must not wait for it.
    let hopeless = [set(through(Some("198.51.100.1"))), add_rule.clone()];
    with_kernel(&space, |kernel| {
        assert_eq!(kernel.apply(&hopeless).unwrap_err().len(), 1);
        assert_eq!(rules(kernel), 1);
        kernel
            .apply(&[Op::Rtnetlink(RtnetlinkOp::RemoveRule(rule(Family::V4, Some("10.161.0.0/16"))))])
            .unwrap();
    });
    space.run("ip link delete wg0").unwrap();
    with_kernel(&space, |kernel| {
        let errors = kernel.apply(&[set(through(None)), add_rule]).unwrap_err();
        assert_eq!(
            errors[0].to_string(),
            "cannot set the route `10.161.2.0/24 dev wg0`: our interface is gone"
        );
        assert!(errors[0].retry_can_help());
        assert_eq!(rules(kernel), 0);
    });
}

#[test]
fn addresses_are_added_and_removed_and_link_local_ones_ignored() {
    let (_holder, space) = machine();
    space.run("ip address add 169.254.7.7/16 dev wg0").unwrap();
    space.run("ip address add fe80::7/64 dev wg0").unwrap();
    let addresses: BTreeSet<IpNet> =
        ["100.64.0.1/24", "100.64.1.1/32", "fd00::1/64"].iter().map(|text| text.parse().unwrap()).collect();
    with_kernel(&space, |kernel| {
        let ops: Vec<Op> = addresses
            .iter()
            .map(|address| Op::Rtnetlink(RtnetlinkOp::AddAddress { address: *address }))
            .collect();
        kernel.apply(&ops).unwrap();
        // An address that exists already is not an error: somebody may have been faster.
        kernel.apply(&ops).unwrap();
        assert_eq!(kernel.observe(&own()).unwrap().addresses, addresses);
        let ops: Vec<Op> = addresses
            .iter()
            .map(|address| Op::Rtnetlink(RtnetlinkOp::RemoveAddress { address: *address }))
            .collect();
        kernel.apply(&ops).unwrap();
        kernel.apply(&ops).unwrap();
        assert_eq!(kernel.observe(&own()).unwrap().addresses, [].into());
    });
    assert!(space.run("ip address show dev wg0").unwrap().contains("fe80::7/64"));
}

#[test]
fn the_firewall_table_is_replaced_and_a_foreign_rule_in_it_noticed() {
    let (_holder, space) = machine();
    let firewall =
        |port| Firewall { mark_incoming: Some(IncomingMark { port, mark: 0xa }), ..Firewall::default() };
    let set = |port| Op::Firewall(FirewallOp::Set { firewall: firewall(port), anew: false });
    let observe = || with_kernel(&space, |kernel| kernel.observe(&own()).unwrap().firewall);
    let apply = |op: Op| with_kernel(&space, |kernel| kernel.apply(&[op]).unwrap());
    assert_eq!(observe(), None);
    for port in [51820, 51821] {
        apply(set(port));
        assert_eq!(observe(), Some(firewall(port)));
    }
    space.run("nft add rule inet wireloom mark_incoming drop").unwrap();
    assert_eq!(observe(), Some(Firewall { altered: true, ..Firewall::default() }));
    apply(set(51820));
    assert_eq!(observe(), Some(firewall(51820)));
    space.run("nft add table inet other").unwrap();
    apply(Op::Firewall(FirewallOp::Remove));
    apply(Op::Firewall(FirewallOp::Remove));
    assert_eq!(observe(), None);
    assert_eq!(space.run("nft list tables").unwrap(), "table inet other\n");
}

#[test]
fn sysctls_are_recorded_before_they_change_and_restored() {
    let (_holder, space) = machine();
    space.set_sysctls(&[("net/ipv4/conf/eth0/rp_filter", "1")]).unwrap();
    let state = tempfile::tempdir().unwrap();
    let set = |value| {
        Op::Sysctl(SysctlOp::Set { interface: "eth0".into(), sysctl: UnderlaySysctl::RpFilter, value })
    };
    let restore =
        Op::Sysctl(SysctlOp::Restore { interface: "eth0".into(), sysctl: UnderlaySysctl::RpFilter });
    let saved: BTreeMap<_, _> = [("eth0".to_owned(), [(UnderlaySysctl::RpFilter, 1)].into())].into();
    with_kernel_and_state(&space, state.path(), |kernel| {
        assert_eq!(kernel.observe(&own()).unwrap().underlays["eth0"].rp_filter, 1);
        // Several times: the value from before the first is remembered.
        kernel.apply(&[set(2), set(0), set(2)]).unwrap();
        let observed = kernel.observe(&own()).unwrap();
        assert_eq!((observed.underlays["eth0"].rp_filter, observed.saved_sysctls), (2, saved));
    });
    // By another process, as after a restart.
    with_kernel_and_state(&space, state.path(), |kernel| {
        kernel.apply(&[restore.clone(), restore.clone()]).unwrap();
    });
    assert_eq!(space.sysctl("net/ipv4/conf/eth0/rp_filter").unwrap(), "1");

    // An interface that is gone leaves nothing to restore.
    with_kernel_and_state(&space, state.path(), |kernel| kernel.apply(&[set(2)]).unwrap());
    space.run("ip link delete eth0").unwrap();
    with_kernel_and_state(&space, state.path(), |kernel| {
        kernel.apply(&[restore]).unwrap();
        assert_eq!(kernel.observe(&own()).unwrap().saved_sysctls, BTreeMap::new());
    });
}

#[test]
fn interfaces_with_own_addresses_are_underlays() {
    let (_holder, space) = machine();
    space.run("ip link set eth0 mtu 9000").unwrap();
    let underlays = with_kernel(&space, |kernel| kernel.observe(&own()).unwrap().underlays);
    assert_eq!(underlays.keys().collect::<Vec<_>>(), ["eth0"]);
    assert_eq!((underlays["eth0"].mtu, &underlays["eth0"].addresses), (9000, &own()));
    let strangers = with_kernel(&space, |kernel| kernel.observe(&BTreeSet::new()).unwrap().underlays);
    assert_eq!(strangers, BTreeMap::new());
}

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

fn firewall_op() -> impl Strategy<Value = Op> {
    let firewall =
        (prop::option::of(51820..51822_u16), prop::bool::weighted(0.8)).prop_map(|(port, judge)| {
            let mark_incoming = port.map(|port| IncomingMark { port, mark: 0xa });
            Firewall { mark_incoming, judge_sources: judge, guard: None, altered: false }
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
    prop_oneof![
        3 => (firewall, prop::bool::weighted(0.2))
            .prop_map(|(firewall, anew)| FirewallOp::Set { firewall, anew }.into()),
        3 => peer().prop_map(|peer| Op::Firewall(FirewallOp::JudgePeer { peer })),
        1 => peer().prop_map(|peer| Op::Firewall(FirewallOp::ForgetPeer { peer })),
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
    (destinations, 0usize..4, any::<bool>()).prop_map(|(destination, kind, ours)| {
        let destination: IpNet = destination.parse().unwrap();
        let source = if destination.addr().is_ipv4() { "192.0.2.1" } else { "2001:db8::1" };
        let kind =
            [RouteKind::Throw, RouteKind::Unreachable, through(None), through(Some(source))][kind].clone();
        let protocol = if ours { PROTOCOL } else { 3 };
        Route { protocol, ..route(destination, kind) }
    })
}
