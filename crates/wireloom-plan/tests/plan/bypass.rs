//! What may pass by the guard, and what is said about it.

use std::{collections::BTreeSet, slice};

use wireloom_plan::{
    bypass::{Bypass, DataPlane, Device, FlowTable, Hook, Leads, Link, Machine, Program, find},
    routing::Family,
    settings::Settings,
    warning::{Severity, Warning},
};

use crate::world::{self, key, three_nodes};

fn link(name: &str, leads: Leads) -> Link {
    Link { name: name.to_owned(), leads, ..Link::default() }
}

fn port(name: &str, leads: Leads, bridge: &str) -> Link {
    Link { bridge: Some(bridge.to_owned()), ..link(name, leads) }
}

/// A node with our interface, a network card and two pods.
fn machine() -> Machine {
    let links = [
        link("lo", Leads::Nowhere),
        link("eth0", Leads::Out),
        link("veth2", Leads::ToPods),
        link("veth1", Leads::ToPods),
        link("wg0", Leads::Ours),
    ];
    Machine { links: links.into(), ..Machine::default() }
}

fn program(hook: Hook, name: Option<&str>) -> Program {
    Program { hook, name: name.map(str::to_owned) }
}

fn texts(machine: &Machine) -> Vec<String> {
    find(machine).iter().map(Bypass::to_string).collect()
}

fn flow_table(devices: impl IntoIterator<Item = Device>) -> Machine {
    let table = FlowTable {
        family: "inet".to_owned(),
        table: "filter".to_owned(),
        name: "fast".to_owned(),
        devices: devices.into_iter().collect(),
    };
    Machine { flow_tables: vec![table], ..machine() }
}

fn named(name: &str) -> Device {
    Device::Name(name.to_owned())
}

#[test]
fn an_ordinary_machine_has_no_bypass() {
    assert_eq!(find(&machine()), BTreeSet::new());
}

#[test]
fn a_flowtable_is_named_with_the_interface_that_matters_most() {
    for (devices, interface) in [
        (vec![named("veth1"), named("veth2"), named("eth0"), named("wg0")], Some("wg0")),
        (vec![named("veth1"), named("eth0")], Some("eth0")),
        // The older one stays when others go.
        (vec![named("veth1"), named("veth2")], Some("veth2")),
        (vec![Device::Prefix("et".to_owned())], Some("eth0")),
        (vec![Device::Prefix("ens".to_owned()), named("eth")], None),
        (vec![named("lo"), named("gone")], None),
        (vec![], None),
    ] {
        let found = find(&flow_table(devices.clone()));
        let shown = found.iter().map(|found| match found {
            Bypass::FlowTable { interface, .. } => interface.as_str(),
            other => panic!("{other:?}"),
        });
        assert!(shown.eq(interface), "{devices:?}: {found:?}");
    }
    assert_eq!(
        texts(&flow_table([named("eth0")])),
        [
            "the flowtable `fast` in the table `inet filter` has eth0 among its devices: connections that it has taken \
             over pass by the guard and by our rules; switch offloading off in the program that made it, or run \
             `nft delete flowtable inet filter fast`"
        ]
    );
}

#[test]
fn programs_are_named_everywhere_outside_and_once_for_all_pods() {
    let mut machine = machine();
    for link in &mut machine.links {
        link.programs = match link.leads {
            Leads::Out => [program(Hook::Xdp, None), program(Hook::Classifier, Some("to-netdev"))].into(),
            _ => [program(Hook::Classifier, Some("from-pod"))].into(),
        };
    }
    let on = |program: Program, interface: &str, to_pods: bool| Bypass::Program {
        program,
        interface: interface.to_owned(),
        to_pods,
    };
    let expected = [
        on(program(Hook::Xdp, None), "eth0", false),
        on(program(Hook::Classifier, Some("to-netdev")), "eth0", false),
        on(program(Hook::Classifier, Some("from-pod")), "wg0", false),
        on(program(Hook::Classifier, Some("from-pod")), "veth2", true),
    ];
    assert_eq!(find(&machine), expected.into());
    let texts = texts(&machine);
    let says = |words: &str| texts.iter().any(|text| text.contains(words));
    assert!(says("an XDP program is on eth0: if it redirects packets of workloads"), "{texts:?}");
    assert!(says("a BPF program of traffic control (`to-netdev`) is on eth0: "), "{texts:?}");
    assert!(says("is on veth2, which leads to pods, and perhaps on others like it: "), "{texts:?}");
}

