//! Changes of the machine itself, and how all of them are undone.

use wireloom_plan::{
    desired::HEADROOM,
    diff::teardown,
    firewall::IncomingMark,
    observed::{Device, Interface, Observed, Underlay},
    op::{DeviceOp, FirewallOp, InterfaceOp, Op, RtnetlinkOp, SysctlOp},
    planner::Planner,
    refusal::Refusal,
    settings::Settings,
    sysctl::UnderlaySysctl,
};
use wireloom_types::{PeerLookup, SourceCheck, interface::AGENT_ALIAS};

use crate::world::{Machine, ip, key, net, place, three_nodes};

fn machine() -> Machine {
    Machine::new("a", key(1), &three_nodes())
}

fn host_mode() -> Machine {
    let mut machine = machine();
    machine.settings.encrypt_host_traffic = true;
    machine
}

#[test]
fn host_mode_lets_wireguard_through_strict_source_validation() {
    let mut machine = host_mode();
    let ops = machine.reconcile(&three_nodes()).ops;
    let mark = IncomingMark { port: 51820, mark: 0xa };
    let firewall = machine.kernel.firewall.as_ref().unwrap();
    assert_eq!(firewall.mark_incoming.as_ref(), Some(&mark));
    assert_eq!(firewall.guard.as_ref().unwrap().datagrams, Some(mark));
    let eth0 = &machine.kernel.underlays["eth0"];
    assert_eq!((eth0.rp_filter, eth0.src_valid_mark), (2, true));

    let last_prepared = ops.iter().rposition(|op| {
        matches!(op, Op::Sysctl(SysctlOp::Set { .. }) | Op::Firewall(FirewallOp::Set { .. }))
    });
    assert!(
        last_prepared.unwrap() < place(&ops, |op| matches!(op, Op::Interface(InterfaceOp::Create { .. })))
    );
}

#[test]
fn scoped_mode_makes_strict_source_validation_loose_and_no_other() {
    // The interface's own value, `net.ipv4.conf.all.rp_filter`, and what becomes of the former.
    for (own, all, wanted) in [(0, 0, 0), (1, 0, 2), (2, 0, 2), (0, 1, 2), (0, 2, 0), (1, 2, 1)] {
        let mut machine = machine();
        machine.kernel.underlays.get_mut("eth0").unwrap().rp_filter = own;
        machine.kernel.outward = [("eth0".to_owned(), own), ("vxlan0".to_owned(), own)].into();
        machine.kernel.rp_filter_all = all;
        machine.reconcile(&three_nodes());
        let eth0 = &machine.kernel.underlays["eth0"];
        assert_eq!((eth0.rp_filter, eth0.src_valid_mark), (wanted, false), "{own} with {all} for all");
        assert_eq!(machine.kernel.outward["vxlan0"], wanted, "{own} with {all} for all");
        let firewall = machine.kernel.firewall.as_ref().unwrap();
        assert!(firewall.mark_incoming.is_none() && firewall.guard.as_ref().unwrap().datagrams.is_none());
    }
}

#[test]
fn our_own_interface_validates_no_sources_where_that_would_do_harm() {
    // Whether it has an address, the source check, `net.ipv4.conf.all.rp_filter`, and what follows.
    let cases = [
        (false, SourceCheck::AllowedIps, 0, 0),
        (true, SourceCheck::AllowedIps, 0, 2),
        (true, SourceCheck::Off, 0, 0),
        (true, SourceCheck::Off, 1, 2),
        (false, SourceCheck::AllowedIps, 1, 2),
        (false, SourceCheck::AllowedIps, 2, 0),
    ];
    let mut machine = machine();
    for (has_address, check, all, wanted) in cases {
        machine.kernel.here = if has_address { [net("10.161.1.1/24")].into() } else { [].into() };
        machine.kernel.rp_filter_all = all;
        machine.settings.source_check = check;
        machine.reconcile(&three_nodes());
        let own = machine.kernel.interface.as_ref().unwrap().rp_filter;
        assert_eq!(own, wanted, "address: {has_address}, {check:?}, {all} for all");
    }
}

