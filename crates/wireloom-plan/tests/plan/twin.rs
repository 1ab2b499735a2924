//! The in-memory kernel does what Linux 6.18 was measured to do.

use wireloom_plan::{
    observed::{ApplyError, Device, Interface, Observed},
    op::{DeviceOp, InterfaceOp, Op, RtnetlinkOp, SetPeer},
    routing::{Route, RouteKind, Rule},
};
use wireloom_types::{PeerLookup, SourceCheck, interface::AGENT_ALIAS};

use crate::world::{key, net, rule};

/// Rules at one priority, a delete request, and the position of the rule that it deletes.
#[test]
fn a_delete_request_hits_the_first_rule_that_matches_loosely() {
    let p = "from 10.1.0.0/16";
    for (rules, request, hit) in [
        // No source, no mark, no mask: wildcards.
        ([format!("{p} fwmark 0/0xa"), "from all".to_owned()], "from all".to_owned(), 0),
        // The invert flag is ignored.
        ([format!("not {p} fwmark 0/0xa"), format!("{p} fwmark 0/0xa")], format!("{p} fwmark 0/0xa"), 0),
        (
            ["from all fwmark 0xa/0xa".to_owned(), "not from all fwmark 0xa/0xa proto 157".to_owned()],
            "not from all fwmark 0xa/0xa proto 0".to_owned(),
            0,
        ),
        // Mark 0 is a wildcard, its mask is not.
        ([format!("{p} fwmark 0x2/0xa"), format!("{p} fwmark 0/0xa")], format!("{p} fwmark 0/0xa"), 0),
        ([format!("{p} fwmark 0/0x8"), format!("{p} fwmark 0/0xa")], format!("{p} fwmark 0/0xa"), 1),
        // A protocol, a source and its length are compared when they are given.
        ([p.to_owned(), format!("{p} fwmark 0/0xa proto 157")], format!("{p} proto 157"), 1),
        ([format!("{p} proto 157"), "from 10.2.0.0/16 proto 3".to_owned()], "from all proto 3".to_owned(), 1),
        (["from 10.1.0.0/24".to_owned(), p.to_owned()], p.to_owned(), 1),
    ] {
        let mut kernel =
            Observed { rules: rules.iter().map(|text| rule(text)).collect(), ..Observed::default() };
        let other = kernel.rules[1 - hit].clone();
        kernel.apply(&Op::Rtnetlink(RtnetlinkOp::RemoveRule(rule(&request)))).unwrap();
        assert_eq!(kernel.rules, [other], "{rules:?} less {request}");
    }
}

#[test]
fn selectors_absent_from_a_request_are_wildcards_too() {
    let plain = rule("from 10.1.0.0/16");
    let mut from_eth0 = plain.clone();
    from_eth0.other.attributes.insert(3, b"eth0\0".to_vec());
    for (rules, request, left) in
        [([&from_eth0, &plain], &plain, &plain), ([&plain, &from_eth0], &from_eth0, &plain)]
    {
        let mut kernel = Observed { rules: rules.map(Rule::clone).into(), ..Observed::default() };
        kernel.apply(&Op::Rtnetlink(RtnetlinkOp::RemoveRule(request.clone()))).unwrap();
        assert_eq!(kernel.rules, std::slice::from_ref(left));
    }
    assert_eq!(
        Observed::default().apply(&Op::Rtnetlink(RtnetlinkOp::RemoveRule(plain))),
        Err(ApplyError::NoSuchRule(99))
    );
}

#[test]
fn a_rule_is_added_after_others_of_its_priority() {
    let mut kernel = Observed::default();
    for text in
        ["from 10.2.0.0/16 priority 99", "from 10.3.0.0/16 priority 100", "from 10.1.0.0/16 priority 99"]
    {
        kernel.apply(&Op::Rtnetlink(RtnetlinkOp::AddRule(rule(text)))).unwrap();
    }
    let sources: Vec<_> = kernel.rules.iter().map(|rule| rule.from.unwrap().to_string()).collect();
    assert_eq!(sources, ["10.2.0.0/16", "10.1.0.0/16", "10.3.0.0/16"]);
}

fn kernel_with_interface(up: bool) -> Observed {
    let interface = Some(Interface {
        alias: Some(AGENT_ALIAS.to_owned()),
        mtu: 1420,
        up,
        peer_lookup: PeerLookup::Destination,
        link_address: None,
        left: false,
        rp_filter: 0,
    });
    Observed { interface, device: Some(Device::default()), ..Observed::default() }
}

