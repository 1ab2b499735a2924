//! From an arbitrary kernel to an arbitrary mesh.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use proptest::prelude::*;
use wireloom_plan::{
    desired::{Desired, Host, desired},
    diff::{diff, teardown},
    firewall::Guarded,
    observed::Observed,
    op::{DeviceOp, FirewallOp, InterfaceOp, Op, RtnetlinkOp, SysctlOp},
    routing::{Route, RouteKind, Rule},
};

use crate::{
    universe::{cluster, key_file, observed, preshared_key, settings, standings},
    world::are_one,
};

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_operations_reach_the_desired_state_and_nothing_remains_to_do(
        (before, wanted) in before_and_wanted()
    ) {
        let ops = diff(&before, &wanted).unwrap();
        let mut after = before.clone();
        after.apply_all(&ops).unwrap();
        assert_reached(&before, &after, &wanted);
        prop_assert_eq!(diff(&after, &wanted).unwrap(), vec![]);
        prop_assert_eq!(diff(&before, &wanted).unwrap(), ops, "the same arguments give the same list");
    }

    #[test]
    fn every_moment_in_between_is_safe((before, wanted) in before_and_wanted()) {
        let ops = diff(&before, &wanted).unwrap();
        let mut now = before.clone();
        for run in ops.chunk_by(are_one) {
            assert_safe_to_do(&run[0], &before, &now, &wanted);
            now.apply_all(run).unwrap();
            assert_nothing_refused(&before, &now, &wanted);
            assert_guarded(&before, &now, &wanted);
            assert_nothing_lost(&before, &now, &wanted);
        }
    }

    #[test]
    fn teardown_leaves_foreign_objects_and_nothing_else(before in observed()) {
        let ops = teardown(&before);
        let mut after = before.clone();
        after.apply_all(&ops).unwrap();
        let removes_rule = |op: &Op| matches!(op, Op::Rtnetlink(RtnetlinkOp::RemoveRule(_)));
        prop_assert!(!ops.iter().skip_while(|op| removes_rule(op)).any(removes_rule), "rules go first");
        prop_assert_eq!(&after.interface, &None);
        let foreign = before.rules.iter().filter(|rule| !rule.is_ours());
        prop_assert!(sorted(after.rules.iter()) == sorted(foreign), "foreign rules stay");
        prop_assert_eq!(&after.firewall, &None);
        prop_assert!(after.judged_peers.is_empty() && after.sources.is_empty() && after.guarded.is_empty());
        prop_assert!(after.saved_sysctls.is_empty());
        // The kernel removes a foreign route through our interface together with the interface.
        let foreign = before.routes.iter().filter(|route| !route.is_ours() && !through_our_interface(route));
        prop_assert!(after.routes.iter().eq(foreign));
        prop_assert_eq!(teardown(&after), vec![]);
    }
}

fn before_and_wanted() -> impl Strategy<Value = (Observed, Desired)> {
    let inputs = (cluster(), settings(), standings(), key_file(), preshared_key());
    (observed(), inputs).prop_map(|(observed, (cluster, settings, standings, own, preshared_key))| {
        let host = Host { preshared_key, ..Host::of(own, &observed) };
        let wanted = desired(&cluster, &settings, &standings, &host).unwrap();
        (observed, wanted)
    })
}