#[test]
fn leaving_host_mode_restores_the_sysctls_after_removing_the_rules() {
    let mut machine = host_mode();
    machine.reconcile(&three_nodes());
    machine.settings.encrypt_host_traffic = false;
    let ops = machine.reconcile(&three_nodes()).ops;
    let eth0 = &machine.kernel.underlays["eth0"];
    assert_eq!((eth0.rp_filter, eth0.src_valid_mark), (2, false));
    assert_eq!(machine.kernel.firewall.as_ref().unwrap().mark_incoming, None);
    assert_eq!(machine.kernel.saved_sysctls["eth0"], [(UnderlaySysctl::RpFilter, 1)].into());
    let last_rule =
        ops.iter().rposition(|op| matches!(op, Op::Rtnetlink(RtnetlinkOp::RemoveRule(_)))).unwrap();
    let first_restored =
        ops.iter().position(|op| matches!(op, Op::Sysctl(SysctlOp::Restore { .. }))).unwrap();
    assert!(last_rule < first_restored);
}

#[test]
fn only_underlays_with_an_own_ipv4_address_are_touched() {
    let mut machine = host_mode();
    let eth1 = Underlay { mtu: 9000, addresses: [ip("fd00::1")].into(), rp_filter: 1, src_valid_mark: false };
    machine.kernel.underlays.insert("eth1".to_owned(), eth1.clone());
    machine.reconcile(&three_nodes());
    assert_eq!(machine.kernel.underlays["eth1"], eth1);
}

#[test]
fn sysctls_of_a_former_underlay_are_restored() {
    let mut machine = host_mode();
    machine.reconcile(&three_nodes());
    let eth0 = machine.kernel.underlays.remove("eth0").unwrap();
    let eth1 = Underlay { rp_filter: 0, src_valid_mark: false, ..eth0 };
    machine.kernel.underlays.insert("eth1".to_owned(), eth1);
    let ops = machine.reconcile(&three_nodes()).ops;
    let restored = |sysctl| Op::Sysctl(SysctlOp::Restore { interface: "eth0".to_owned(), sysctl });
    assert!(ops.contains(&restored(UnderlaySysctl::RpFilter)));
    assert!(ops.contains(&restored(UnderlaySysctl::SrcValidMark)));
    assert!(machine.kernel.saved_sysctls.keys().eq(["eth1"]));
}

#[test]
fn the_mtu_is_the_underlays_less_the_headroom_unless_configured() {
    let mut machine = machine();
    machine.reconcile(&three_nodes());
    assert_eq!(machine.kernel.interface.as_ref().unwrap().mtu, 1420);

    machine.kernel.underlays.get_mut("eth0").unwrap().mtu = 9000;
    let ops = machine.reconcile(&three_nodes()).ops;
    assert_eq!(ops, [Op::Rtnetlink(RtnetlinkOp::SetMtu { mtu: 9000 - HEADROOM })]);

    machine.settings.mtu = Some(1280);
    machine.reconcile(&three_nodes());
    assert_eq!(machine.kernel.interface.as_ref().unwrap().mtu, 1280);
}

#[test]
fn down_leaves_the_machine_as_it_was() {
    for encrypt_host_traffic in [false, true] {
        let mut machine = machine();
        machine.settings.encrypt_host_traffic = encrypt_host_traffic;
        let before = machine.kernel.clone();
        machine.reconcile(&three_nodes());
        machine.kernel.apply_all(&teardown(&machine.kernel)).unwrap();
        assert_eq!(machine.kernel, before);
        assert_eq!(teardown(&machine.kernel), vec![]);
    }
}

