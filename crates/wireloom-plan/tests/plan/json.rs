//! The JSON form of operations, which `wireloom plan --json` and `wireloom status --json` print for programs.

use wireloom_plan::{
    firewall::{Firewall, GuardSet, Guarded, IncomingMark, Source},
    op::{DeviceOp, FirewallOp, InterfaceOp, Op, RtnetlinkOp, SetPeer, SysctlOp},
    routing::{Family, OtherSelectors, Route, RouteKind, Rule},
    sysctl::UnderlaySysctl,
};
use wireloom_types::{LinkAddress, PeerLookup, SourceCheck};

use crate::world::{ip, key, net};

/// One operation of each kind.
#[rustfmt::skip]
const EXPECTED: &[&str] = &[
    r#"{"op":"create_link","mtu":1420,"peer_lookup":"gateway","source_check":"firewall"}"#,
    r#"{"op":"start_device","source_check":"allowed-ips"}"#,
    r#"{"op":"remove_link"}"#,
    r#"{"op":"set_mtu","mtu":1420}"#,
    r#"{"op":"set_link_address","link_address":"02:00:00:00:00:01"}"#,
    r#"{"op":"set_up"}"#,
    concat!(
        r#"{"op":"configure_device","public_key":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=","#,
        r#""listen_port":51820,"fwmark":10,"source_check":"off"}"#,
    ),
    concat!(
        r#"{"op":"set_peer","public_key":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=","#,
        r#""endpoint":"192.0.2.2:51820","allowed_ips":["10.161.2.0/24"],"persistent_keepalive":25}"#,
    ),
    r#"{"op":"remove_peer","public_key":"AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="}"#,
    r#"{"op":"add_address","address":"100.64.0.1/32"}"#,
    r#"{"op":"remove_address","address":"100.64.0.1/32"}"#,
    r#"{"op":"set_neighbour","address":"100.64.0.2","link_address":"02:00:00:00:00:01"}"#,
    r#"{"op":"remove_neighbour","address":"100.64.0.2"}"#,
    r#"{"op":"add_link_route","address":"100.64.0.2"}"#,
    r#"{"op":"remove_link_route","address":"100.64.0.2"}"#,
    concat!(
        r#"{"op":"set_route","destination":"10.161.2.0/24","kind":{"device":{"gateway":"fe80::2","#,
        r#""source":null}},"metric":0,"protocol":157}"#,
    ),
    r#"{"op":"remove_route","destination":"10.161.2.0/24","kind":"throw","metric":0,"protocol":157}"#,
    concat!(
        r#"{"op":"add_rule","family":"v4","priority":99,"invert":false,"from":"10.161.0.0/16","mark":0,"#,
        r#""mask":10,"table":1,"protocol":157,"other":{"to":null,"tos":0,"attributes":{}}}"#,
    ),
    concat!(
        r#"{"op":"remove_rule","family":"v4","priority":99,"invert":false,"from":"10.161.0.0/16","mark":0,"#,
        r#""mask":10,"table":1,"protocol":157,"other":{"to":null,"tos":0,"attributes":{}}}"#,
    ),
    concat!(
        r#"{"op":"set_firewall","firewall":{"mark_incoming":{"port":51820,"mark":10},"judge_sources":true,"#,
        r#""guard":null,"altered":false},"anew":true}"#,
    ),
    r#"{"op":"judge_peer","peer":"02:00:00:00:00:01"}"#,
    r#"{"op":"forget_peer","peer":"02:00:00:00:00:01"}"#,
    r#"{"op":"admit_source","peer":"02:00:00:00:00:01","addresses":"10.161.1.0/24"}"#,
    r#"{"op":"refuse_source","peer":"02:00:00:00:00:01","addresses":"10.161.1.0/24"}"#,
    r#"{"op":"replace_sources","sources":[{"peer":"02:00:00:00:00:01","addresses":"10.161.1.0/24"}]}"#,
    r#"{"op":"guard","set":"refused_out","addresses":"10.161.2.0/24"}"#,
    r#"{"op":"unguard","set":"own","addresses":"10.161.1.0/24"}"#,
    r#"{"op":"remove_firewall"}"#,
    r#"{"op":"set_underlay_sysctl","interface":"eth0","sysctl":"rp_filter","value":2}"#,
    r#"{"op":"restore_underlay_sysctl","interface":"eth0","sysctl":"send_redirects"}"#,
    r#"{"op":"set_own_rp_filter","value":2}"#,
];