#[test]
fn a_route_replaces_one_of_another_kind_but_not_one_of_another_metric() {
    for destination in ["10.2.0.0/16", "2001:db8::/64"].map(net) {
        let mut kernel = kernel_with_interface(true);
        let throw = Route::ours(destination, RouteKind::Throw);
        let device = Route::ours(destination, RouteKind::Device { gateway: None, source: None, mtu: None });
        let beside = Route { metric: 7, ..throw.clone() };
        for route in [&throw, &beside, &device] {
            kernel.apply(&Op::Rtnetlink(RtnetlinkOp::SetRoute(route.clone()))).unwrap();
        }
        assert_eq!(kernel.routes, [beside, device].into());
    }
}

#[test]
fn a_route_through_an_interface_that_is_down_is_refused() {
    let destination = net("10.2.0.0/16");
    let device = Op::Rtnetlink(RtnetlinkOp::SetRoute(Route::ours(
        destination,
        RouteKind::Device { gateway: None, source: None, mtu: None },
    )));
    assert_eq!(kernel_with_interface(false).apply(&device), Err(ApplyError::InterfaceDown(destination)));
    assert_eq!(Observed::default().apply(&device), Err(ApplyError::NoInterface));
    let source = Some("192.0.2.1".parse().unwrap());
    let foreign_source = Route::ours(destination, RouteKind::Device { gateway: None, source, mtu: None });
    let refused = kernel_with_interface(true).apply(&Op::Rtnetlink(RtnetlinkOp::SetRoute(foreign_source)));
    assert_eq!(refused, Err(ApplyError::NoSuchSource(destination)));
}

#[test]
fn removing_the_interface_removes_its_routes_and_no_others() {
    let mut kernel = kernel_with_interface(true);
    let throw = Route::ours(net("10.1.0.0/16"), RouteKind::Throw);
    let device =
        Route::ours(net("10.2.0.0/16"), RouteKind::Device { gateway: None, source: None, mtu: None });
    kernel
        .apply_all(&[
            Op::Rtnetlink(RtnetlinkOp::SetRoute(throw.clone())),
            Op::Rtnetlink(RtnetlinkOp::SetRoute(device)),
            Op::Interface(InterfaceOp::Remove),
        ])
        .unwrap();
    assert_eq!(kernel, Observed { routes: [throw].into(), ..Observed::default() });
}

#[test]
fn allowed_ips_are_taken_from_their_previous_owner() {
    let peer = |number, prefixes: &[&str]| {
        Op::Device(DeviceOp::SetPeer(SetPeer {
            public_key: key(number),
            endpoint: None,
            allowed_ips: prefixes.iter().copied().map(net).collect(),
            persistent_keepalive: 0,
            preshared_key: None,
        }))
    };
    let (x, y, z) = ("10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16");
    let first = [peer(1, &[x, z]), peer(2, &[y])];
    for (second, of_1, of_2) in [
        (vec![peer(1, &[y]), peer(2, &[x])], vec![y], vec![x]),
        (vec![peer(2, &[x])], vec![z], vec![x]),
        (vec![peer(1, &[x, y]), peer(1, &[z]), peer(2, &[x])], vec![z], vec![x]),
        (vec![peer(2, &[x, y, z]), peer(1, &[z])], vec![z], vec![x, y]),
        (vec![peer(2, &[x]), peer(2, &[y])], vec![z], vec![y]),
        (vec![peer(2, &[x]), peer(2, &[]), peer(1, &[x])], vec![x], vec![]),
    ] {
        // In one transaction and in several.
        for transactions in [vec![second.clone()], second.iter().map(|op| vec![op.clone()]).collect()] {
            let mut kernel = kernel_with_interface(true);
            kernel.apply_all(&first).unwrap();
            transactions.iter().for_each(|ops| kernel.apply_all(ops).unwrap());
            let peers = kernel.device.unwrap().peers;
            let allowed = |number| peers[&key(number)].allowed_ips.clone();
            assert_eq!(allowed(1), of_1.iter().copied().map(net).collect(), "{second:?}");
            assert_eq!(allowed(2), of_2.iter().copied().map(net).collect(), "{second:?}");
        }
    }
}

#[test]
fn a_device_is_never_its_own_peer() {
    let mut kernel = kernel_with_interface(true);
    let source_check = SourceCheck::AllowedIps;
    let own =
        Op::Device(DeviceOp::Configure { public_key: key(1), listen_port: 51820, fwmark: 0xa, source_check });
    let peer = Op::Device(DeviceOp::SetPeer(SetPeer {
        public_key: key(1),
        endpoint: None,
        allowed_ips: [net("10.1.0.0/16")].into(),
        persistent_keepalive: 0,
        preshared_key: None,
    }));
    for order in [[own.clone(), peer.clone()], [peer, own]] {
        kernel.apply_all(&order).unwrap();
        assert!(kernel.device.as_ref().unwrap().peers.is_empty());
    }
}