#[test]
fn a_foreign_interface_with_our_name_is_a_refusal_and_stays() {
    let mut machine = machine();
    machine.kernel.interface = Some(Interface {
        alias: None,
        mtu: 1420,
        up: true,
        peer_lookup: PeerLookup::Destination,
        link_address: None,
        left: false,
        rp_filter: 0,
    });
    let mut planner = Planner::new(Settings::defaults("a"), key(1), three_nodes());
    let refusal = planner.plan(&machine.kernel).unwrap_err();
    assert_eq!(refusal, Refusal::ForeignInterface { interface: "wg0".to_owned() });
    assert!(!refusal.to_string().contains("delete"), "it is not ours");
    assert_eq!(planner.changes(&machine.kernel), Err(refusal));
    assert!(!teardown(&machine.kernel).contains(&Op::Interface(InterfaceOp::Remove)));
}

#[test]
fn an_interface_that_outlived_its_device_gets_a_new_one_and_keeps_its_routes() {
    let mut machine = machine();
    machine.reconcile(&three_nodes());
    let good = machine.kernel.clone();
    machine.kernel.device = None;
    machine.kernel.interface.as_mut().unwrap().left = true;
    let ops = machine.reconcile(&three_nodes()).ops;
    assert!(
        matches!(
            ops.as_slice(),
            [
                Op::Interface(InterfaceOp::StartDevice { .. }),
                Op::Device(DeviceOp::Configure { .. }),
                Op::Device(DeviceOp::SetPeer(_)),
                Op::Device(DeviceOp::SetPeer(_)),
            ]
        ),
        "{ops:?}"
    );
    assert_eq!(machine.kernel, good);
}

#[test]
fn an_interface_that_outlived_its_device_is_recreated_when_another_kind_is_wanted() {
    let mut machine = machine();
    machine.reconcile(&three_nodes());
    machine.kernel.device = None;
    machine.kernel.interface.as_mut().unwrap().left = true;
    machine.settings.peer_lookup = PeerLookup::Gateway;
    machine.settings.source_check = SourceCheck::Off;
    let ops = machine.reconcile(&three_nodes()).ops;
    assert!(ops.contains(&Op::Interface(InterfaceOp::Remove)), "{ops:?}");
    assert!(!ops.iter().any(|op| matches!(op, Op::Interface(InterfaceOp::StartDevice { .. }))), "{ops:?}");
}

#[test]
fn an_interface_whose_device_is_gone_but_cannot_be_replaced_is_recreated() {
    let mut machine = machine();
    machine.reconcile(&three_nodes());
    let good = machine.kernel.clone();
    machine.kernel.device = None;
    let ops = machine.reconcile(&three_nodes()).ops;
    let refused = ops.iter().take_while(|op| matches!(op, Op::Rtnetlink(RtnetlinkOp::SetRoute(_)))).count();
    assert_eq!(refused, 4, "its destinations are unreachable meanwhile");
    assert!(matches!(
        ops[refused..],
        [
            Op::Interface(InterfaceOp::Remove),
            Op::Interface(InterfaceOp::Create { .. }),
            Op::Device(DeviceOp::Configure { .. }),
            ..
        ]
    ));
    assert_eq!(machine.kernel, good);
    // The rules stay, so that nothing leaves in plaintext.
    assert!(
        !ops.iter()
            .any(|op| matches!(op, Op::Rtnetlink(RtnetlinkOp::AddRule(_) | RtnetlinkOp::RemoveRule(_))))
    );
}

#[test]
fn a_device_that_died_is_recreated_with_everything() {
    let mut machine = machine();
    machine.reconcile(&three_nodes());
    let good = machine.kernel.clone();
    machine.kernel.apply(&Op::Interface(InterfaceOp::Remove)).unwrap();
    machine.reconcile(&three_nodes());
    assert_eq!(machine.kernel, good);
}