#[test]
fn every_operation_is_one_flat_object_named_by_op() {
    let peer = LinkAddress::from_bytes([2, 0, 0, 0, 0, 1]);
    let source = Source { peer, addresses: net("10.161.1.0/24").into() };
    let route = Route::ours(
        net("10.161.2.0/24"),
        RouteKind::Device { gateway: Some(ip("fe80::2")), source: None, mtu: None },
    );
    let rule = Rule {
        family: Family::V4,
        priority: 99,
        invert: false,
        from: Some(net("10.161.0.0/16")),
        mark: 0,
        mask: 0xa,
        table: 1,
        protocol: 157,
        other: OtherSelectors::default(),
    };
    let firewall = Firewall {
        mark_incoming: Some(IncomingMark { port: 51820, mark: 0xa }),
        judge_sources: true,
        guard: None,
        segment_v6: None,
        altered: false,
    };
    let ops: [Op; 31] = [
        InterfaceOp::Create {
            mtu: 1420,
            peer_lookup: PeerLookup::Gateway,
            source_check: SourceCheck::Firewall,
        }
        .into(),
        InterfaceOp::StartDevice { source_check: SourceCheck::AllowedIps }.into(),
        InterfaceOp::Remove.into(),
        RtnetlinkOp::SetMtu { mtu: 1420 }.into(),
        RtnetlinkOp::SetLinkAddress { link_address: peer }.into(),
        RtnetlinkOp::SetUp.into(),
        DeviceOp::Configure {
            public_key: key(1),
            listen_port: 51820,
            fwmark: 0xa,
            source_check: SourceCheck::Off,
        }
        .into(),
        DeviceOp::SetPeer(SetPeer {
            public_key: key(2),
            endpoint: Some("192.0.2.2:51820".parse().unwrap()),
            allowed_ips: [net("10.161.2.0/24")].into(),
            persistent_keepalive: 25,
            preshared_key: None,
        })
        .into(),
        DeviceOp::RemovePeer { public_key: key(2) }.into(),
        RtnetlinkOp::AddAddress { address: net("100.64.0.1/32") }.into(),
        RtnetlinkOp::RemoveAddress { address: net("100.64.0.1/32") }.into(),
        RtnetlinkOp::SetNeighbour { address: ip("100.64.0.2"), link_address: peer }.into(),
        RtnetlinkOp::RemoveNeighbour { address: ip("100.64.0.2") }.into(),
        RtnetlinkOp::AddLinkRoute { address: ip("100.64.0.2") }.into(),
        RtnetlinkOp::RemoveLinkRoute { address: ip("100.64.0.2") }.into(),
        RtnetlinkOp::SetRoute(route).into(),
        RtnetlinkOp::RemoveRoute(Route::ours(net("10.161.2.0/24"), RouteKind::Throw)).into(),
        RtnetlinkOp::AddRule(rule.clone()).into(),
        RtnetlinkOp::RemoveRule(rule).into(),
        FirewallOp::Set { firewall, anew: true }.into(),
        FirewallOp::JudgePeer { peer }.into(),
        FirewallOp::ForgetPeer { peer }.into(),
        FirewallOp::AdmitSource(source).into(),
        FirewallOp::RefuseSource(source).into(),
        FirewallOp::ReplaceSources { sources: [source].into() }.into(),
        FirewallOp::Guard(Guarded { set: GuardSet::RefusedOut, addresses: net("10.161.2.0/24").into() })
            .into(),
        FirewallOp::Unguard(Guarded { set: GuardSet::Own, addresses: net("10.161.1.0/24").into() }).into(),
        FirewallOp::Remove.into(),
        SysctlOp::Set { interface: "eth0".into(), sysctl: UnderlaySysctl::RpFilter, value: 2 }.into(),
        SysctlOp::Restore { interface: "eth0".into(), sysctl: UnderlaySysctl::SendRedirects }.into(),
        SysctlOp::SetOwnRpFilter { value: 2 }.into(),
    ];
    let written = ops.map(|op| serde_json::to_string(&op).unwrap());
    assert_eq!(written.as_slice(), EXPECTED);
}
