//! Findings about the rest of the machine.

use wireloom_plan::{
    cluster::Cluster,
    health::{Action, DroppingChain, EndpointRoute, Finding, Hook, MarkUser, PeerFacts, PolicyRule},
    proofs::Because,
    routing::{Family, OtherSelectors, Rule},
    settings::HostTransition,
    warning::Severity,
};

use super::{MAIN, NOW, Scene, looks_up};
use crate::world::{ip, key, net};

fn foreign(priority: u32, from: Option<&str>, table: u32) -> Rule {
    Rule {
        family: Family::V4,
        priority,
        invert: false,
        from: from.map(net),
        mark: 0,
        mask: 0,
        table,
        protocol: 0,
        other: OtherSelectors::default(),
    }
}

/// With a foreign rule before ours.
fn behind(rule: PolicyRule) -> Scene {
    let mut scene = Scene::new();
    scene.rest.rules.insert(0, rule);
    scene
}

fn to(to: &str) -> OtherSelectors {
    OtherSelectors { to: Some(net(to)), ..OtherSelectors::default() }
}

fn with(kind: u16, value: &[u8]) -> OtherSelectors {
    OtherSelectors { attributes: [(kind, value.to_vec())].into(), ..OtherSelectors::default() }
}

#[test]
fn a_foreign_rule_before_ours_is_printed_as_iproute2_does() {
    for (from, shown) in [
        (Some("10.161.1.0/24"), "10.161.1.0/24"),
        (Some("10.161.1.7/32"), "10.161.1.7"),
        (Some("10.0.0.0/8"), "10.0.0.0/8"),
        (None, "all"),
    ] {
        let scene = behind(looks_up(foreign(50, from, MAIN)));
        let found = scene.finding();
        let text = found.to_string();
        assert!(text.contains(&format!("`50: from {shown} lookup main`")), "{text}");
        assert!(text.contains("where the guard refuses them"), "{text}");
        assert_eq!(found.severity(), Severity::Error);
        assert_eq!(
            scene.verdict(),
            "NOT encrypted: nothing passes to b, c (a foreign rule comes before ours)"
        );
    }
    let mut unguarded = Scene::with(|_| {}, |machine| machine.settings.guard = false);
    unguarded.rest.rules.insert(0, looks_up(foreign(50, None, MAIN)));
    assert_eq!(unguarded.verdict(), "NOT encrypted: plaintext with b, c (a foreign rule comes before ours)");
    // Without rules of ours, those before where ours belong count.
    let mut scene = Scene::new();
    scene.rest.rules = vec![PolicyRule { action: Action::Blackhole, ..looks_up(foreign(98, None, 0)) }];
    assert!(scene.finding().to_string().contains("`98: from all blackhole`"));
}

#[test]
fn a_foreign_rule_that_leads_workloads_nowhere_is_harmless() {
    for rule in [
        looks_up(foreign(0, None, 255)),
        looks_up(foreign(50, Some("10.161.2.0/24"), MAIN)),
        looks_up(foreign(50, None, 100)),
        PolicyRule { action: Action::Nop, ..looks_up(foreign(50, None, MAIN)) },
        PolicyRule { action: Action::Goto(90), ..looks_up(foreign(50, None, MAIN)) },
        looks_up(Rule { other: to("192.0.2.0/24"), ..foreign(50, None, MAIN) }),
        looks_up(Rule { other: with(3, b"lo\0"), ..foreign(50, None, MAIN) }),
        looks_up(Rule { other: with(17, b"eth0\0"), ..foreign(50, None, MAIN) }),
        looks_up(Rule { other: with(14, &24_u32.to_ne_bytes()), ..foreign(50, None, MAIN) }),
    ] {
        let shown = rule.to_string();
        assert_eq!(behind(rule).findings(), [], "{shown}");
    }
}