#[test]
fn an_interface_that_somebody_set_down_comes_up_again_with_its_routes() {
    let mut machine = machine();
    machine.reconcile(&three_nodes());
    let good = machine.kernel.clone();
    machine.kernel.interface.as_mut().unwrap().up = false;
    machine
        .kernel
        .routes
        .retain(|route| !matches!(route.kind, wireloom_plan::routing::RouteKind::Device { .. }));
    let ops = machine.reconcile(&three_nodes()).ops;
    assert!(
        matches!(
            ops.as_slice(),
            [Op::Rtnetlink(RtnetlinkOp::SetUp), Op::Rtnetlink(RtnetlinkOp::SetRoute(_)), ..]
        ),
        "{ops:?}"
    );
    assert_eq!(machine.kernel, good);
}

#[test]
fn a_device_that_somebody_else_configured_is_adopted() {
    let mut machine = machine();
    machine.kernel.interface = Some(Interface {
        alias: Some(AGENT_ALIAS.to_owned()),
        mtu: 1500,
        up: false,
        peer_lookup: PeerLookup::Destination,
        link_address: None,
        left: false,
        rp_filter: 0,
    });
    machine.kernel.device = Some(Device { listen_port: 1234, ..Device::default() });
    machine.kernel.addresses.insert("10.9.0.1/24".parse().unwrap());
    let ops = machine.reconcile(&three_nodes()).ops;
    assert!(
        !ops.iter().any(|op| matches!(op, Op::Interface(InterfaceOp::Create { .. } | InterfaceOp::Remove)))
    );
    assert!(machine.kernel.addresses.is_empty(), "addresses on our interface are ours");
}

#[test]
fn a_node_that_is_not_in_the_cluster_changes_nothing() {
    let mut machine = machine();
    machine.reconcile(&three_nodes());
    let mut cluster = three_nodes();
    let mut planner = machine.planner(&cluster);
    planner.plan(&machine.kernel).unwrap();
    planner.remove_node("a");
    let refusal = planner.plan(&machine.kernel).unwrap_err();
    assert_eq!(refusal, Refusal::NodeMissing { node: "a".to_owned() });
    assert_eq!(planner.changes(&Observed::default()), Err(refusal));

    // It returns, and another node has left meanwhile.
    cluster.nodes.remove("c");
    planner.remove_node("c");
    planner.set_node("a", cluster.nodes["a"].clone());
    let ops = planner.changes(&machine.kernel).unwrap();
    machine.kernel.apply_all(&ops).unwrap();
    assert_eq!(machine.peers(), [key(2)]);
    assert_eq!(machine.plan(&cluster).ops, vec![]);
}

#[test]
fn a_mark_of_zero_is_refused() {
    let settings = Settings { fwmark: 0, ..Settings::defaults("a") };
    let refusal = Planner::new(settings, key(1), three_nodes()).plan(&machine().kernel).unwrap_err();
    assert_eq!(refusal, Refusal::NoMark);
}

#[test]
fn operations_and_observations_are_written_as_json() {
    let mut machine = host_mode();
    let plan = machine.reconcile(&three_nodes());
    let ops = serde_json::to_value(&plan.ops).unwrap();
    assert_eq!(ops[0]["op"], "set_underlay_sysctl");
    serde_json::to_value(&plan.warnings).unwrap();
    machine.settings.peer_lookup = PeerLookup::Gateway;
    machine.settings.source_check = SourceCheck::Firewall;
    let ops = serde_json::to_value(&machine.reconcile(&three_nodes()).ops).unwrap();
    let replaced = ops.as_array().unwrap().iter().find(|op| op["op"] == "replace_sources").unwrap();
    let sources = replaced["sources"].as_array().unwrap();
    assert!(sources.iter().any(|source| source["addresses"] == "10.161.3.0/24"), "{replaced}");
    let observed = serde_json::to_value(&machine.kernel).unwrap();
    assert_eq!(observed["saved_sysctls"]["eth0"]["rp_filter"], 1);
}