fn assert_reached(before: &Observed, after: &Observed, wanted: &Desired) {
    let interface = after.interface.as_ref().unwrap();
    assert!(interface.up && interface.is_ours());
    assert_eq!((interface.mtu, interface.peer_lookup), (wanted.mtu, wanted.device.peer_lookup));

    let device = after.device.as_ref().unwrap();
    assert_eq!(device.public_key, Some(wanted.device.public_key));
    assert_eq!((device.listen_port, device.fwmark), (wanted.device.listen_port, wanted.device.fwmark));
    assert_eq!(device.source_check, wanted.device.source_check);
    assert!(device.peers.keys().eq(wanted.peers.keys()));
    for (key, peer) in &wanted.peers {
        let found = &device.peers[key];
        assert_eq!(found.allowed_ips, peer.allowed_ips, "allowed-IPs of {}", peer.node);
        assert_eq!(found.persistent_keepalive, peer.persistent_keepalive);
        assert_eq!(found.preshared_key, peer.preshared_key);
    }

    assert_eq!(after.addresses, wanted.addresses);
    assert_eq!(after.neighbours, wanted.neighbours);
    assert!(after.link_routes.iter().eq(link_routes(wanted)));
    let rules = sorted(rules_of_ours(after, wanted));
    assert!(rules.iter().copied().eq(&wanted.rules), "{rules:?} should be {:?}", wanted.rules);
    assert_eq!(
        sorted(foreign_rules(after, wanted)),
        sorted(foreign_rules(before, wanted)),
        "foreign rules stay"
    );

    let ours: BTreeMap<IpNet, &Route> =
        after.routes.iter().filter(|route| route.is_ours()).map(|route| (route.destination, route)).collect();
    assert_eq!(
        ours.len(),
        after.routes.iter().filter(|route| route.is_ours()).count(),
        "one route per destination"
    );
    for route in wanted_routes(wanted) {
        assert!(is_blocked(after, &route) || ours.get(&route.destination) == Some(&&route), "{route:?}");
    }
    assert!(ours.keys().all(|destination| wanted.routes.contains_key(destination)));
    assert!(foreign_routes(after).eq(foreign_routes(before)), "foreign routes stay");

    assert_eq!(after.firewall, wanted.firewall);
    assert_eq!(after.judged_peers, wanted.judged_peers);
    assert_eq!(after.sources, wanted.sources);
    assert_eq!(after.guarded, wanted.guarded);
    for (interface, sysctls) in &wanted.sysctls {
        assert!(sysctls.iter().all(|(sysctl, value)| after.sysctl(interface, *sysctl) == Some(*value)));
    }
    for (interface, saved) in &after.saved_sysctls {
        assert!(
            saved.keys().all(|sysctl| wanted.sysctls[interface].contains_key(sysctl)),
            "all others restored"
        );
    }
}

/// Rules are the last thing added and the first thing removed.
fn assert_safe_to_do(op: &Op, before: &Observed, now: &Observed, wanted: &Desired) {
    match op {
        // A route with a neighbour as its next hop finds the neighbour right away.
        Op::Rtnetlink(RtnetlinkOp::SetRoute(Route {
            kind: RouteKind::Device { gateway: Some(_), .. },
            ..
        })) => {
            assert!(
                wanted.neighbours.iter().all(|(address, peer)| now.neighbours.get(address) == Some(peer))
            );
        }
        Op::Rtnetlink(RtnetlinkOp::AddRule(rule)) if !before.rules.contains(rule) => {
            assert!(now.interface.as_ref().unwrap().up);
            for route in wanted_routes(wanted) {
                assert!(is_there(now, &route) || is_blocked(now, &route), "{rule:?} before {route:?}");
                let hides = |other: &&Route| other.is_ours() && other.metric != route.metric;
                assert!(
                    is_blocked(now, &route) || !now.routes_to(route.destination).any(|other| hides(&other))
                );
            }
            let peers = &now.device.as_ref().unwrap().peers;
            for (key, peer) in &wanted.peers {
                assert!(
                    peers[key].allowed_ips.is_superset(&peer.allowed_ips),
                    "{rule:?} before {}",
                    peer.node
                );
            }
            for (interface, sysctls) in &wanted.sysctls {
                assert!(sysctls.iter().all(|(sysctl, value)| now.sysctl(interface, *sysctl) == Some(*value)));
            }
            assert_judging(now, wanted);
            let marks = now.firewall.as_ref().and_then(|firewall| firewall.mark_incoming.as_ref());
            let mark = wanted.firewall.as_ref().and_then(|firewall| firewall.mark_incoming.as_ref());
            assert!(mark.is_none() || marks == mark);
        }
        // Nothing is received before the firewall is there.
        Op::Interface(InterfaceOp::Create { .. } | InterfaceOp::StartDevice { .. })
        | Op::Device(DeviceOp::Configure { .. } | DeviceOp::SetPeer(_)) => {
            assert_judging(now, wanted);
        }
        Op::Rtnetlink(RtnetlinkOp::RemoveRule(_)) => {
            assert!(
                wanted.rules.iter().all(|rule| now.rules.contains(rule)),
                "new rules are there before old ones are removed"
            );
        }
        Op::Rtnetlink(RtnetlinkOp::RemoveRoute(route)) if !wanted.routes.contains_key(&route.destination) => {
            assert!(
                rules_of_ours(now, wanted).all(|rule| wanted.rules.contains(rule)),
                "rules before {route:?}"
            );
        }
        Op::Device(DeviceOp::RemovePeer { .. })
        | Op::Firewall(FirewallOp::Remove)
        | Op::Sysctl(SysctlOp::Restore { .. }) => {
            assert!(
                rules_of_ours(now, wanted).all(|rule| wanted.rules.contains(rule)),
                "rules go before {op:?}"
            );
        }
        _ => {}
    }
}