#[test]
fn data_planes_are_known_by_their_interfaces() {
    for (interface, owner, fix) in [
        ("cilium_host", DataPlane::Cilium, "bpf.hostLegacyRouting=true"),
        ("bpfin.cali", DataPlane::Calico, "bpfEnabled: false"),
    ] {
        let mut machine = machine();
        machine.links.push(link(interface, Leads::ToPods));
        let expected = Bypass::DataPlane { owner, interface: interface.to_owned() };
        assert!(expected.to_string().contains(fix), "{expected}");
        assert_eq!(find(&machine), [expected].into());
    }
}

#[test]
fn ipvs_is_named_with_one_of_its_services() {
    let services = ["UDP 10.96.0.10:53".to_owned(), "TCP 10.96.0.1:443".to_owned()];
    let machine = Machine { virtual_services: services.into(), ..machine() };
    let texts = texts(&machine);
    assert_eq!(texts.len(), 1);
    assert!(texts[0].contains("(/proc/net/ip_vs has TCP 10.96.0.1:443)"), "{texts:?}");
}

#[test]
fn a_bridge_matters_with_pods_and_a_way_out_and_without_br_netfilter() {
    let bridged = |ports: &[Link]| {
        let mut machine = machine();
        machine.links.push(link("br0", Leads::Out));
        machine.links.extend_from_slice(ports);
        machine
    };
    let pod = port("veth3", Leads::ToPods, "br0");
    let vxlan = port("vxlan0", Leads::Out, "br0");
    assert_eq!(find(&bridged(&[])), [].into());
    assert_eq!(find(&bridged(slice::from_ref(&pod))), [].into());
    assert_eq!(find(&bridged(slice::from_ref(&vxlan))), [].into());
    assert_eq!(find(&bridged(&[pod.clone(), port("vxlan0", Leads::Out, "br1")])), [].into());

    let mut machine = bridged(&[pod, vxlan]);
    let unseen = |families: &[Family]| Bypass::Bridge {
        bridge: "br0".to_owned(),
        port: "vxlan0".to_owned(),
        families: families.iter().copied().collect(),
    };
    assert_eq!(find(&machine), [unseen(&Family::ALL)].into());
    assert_eq!(
        texts(&machine),
        [
            "the bridge br0 connects pods with vxlan0, which leads to other machines, and the guard does not see the \
             IPv4 and IPv6 packets that it passes on; load br_netfilter and set net.bridge.bridge-nf-call-iptables=1 \
             and net.bridge.bridge-nf-call-ip6tables=1, or take vxlan0 out of the bridge and route"
        ]
    );
    machine.filtered.insert(Family::V4);
    assert_eq!(find(&machine), [unseen(&[Family::V6])].into());
    // The bridge's own setting is enough.
    let bridge = machine.links.iter_mut().find(|link| link.name == "br0").unwrap();
    bridge.filtered.insert(Family::V6);
    assert_eq!(find(&machine), [].into());
}

#[test]
fn a_bypass_is_a_warning_where_there_is_a_guard_to_pass_by() {
    let service = Bypass::VirtualServices { service: "TCP 10.96.0.1:443".to_owned() };
    let xdp =
        Bypass::Program { program: program(Hook::Xdp, None), interface: "eth0".to_owned(), to_pods: false };
    let defaults = Settings::defaults("a");
    for (settings, expected) in [
        (defaults.clone(), vec![&service, &xdp]),
        // The rules of host mode do not ask for the source.
        (Settings { encrypt_host_traffic: true, ..defaults.clone() }, vec![&xdp]),
        (Settings { guard: false, ..defaults }, vec![]),
    ] {
        let mut machine = world::Machine::new("a", key(1), &three_nodes());
        machine.settings = settings;
        machine.kernel.bypasses = [service.clone(), xdp.clone()].into();
        let warnings = machine.plan(&three_nodes()).warnings;
        let expected = expected.into_iter().map(|bypass| Warning::Bypass { bypass: bypass.clone() });
        assert_eq!(warnings, expected.collect());
        assert!(warnings.iter().all(|warning| warning.severity() == Severity::Warning));
        assert!(warnings.iter().all(Warning::is_about_others));
    }
    let json = serde_json::to_value(Warning::Bypass { bypass: service }).unwrap();
    assert_eq!(json["warning"], "bypass");
    assert_eq!(json["bypass"]["way"], "virtual_services");
}
