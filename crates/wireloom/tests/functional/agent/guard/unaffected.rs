//! What the guard must leave alone: what is direct by promise stays direct, also where routing is broken.

use wireloom_lab::{
    Cell, FAMILIES, PATIENCE, Place, Wire,
    probe::{Exchange, probe},
    until,
};

use super::{Mode, Watched, delete_rules, ip, kill_agent, start_agent};

const DIRECT: Cell = Cell { reachable: true, wire: Wire::Direct };
const REFUSED: Cell = Cell { reachable: false, wire: Wire::Nothing };

fn hosts_and_pods_reach_each_other_in(mode: Mode) {
    let mut watched = Watched::new(mode);
    watched.settle();
    watched.fleet.settle(mode.promise());
    kill_agent(&mut watched.fleet, 1);
    kill_agent(&mut watched.fleet, 0);
    for node in &watched.fleet.lab.nodes {
        delete_rules(node);
        ip(node, "route flush table 1");
    }
    let mut cells = Vec::new();
    let [a, b] = &watched.fleet.lab.nodes[..] else { panic!("two nodes") };
    for family in FAMILIES {
        for exchange in [Exchange::Ping, Exchange::Udp] {
            let mut measure = |what: &str, from: &Place, to: &Place, expected: Cell| {
                let what =
                    format!("{what} over {family:?}, {exchange:?}, both nodes' rules deleted: {expected}");
                let measured =
                    || probe(watched.fleet.lab.underlay(), from, to, family, exchange).unwrap() == expected;
                // What is refused is so at once.
                let is_so = if expected.reachable {
                    until(PATIENCE, &what, || measured().then_some(())).is_ok()
                } else {
                    measured()
                };
                cells.push((what, is_so));
            };
            measure("host→pod", &a.host, &b.pods[0], DIRECT);
            measure("pod→host", &a.pods[0], &b.host, DIRECT);
            measure("host→host", &a.host, &b.host, DIRECT);
            measure("own host→pod", &a.host, &a.pods[0], Cell { reachable: true, wire: Wire::Nothing });
            measure("pod→pod", &a.pods[0], &b.pods[0], REFUSED);
        }
    }
    for (what, good) in cells {
        watched.check(&what, good);
    }
    start_agent(&mut watched.fleet, 0);
    start_agent(&mut watched.fleet, 1);
    watched.settle();
    watched.assert_no_fault();
}

#[test]
fn hosts_and_pods_reach_each_other_directly_in_scoped_mode() {
    hosts_and_pods_reach_each_other_in(Mode::Scoped);
}

#[test]
fn hosts_and_pods_reach_each_other_directly_with_reject() {
    hosts_and_pods_reach_each_other_in(Mode::Reject);
}