/// The firewall checks sources if desired, and admits all desired sources.
fn assert_judging(now: &Observed, wanted: &Desired) {
    if wanted.firewall.as_ref().is_some_and(|firewall| firewall.judge_sources) {
        assert!(now.firewall.as_ref().is_some_and(|firewall| firewall.judge_sources && !firewall.altered));
        assert!(now.judged_peers.is_superset(&wanted.judged_peers));
        assert!(now.sources.is_superset(&wanted.sources));
    }
}

/// Sources that are admitted before and after are admitted at every moment.
fn assert_nothing_refused(before: &Observed, now: &Observed, wanted: &Desired) {
    let judges = |kernel: &Observed| kernel.firewall.as_ref().is_some_and(|firewall| firewall.judge_sources);
    if judges(before) && judges(now) {
        let admits = |kernel: &Observed, peer, address| {
            kernel.sources.iter().any(|source| source.peer == peer && source.addresses.contains(address))
        };
        for source in &wanted.sources {
            for address in [source.addresses.first(), source.addresses.last()] {
                let kept = !admits(before, source.peer, address) || admits(now, source.peer, address);
                assert!(kept, "{address} of {} was refused", source.peer);
            }
        }
        let counted = before.judged_peers.intersection(&wanted.judged_peers);
        assert!(counted.into_iter().all(|peer| now.judged_peers.contains(peer)), "counts are kept");
    }
}

/// What the guard refuses before and afterwards, it refuses at every moment.
fn assert_guarded(before: &Observed, now: &Observed, wanted: &Desired) {
    let guards =
        |kernel: &Observed| kernel.firewall.as_ref().is_some_and(|firewall| firewall.guard.is_some());
    let is_wanted = wanted.firewall.as_ref().is_some_and(|firewall| firewall.guard.is_some());
    if !guards(before) || !is_wanted {
        return;
    }
    assert!(guards(now), "the guard was missing");
    let holds = |guarded: &BTreeSet<Guarded>, set, address| {
        guarded.iter().any(|element| element.set == set && element.addresses.contains(address))
    };
    for element in &before.guarded {
        for address in [element.addresses.first(), element.addresses.last()] {
            let stays = holds(&wanted.guarded, element.set, address);
            assert!(!stays || holds(&now.guarded, element.set, address), "{address} left {:?}", element.set);
        }
    }
}