#[test]
fn a_foreign_rule_matters_for_what_it_takes() {
    let scene = behind(looks_up(Rule { other: to("10.161.2.0/24"), ..foreign(50, None, MAIN) }));
    assert_eq!(scene.verdict(), "partly: nothing passes to b (a foreign rule comes before ours)");
    for rule in [
        Rule { mark: 0x40, mask: 0x40, ..foreign(50, None, MAIN) },
        Rule { other: with(3, b"veth0\0"), ..foreign(50, None, MAIN) },
    ] {
        let scene = behind(looks_up(rule));
        assert_eq!(scene.finding().severity(), Severity::Warning);
        assert_eq!(scene.verdict(), "encrypted", "it takes some packets only");
    }
    let suppressing = Rule { other: with(14, &0_u32.to_ne_bytes()), ..foreign(50, None, MAIN) };
    assert_eq!(behind(looks_up(suppressing)).finding().severity(), Severity::Error);
}

#[test]
fn what_this_machine_does_not_forward_is_named_with_the_sysctl() {
    let mut scene = Scene::new();
    scene.rest.forwarding.v6 = false;
    assert_eq!(scene.finding(), Finding::ForwardingOff { family: Family::V6 });
    assert!(scene.finding().to_string().contains("sysctl -w net.ipv6.conf.all.forwarding=1"));
    let v4_only = |mesh: &mut Cluster| {
        mesh.nodes.values_mut().for_each(|node| node.workloads.retain(|workload| workload.addr().is_ipv4()));
    };
    let mut scene = Scene::with(v4_only, |_| {});
    scene.rest.forwarding.v6 = false;
    assert_eq!(scene.findings(), []);
}

#[test]
fn chains_that_drop_are_named_unless_sessions_show_that_they_accept() {
    let chain = |hook| DroppingChain { family: "ip".into(), table: "filter".into(), chain: "X".into(), hook };
    let mut scene = Scene::new();
    scene.rest.droppers = [chain(Hook::Forward), chain(Hook::Input)].into();
    let text = scene.finding().to_string();
    assert!(text.starts_with("the nftables chain `X` of table `ip filter` (hook forward)"), "{text}");
    scene.peers.values_mut().for_each(|peer| *peer = PeerFacts::default());
    assert_eq!(scene.findings().len(), 2);
}

#[test]
fn the_way_to_an_endpoint_is_judged() {
    let by = |interface: &str, mtu| Some(EndpointRoute { interface: interface.into(), mtu });
    let scene = |route, mtu| {
        let mut scene = Scene::with(|_| {}, move |machine| machine.settings.mtu = mtu);
        scene.rest.endpoint_routes.insert(ip("192.168.1.2"), route);
        scene
    };
    assert_eq!(scene(by("eth0", 1500), None).findings(), []);
    let text = scene(by("wg0", 1420), None).finding().to_string();
    assert!(text.starts_with("the way to b's endpoint 192.168.1.2:51820 leads into wg0 itself"), "{text}");
    assert!(matches!(scene(None, None).finding(), Finding::NoRouteToEndpoint { .. }));
    let found = scene(by("eth1", 1400), Some(1420)).finding();
    assert_eq!(found, Finding::MtuTooLarge { mtu: 1420, interface: "eth1".into(), carries: 1340 });
    assert_eq!(scene(by("eth1", 1480), Some(1420)).findings(), []);
    assert_eq!(scene(by("eth1", 1400), None).findings(), [], "it follows the ways to peers by itself");
}

#[test]
fn drops_that_rise_are_explained() {
    for (reason, packets, text) in [
        ("source-not-allowed", 1, "host mode (encrypt_host_traffic) is on at one end only"),
        ("unknown-peer", 3, "a key that no node of this mesh has"),
        ("bad-mac1", 3, "somebody believes that it has another key"),
        ("stale-timestamp", 3, "the clock of a node that does not answer was set back"),
    ] {
        let mut scene = Scene::new();
        scene.drop_packets(reason, packets);
        let found = scene.finding();
        assert!(found.to_string().contains(text), "{found}");
        assert_eq!(found.severity(), Severity::Warning);
    }
    let mut scene = Scene::new();
    scene.drop_packets("bad-mac1", 2);
    assert_eq!(scene.findings(), [], "a scanner of the internet");
}

