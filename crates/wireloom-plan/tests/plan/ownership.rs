//! Whose table it is: what is refused at the start, and what is a warning later.

use wireloom_plan::{
    op::{Op, RtnetlinkOp},
    owner::Owner,
    planner::Planner,
    refusal::Refusal,
    routing::{OtherRoute, OtherSelectors, Route, RouteKind, Rule},
    warning::Warning,
};

use crate::world::{Machine, ip, key, net, rule, three_nodes};

fn machine() -> Machine {
    let mut machine = Machine::new("a", key(1), &three_nodes());
    machine.kernel.free_table = Some(15_700);
    machine
}

fn refusal(machine: &Machine) -> Option<Refusal> {
    let mut planner = Planner::new(machine.settings.clone(), machine.public_key, three_nodes());
    let refusal = planner.plan(&machine.kernel).err();
    assert_eq!(refusal, planner.changes(&machine.kernel).err(), "changes of the mesh are refused alike");
    refusal
}

fn foreign_rule() -> Rule {
    Rule { priority: 1000, ..rule("from 203.0.113.2/32 lookup 1 proto 0") }
}

fn foreign_route() -> Route {
    let interface = Some("eth0".to_owned());
    let kind = RouteKind::Other(OtherRoute { kind: "", gateway: Some(ip("203.0.113.1")), interface });
    Route { destination: net("0.0.0.0/0"), kind, metric: 0, protocol: 3 }
}

#[test]
fn a_table_that_somebody_else_uses_is_refused_with_names_and_a_free_one() {
    let mut machine = machine();
    machine.kernel.rules.push(foreign_rule());
    machine.kernel.routes.insert(foreign_route());
    assert_eq!(
        refusal(&machine).unwrap().to_string(),
        "table 1 belongs to another program: the IPv4 rule `1000: from 203.0.113.2 lookup 1`, the route `default via \
         203.0.113.1 dev eth0` in table 1; no rule and no route is programmed, and theirs stay; set [routing] table = \
         15700 in agent.toml, which no rule and no route uses"
    );
    // Each alone is enough.
    machine.kernel.routes.clear();
    assert!(refusal(&machine).is_some());
    machine.kernel.rules.clear();
    machine.kernel.routes.insert(foreign_route());
    assert!(refusal(&machine).is_some());
}

#[test]
fn long_lists_are_cut() {
    let mut machine = machine();
    for number in 0..20 {
        let destination = net(&format!("10.{number}.0.0/16"));
        machine.kernel.routes.insert(Route { destination, ..foreign_route() });
    }
    let text = refusal(&machine).unwrap().to_string();
    assert!(text.matches("the route").count() == 8 && text.contains("and 12 more"), "{text}");
}

#[test]
fn the_unscoped_rule_and_what_is_ours_are_not_refused() {
    for found in [
        "not from all fwmark 0xa/0xa lookup 1 proto 0",
        "not from all fwmark 0xa/0xa lookup 1 priority 5",
        "from 10.0.0.0/8 lookup 1 proto 157",
    ] {
        let mut machine = machine();
        machine.kernel.rules = vec![rule(found)];
        assert_eq!(refusal(&machine), None, "{found}");
    }
    // Another mark, or one selector more, is another program's rule.
    let iif = OtherSelectors { attributes: [(3, b"eth0\0".to_vec())].into(), ..OtherSelectors::default() };
    for found in [
        rule("not from all fwmark 0xb/0xb lookup 1"),
        rule("not from all fwmark 0xa/0xf lookup 1"),
        rule("not from 10.0.0.0/8 fwmark 0xa/0xa lookup 1"),
        rule("from all fwmark 0xa/0xa lookup 1"),
        Rule { other: iif, ..rule("not from all fwmark 0xa/0xa lookup 1") },
    ] {
        let mut machine = machine();
        machine.kernel.rules = vec![found.clone()];
        assert!(refusal(&machine).is_some(), "{found}");
    }
}

#[test]
fn once_ours_is_there_others_are_a_warning_and_stay() {
    let cluster = three_nodes();
    let mut machine = machine();
    machine.reconcile(&cluster);
    machine.kernel.rules.push(foreign_rule());
    machine.kernel.routes.insert(foreign_route());
    let plan = machine.plan(&cluster);
    assert_eq!(plan.ops, vec![]);
    let expected = [
        Warning::ForeignRule { rule: foreign_rule() },
        Warning::ForeignRoute { route: foreign_route(), blocks_ours: false },
    ];
    assert_eq!(plan.warnings, expected.into());
    for op in wireloom_plan::diff::teardown(&machine.kernel) {
        machine.kernel.apply(&op).unwrap();
    }
    assert_eq!(machine.kernel.rules, [foreign_rule()]);
    assert!(machine.kernel.routes.iter().eq([&foreign_route()]));
}

