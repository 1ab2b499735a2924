//! Beside Felix of Calico, which has its WireGuard off.

use std::time::Duration;

use wireloom_lab::{
    Layout, Node, Pinger, Promise, agent,
    felix::{Felix, Keys},
};
use wireloom_plan::routing::Family;

use crate::{
    fixtures::fleet::{Fleet, run},
    wireloom,
};

/// A table that Felix does not take for its own.
pub(super) const OWN_TABLE: &str = "table = 15700";

/// The time between two pings.
const INTERVAL: Duration = Duration::from_millis(10);

fn status(node: &Node) -> String {
    run(node, "status").1
}

/// With its WireGuard off, it deletes our rules all the same.
#[test]
fn felix_fights_over_its_own_table_and_leaves_another_alone() {
    let keys = Keys::default();
    let mut fleet = Fleet::new(Layout::default(), "table = 1");
    fleet.settle(Promise::SCOPED);
    keys.set("node-a", Some(&fleet.keys[0].public));
    let refresh = Duration::from_secs(1);
    let felix = Felix::start(wireloom(), &fleet.lab, 0, None, refresh, &keys).unwrap();
    assert_eq!(keys.all().get("node-a"), None, "it clears the key at its start");
    let said =
        |shown: &str| shown.contains("our rules were deleted") && shown.contains("Felix of Calico runs here");
    fleet.wait("the fight to be named", |fleet| said(&status(&fleet.lab.nodes[0])));
    assert!(!said(&status(&fleet.lab.nodes[1])), "{}", status(&fleet.lab.nodes[1]));
    felix.stop().unwrap();

    fleet.agents.clear();
    fleet.lab.nodes.iter().for_each(|node| drop(agent::down(wireloom(), node).unwrap()));
    fleet.route(OWN_TABLE);
    fleet.start();
    fleet.settle(Promise::SCOPED);
    let refresh = Duration::from_millis(200);
    let felix = Felix::start(wireloom(), &fleet.lab, 0, None, refresh, &keys).unwrap();
    let [a, b] = [0, 1].map(|node| &fleet.lab.nodes[node].pods[0]);
    let pinger = Pinger::start(a, b, Family::V4, INTERVAL).unwrap();
    // Ten refreshes.
    fleet.wait("the refreshes", |_| pinger.answered() >= 200);
    let report = pinger.stop().unwrap();
    assert_eq!(report.lost, 0, "{report:?}\n{}", fleet.logs());
    felix.stop().unwrap();
    assert!(!said(&status(&fleet.lab.nodes[0])), "{}", status(&fleet.lab.nodes[0]));
    fleet.settle(Promise::SCOPED);
}