/// Objects that are there before and desired afterwards are there at every moment.
fn assert_nothing_lost(before: &Observed, now: &Observed, wanted: &Desired) {
    let kept: Vec<&Rule> = before.rules.iter().filter(|rule| wanted.rules.contains(rule)).collect();
    assert!(kept.iter().all(|rule| now.rules.contains(rule)), "a desired rule was removed");
    assert!(foreign_rules(before, wanted).all(|rule| now.rules.contains(rule)), "a foreign rule was removed");

    let Some(present) = &before.interface else { return };
    let lives = before.device.is_some() || present.left;
    if !lives || present.peer_lookup != wanted.device.peer_lookup {
        return assert_nothing_leaks(before, now, wanted);
    }
    for route in &before.routes {
        let stays = wanted.routes.contains_key(&route.destination);
        if stays && route.is_ours() && !is_blocked(before, &standard(route)) {
            assert!(now.routes_to(route.destination).any(Route::is_ours), "{route:?} was missing");
        }
    }
    let (Some(old), Some(new)) = (&before.device, &now.device) else { return };
    let held = new.peers.values().flat_map(|peer| &peer.allowed_ips);
    let held: BTreeSet<_> = held.collect();
    // A desired prefix always has an owner; the others have one until the old rules are gone.
    let old_rules = rules_of_ours(now, wanted).any(|rule| !wanted.rules.contains(rule));
    let wanted: BTreeSet<_> = wanted.peers.values().flat_map(|peer| &peer.allowed_ips).collect();
    let own = new.public_key;
    let peers = old.peers.iter().filter(|(key, _)| Some(**key) != own);
    for prefix in peers.flat_map(|(_, peer)| &peer.allowed_ips) {
        let needed = old_rules || wanted.contains(prefix);
        assert!(!needed || held.contains(prefix), "no peer had {prefix} in its allowed-IPs");
    }
}

/// While the interface is recreated, its destinations still have routes.
fn assert_nothing_leaks(before: &Observed, now: &Observed, wanted: &Desired) {
    for route in before.routes.iter().filter(|route| route.is_ours()) {
        let stays = wanted.routes.contains_key(&route.destination) && !is_blocked(before, route);
        if stays && !is_blocked(before, &standard(route)) {
            assert!(now.routes_to(route.destination).any(Route::is_ours), "{route:?} was missing");
        }
    }
}

fn link_routes(wanted: &Desired) -> impl Iterator<Item = &IpAddr> {
    wanted.neighbours.keys().filter(|address| match address {
        IpAddr::V4(address) => !address.is_link_local(),
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    })
}

fn wanted_routes(wanted: &Desired) -> impl Iterator<Item = Route> {
    wanted.routes.iter().map(|(destination, kind)| Route::ours(*destination, kind.clone()))
}

/// The route may still have a preferred source, which a rule that is removed later needs.
fn is_there(now: &Observed, wanted: &Route) -> bool {
    let mut routes = now.routes_to(wanted.destination).filter(|route| route.metric == wanted.metric);
    let RouteKind::Device { gateway, source: None, .. } = wanted.kind else {
        return now.routes.contains(wanted);
    };
    routes.any(|route| matches!(route.kind, RouteKind::Device { gateway: via, .. } if via == gateway))
}

fn standard(route: &Route) -> Route {
    Route::ours(route.destination, route.kind.clone())
}

fn is_blocked(observed: &Observed, route: &Route) -> bool {
    observed.routes_to(route.destination).any(|other| !other.is_ours() && other.metric == route.metric)
}

fn through_our_interface(route: &Route) -> bool {
    matches!(route.kind, RouteKind::Device { .. })
}

/// The foreign routes that the removal of our interface does not remove.
fn foreign_routes(observed: &Observed) -> impl Iterator<Item = &Route> {
    observed.routes.iter().filter(|route| !route.is_ours() && !through_our_interface(route))
}

/// The rules that a plan may remove.
fn rules_of_ours<'a>(observed: &'a Observed, wanted: &'a Desired) -> impl Iterator<Item = &'a Rule> {
    observed.rules.iter().filter(|rule| rule.is_ours() || rule.is_unscoped(wanted.device.fwmark))
}

fn foreign_rules<'a>(observed: &'a Observed, wanted: &'a Desired) -> impl Iterator<Item = &'a Rule> {
    observed.rules.iter().filter(|rule| !rule.is_ours() && !rule.is_unscoped(wanted.device.fwmark))
}

fn sorted<'a>(rules: impl Iterator<Item = &'a Rule>) -> Vec<&'a Rule> {
    let mut rules: Vec<_> = rules.collect();
    rules.sort();
    rules
}