#[test]
fn a_clock_that_was_set_back_is_seen_by_handshakes_in_the_future() {
    let mut scene = Scene::new();
    let later = NOW + std::time::Duration::from_secs(3590);
    scene.peers.get_mut(&key(2)).unwrap().last_handshake = Some(later);
    assert_eq!(scene.finding(), Finding::ClockSetBack { seconds: 3590 });
    assert_eq!(scene.peer("b").last_handshake_age, Some(0));
}

#[test]
fn missing_routes_of_workloads_are_named() {
    let routes = |scene: &mut Scene, routes: &[&str]| {
        scene.rest.tables = [(MAIN, routes.iter().copied().map(net).collect())].into();
    };
    let own = ["10.161.1.0/24", "fd61:0:0:1::/64"];
    let mut scene = Scene::new();
    routes(&mut scene, &own);
    let found = scene.finding();
    assert!(found.to_string().contains("and 3 more workload CIDRs"), "{found}");
    assert_eq!(found.severity(), Severity::Info);
    scene.unprove("b", Because::NoAnswer);
    assert_eq!(scene.health().worst(), Some(Severity::Warning), "what is direct has no way");
    assert!(scene.finding().to_string().contains("of b and 3 more"), "the worst is named");
    routes(&mut scene, &[own[0], own[1], "0.0.0.0/0", "::/0"]);
    assert_eq!(scene.findings(), []);

    let mut scene = Scene::new();
    routes(&mut scene, &["10.161.1.5/32", "10.161.2.0/23", "0.0.0.0/0", "::/0"]);
    assert_eq!(scene.finding(), Finding::LocalWorkloadWithoutRoute { workload: net(own[1]) });
}

#[test]
fn marks_and_programs_that_disturb_are_named() {
    let mut scene = Scene::new();
    scene.rest.mark_users = [MarkUser::KubeProxy, MarkUser::Calico, MarkUser::Cilium].into();
    assert_eq!(scene.finding(), Finding::MarkCollision { mark: 0xa, user: MarkUser::Cilium });
    let mut scene = Scene::with(|_| {}, |machine| machine.settings.fwmark = 0x1_4000);
    scene.rest.mark_users = [MarkUser::KubeProxy, MarkUser::Calico].into();
    assert_eq!(scene.findings().len(), 2);
    let mut scene = Scene::new();
    scene.rest.networkd = true;
    assert_eq!(scene.finding().severity(), Severity::Info);
    assert!(scene.finding().to_string().contains("ManageForeignRoutingPolicyRules=no"));
}

#[test]
fn findings_come_worst_first_and_have_subjects_without_numbers() {
    let mut scene = Scene::new();
    scene.rest.networkd = true;
    scene.rest.forwarding.v4 = false;
    scene.send_in_vain(3, 20);
    let severities: Vec<_> = scene.findings().iter().map(Finding::severity).collect();
    assert_eq!(severities, [Severity::Error, Severity::Warning, Severity::Info]);
    let subject =
        |seconds, node: &str| Finding::Silent { node: node.into(), endpoint: None, seconds }.subject();
    assert_eq!(subject(20, "c"), subject(90, "c"));
    assert_ne!(subject(20, "c"), subject(20, "b"));
}

#[test]
fn a_step_on_the_way_to_host_mode_is_a_note() {
    for (step, words) in [
        (HostTransition::Accept, "sends the hosts' own traffic in plaintext"),
        (HostTransition::Prefer, "still takes it in plaintext"),
    ] {
        let scene = Scene::with(
            |_| {},
            |machine| {
                machine.settings.encrypt_host_traffic = true;
                machine.settings.host_transition = Some(step);
            },
        );
        let text = scene.finding().to_string();
        assert!(text.contains(words) && text.contains("a step on the way to host mode"), "{text}");
        assert_eq!((scene.finding().severity(), scene.verdict().as_str()), (Severity::Info, "encrypted"));
    }
}