/// The table stays ours even while somebody has deleted everything in it.
#[test]
fn a_running_node_that_lost_everything_programs_it_again_beside_others() {
    let cluster = three_nodes();
    let mut machine = machine();
    let mut planner = Planner::new(machine.settings.clone(), machine.public_key, cluster);
    machine.kernel.apply_all(&planner.plan(&machine.kernel).unwrap().ops).unwrap();
    assert_eq!(planner.plan(&machine.kernel).unwrap().ops, vec![]);
    machine.kernel.rules = vec![foreign_rule()];
    machine.kernel.routes = [foreign_route()].into();
    machine.kernel.apply_all(&planner.plan(&machine.kernel).unwrap().ops).unwrap();
    assert_eq!(machine.kernel.rules.len(), 3);
    // Another table is judged anew.
    planner.set_settings(wireloom_plan::settings::Settings { table: 2, ..machine.settings.clone() });
    machine.kernel.rules = vec![foreign_rule()];
    machine.kernel.routes.clear();
    assert!(planner.plan(&machine.kernel).is_err());
}

/// The request that deletes the unscoped rule hits the foreign rule before it.
#[test]
fn a_foreign_rule_that_a_loose_delete_request_hits_is_never_missing() {
    let cluster = three_nodes();
    let mut machine = machine();
    machine.reconcile(&cluster);
    let foreign = rule("from 10.0.0.0/8 fwmark 0xa/0xa lookup 1 proto 4");
    let unscoped = rule("not from all fwmark 0xa/0xa lookup 1 proto 0");
    // Twice: both copies are somebody's.
    machine.kernel.rules.splice(0..0, [foreign.clone(), foreign.clone(), unscoped.clone()]);
    let ops = machine.plan(&cluster).ops;
    assert!(
        ops.iter()
            .all(|op| matches!(op, Op::Rtnetlink(RtnetlinkOp::AddRule(_) | RtnetlinkOp::RemoveRule(_))))
    );
    for op in ops {
        machine.kernel.apply(&op).unwrap();
        assert!(machine.kernel.rules.contains(&foreign), "after {op:?}");
    }
    assert_eq!(machine.kernel.rules.iter().filter(|rule| **rule == foreign).count(), 2);
    assert!(!machine.kernel.rules.contains(&unscoped));
}

#[test]
fn likely_owners_are_named() {
    let by_shape = |rule: Rule, felix: bool| {
        let mut machine = machine();
        machine.kernel.felix = felix;
        machine.kernel.rules.push(rule);
        match refusal(&machine) {
            Some(Refusal::ForeignTable { owner, .. }) => owner,
            refusal => panic!("{refusal:?}"),
        }
    };
    assert_eq!(by_shape(foreign_rule(), false), None);
    assert_eq!(by_shape(foreign_rule(), true), Some(Owner::Felix));
    assert_eq!(by_shape(Rule { protocol: 4, ..foreign_rule() }, false), Some(Owner::Protocol(4)));
    assert_eq!(by_shape(Rule { priority: 76, ..foreign_rule() }, false), Some(Owner::Gke));
    let mwan3 = rule("from all fwmark 0x100/0x3f00 lookup 1 priority 2001 proto 0");
    assert_eq!(by_shape(mwan3, false), Some(Owner::Mwan3));
    assert_eq!(Owner::Protocol(4).to_string(), "systemd-networkd or NetworkManager (protocol static)");
    assert_eq!(Owner::Protocol(18).to_string(), "the program with protocol keepalived");
}

/// With its WireGuard off, Felix shows nothing in rules or routes. Most clusters with Calico are so, and a refusal
/// would keep the default settings from working there.
#[test]
fn felix_alone_is_a_warning_for_the_tables_that_it_takes() {
    let cluster = three_nodes();
    for (table, warned) in [(1, true), (250, true), (251, false), (15_700, false)] {
        let mut machine = machine();
        machine.kernel.felix = true;
        machine.settings.table = table;
        let warnings = machine.plan(&cluster).warnings;
        let expected = Warning::TableOfFelix { table, free_table: Some(15_700) };
        assert_eq!(warnings.contains(&expected), warned, "{table}");
    }
    let text = Warning::TableOfFelix { table: 1, free_table: Some(15_700) }.to_string();
    assert!(
        text.contains("cali-")
            && text.ends_with("table = 15700 in agent.toml, which no rule and no route uses"),
        "{text}"
    );
}
