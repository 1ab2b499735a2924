//! What is written to the kernel is read back as it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use ipnet::IpNet;
use wireloom_kernel::{Kernel as _, Linux, restore_guard, state::StateDir};
use wireloom_lab::{Holder, Space, become_root};
use wireloom_plan::{
    address_range::AddressRange,
    firewall::{Firewall, Guard, GuardSet, Guarded, IncomingMark, Source},
    op::{FirewallOp, Op, RtnetlinkOp, SysctlOp},
    routing::{Family, OtherSelectors, PROTOCOL, Route, RouteKind, Rule},
    sysctl::UnderlaySysctl,
};
use wireloom_types::LinkAddress;

/// A machine with our interface, and `eth0` as its underlay.
pub(super) fn machine() -> (Holder, Space) {
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

pub(super) fn own() -> BTreeSet<IpAddr> {
    ["192.0.2.1", "2001:db8::1"].iter().map(|address| address.parse().unwrap()).collect()
}

/// Runs `work` on the kernel of a machine, with a new state directory.
pub(super) fn with_kernel<T: Send>(space: &Space, work: impl FnOnce(&mut Linux) -> T + Send) -> T {
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

pub(super) fn rule(family: Family, from: Option<&str>) -> Rule {
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

pub(super) fn route(destination: IpNet, kind: RouteKind) -> Route {
    let metric = if destination.addr().is_ipv4() { 0 } else { 1024 };
    Route { destination, kind, metric, protocol: PROTOCOL }
}

pub(super) fn through(source: Option<&str>) -> RouteKind {
    RouteKind::Device { gateway: None, source: source.map(|source| source.parse().unwrap()), mtu: None }
}

/// For a peer whose path carries less than the interface.
pub(super) fn narrow() -> RouteKind {
    RouteKind::Device { gateway: None, source: None, mtu: Some(1280) }
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
                narrow(),
                through(None),
                narrow(),
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

/// A guard with elements of both families, and with what link mode and host mode add.
fn guarding() -> Vec<Op> {
    let firewall = Firewall {
        mark_incoming: Some(IncomingMark { port: 51820, mark: 0xa }),
        judge_sources: true,
        guard: Some(Guard {
            mark: 0xa,
            reject: true,
            outward: ["eth0".to_owned()].into(),
            error_source_v4: Some("10.161.1.1".parse().unwrap()),
            ..Guard::default()
        }),
        segment_v6: Some(1140),
        altered: false,
    };
    let peer = LinkAddress::from_bytes([2, 0, 0, 0, 0, 1]);
    let range = |text: &str| AddressRange::from(text.parse::<IpNet>().unwrap());
    let guard = |set, text| FirewallOp::Guard(Guarded { set, addresses: range(text) });
    let ops = [
        FirewallOp::Set { firewall, anew: false },
        FirewallOp::JudgePeer { peer },
        FirewallOp::AdmitSource(Source { peer, addresses: range("10.161.2.0/24") }),
        guard(GuardSet::Own, "10.161.1.0/24"),
        guard(GuardSet::Pools, "10.161.0.0/16"),
        guard(GuardSet::RefusedOut, "10.161.2.0/24"),
        guard(GuardSet::RefusedIn, "fd61:0:0:2::/64"),
    ];
    ops.map(Op::Firewall).into()
}

#[test]
fn the_guard_comes_back_after_a_flush_and_at_the_next_boot_but_not_once_it_is_removed() {
    let (_holder, space) = machine();
    let state = tempfile::tempdir().unwrap();
    let saved = state.path().join("guard.nft");
    let observe = || {
        with_kernel_and_state(&space, state.path(), |kernel| {
            let observed = kernel.observe(&own()).unwrap();
            (observed.firewall, observed.judged_peers, observed.sources, observed.guarded)
        })
    };
    let restore = || space.inside(|| restore_guard(&StateDir::at(state.path())).unwrap()).unwrap();
    assert!(!restore(), "nothing is saved");
    with_kernel_and_state(&space, state.path(), |kernel| kernel.apply(&guarding()).unwrap());
    let before = observe();
    assert_eq!(before.3.len(), 4);

    // By an agent that starts.
    space.run("nft flush ruleset").unwrap();
    assert!(restore());
    assert_eq!(observe(), before);
    assert!(!restore(), "the table is there");

    // By the unit that loads it at boot, whatever is there.
    space.run("nft add rule inet wireloom guard_forward drop").unwrap();
    space.run(&format!("nft -f {}", saved.display())).unwrap();
    assert_eq!(observe(), before);

    let remove = Op::Firewall(FirewallOp::Remove);
    with_kernel_and_state(&space, state.path(), |kernel| kernel.apply(&[remove]).unwrap());
    assert!(!saved.exists());
    assert!(!restore());
    assert_eq!(observe().0, None);

    // A table without the guard is not saved.
    with_kernel_and_state(&space, state.path(), |kernel| kernel.apply(&guarding()).unwrap());
    assert!(saved.exists());
    let firewall = Firewall { judge_sources: true, ..Firewall::default() };
    let set = Op::Firewall(FirewallOp::Set { firewall, anew: false });
    with_kernel_and_state(&space, state.path(), |kernel| kernel.apply(&[set]).unwrap());
    assert!(!saved.exists());
}

#[test]
fn a_dormant_table_is_altered() {
    let (_holder, space) = machine();
    let altered = || with_kernel(&space, |kernel| kernel.observe(&own()).unwrap().firewall.unwrap().altered);
    with_kernel(&space, |kernel| kernel.apply(&guarding()).unwrap());
    assert!(!altered());
    space.feed("nft -f -", "add table inet wireloom { flags dormant; }").unwrap();
    assert!(altered());
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

#[test]
fn interfaces_that_lead_to_other_machines_are_known() {
    let (_holder, space) = machine();
    let outward = || {
        let outward = with_kernel(&space, |kernel| kernel.observe(&own()).unwrap().outward);
        outward.into_keys().collect::<Vec<_>>().join(" ")
    };
    // A veth interface leads out because it has an address of this node; our own and the loopback never do.
    assert_eq!(outward(), "eth0");
    for line in [
        "ip link add pods type bridge",
        "ip link set pods up",
        "ip link add pod type veth peer name other",
        "ip link set pod master pods",
        "ip address add 10.161.1.1/24 dev pods",
        "ip link add one type veth peer name another",
        "ip link set one up",
    ] {
        space.run(line).unwrap();
    }
    assert_eq!(outward(), "eth0");
    space.run("ip link add vxlan1 type vxlan id 1 dstport 4789 dev eth0").unwrap();
    assert_eq!(outward(), "eth0 vxlan1");
    // A bridge leads where its ports lead.
    space.run("ip link set vxlan1 master pods").unwrap();
    assert_eq!(outward(), "eth0 pods");
    space.run("ip link set vxlan1 nomaster").unwrap();
    for (add, delete, leads) in [
        // A pod may be a gateway.
        ("ip route add 198.51.100.0/24 via 10.161.1.9", "ip route delete 198.51.100.0/24", "eth0 vxlan1"),
        ("ip route add default dev one", "ip route delete default", "eth0 one vxlan1"),
        (
            "ip route add default nexthop via 192.0.2.9 nexthop via 10.161.1.9",
            "ip route delete default",
            "eth0 pods vxlan1",
        ),
        ("ip -6 route add default via fe80::9 dev eth1", "ip -6 route delete default", "eth0 eth1 vxlan1"),
    ] {
        space.run(add).unwrap();
        assert_eq!(outward(), leads, "{add}");
        space.run(delete).unwrap();
        assert_eq!(outward(), "eth0 vxlan1", "{delete}");
    }
    // In a table that a rule looks up.
    space.run("ip route add default via 10.161.1.9 table 77").unwrap();
    assert_eq!(outward(), "eth0 vxlan1");
    space.run("ip rule add from 10.161.1.0/24 lookup 77").unwrap();
    assert_eq!(outward(), "eth0 pods vxlan1");
}

#[test]
fn addresses_of_the_machine_and_source_validation_are_observed() {
    let (_holder, space) = machine();
    space.run("ip address add 100.64.0.1/24 dev wg0").unwrap();
    space.set_sysctls(&[("net/ipv4/conf/all/rp_filter", "1"), ("net/ipv4/conf/wg0/rp_filter", "1")]).unwrap();
    with_kernel(&space, |kernel| {
        let observed = kernel.observe(&own()).unwrap();
        let here: Vec<String> = observed.here.iter().map(ToString::to_string).collect();
        assert_eq!(here, ["127.0.0.1/8", "192.0.2.1/24", "::1/128", "2001:db8::1/64"]);
        assert_eq!(observed.here_outward, BTreeSet::new(), "veth interfaces connect containers");
        assert_eq!((observed.rp_filter_all, observed.interface.unwrap().rp_filter), (1, 1));
        kernel.apply(&[Op::Sysctl(SysctlOp::SetOwnRpFilter { value: 2 })]).unwrap();
        assert_eq!(kernel.observe(&own()).unwrap().interface.unwrap().rp_filter, 2);
    });
    space.run("ip link add vxlan1 type vxlan id 1 dstport 4789 dev eth0").unwrap();
    space.run("ip address add 10.161.1.0/32 dev vxlan1").unwrap();
    let observed = with_kernel(&space, |kernel| kernel.observe(&own()).unwrap());
    assert_eq!(observed.here_outward, ["10.161.1.0".parse().unwrap()].into());
}
