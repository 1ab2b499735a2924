//! Updating change by change gives the same as planning from scratch.

use proptest::{collection, prelude::*};
use wireloom_plan::{
    cluster::{Cluster, Node},
    desired::{Host, desired},
    observed::Observed,
    planner::Planner,
    routing::{Route, RouteKind},
    settings::Settings,
    standing::Standings,
};

use crate::universe::{OWN, cluster, key_file, named_node, observed, settings, standings};

#[derive(Debug, Clone)]
enum Event {
    Node(&'static str, Option<Node>),
    Snapshot(Cluster),
    Settings(Settings),
    Standings(Standings),
}

fn event() -> impl Strategy<Value = Event> {
    // This node may change, but it stays in the cluster.
    let change = (named_node(), prop::bool::weighted(0.7))
        .prop_map(|((name, node), stays)| Event::Node(name, (stays || name == OWN).then_some(node)));
    prop_oneof![
        8 => change,
        1 => cluster().prop_map(Event::Snapshot),
        1 => settings().prop_map(Event::Settings),
        3 => standings().prop_map(Event::Standings),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn deltas_give_the_same_as_a_snapshot(
        mut kernel in observed(),
        first in cluster(),
        mut settings in settings(),
        own in key_file(),
        events in collection::vec(event(), 1..12),
    ) {
        let mut mesh = first.clone();
        let mut stands = Standings::new();
        let mut planner = Planner::new(settings.clone(), own, first);
        // On a running node: at a start, what others have in the table would be refused.
        kernel.routes.insert(Route::ours("192.0.2.0/24".parse().unwrap(), RouteKind::Throw));
        let ops = planner.plan(&kernel).unwrap().ops;
        kernel.apply_all(&ops).unwrap();
        let host = Host::of(own, &kernel);

        for event in events {
            match event {
                Event::Node(name, Some(node)) => {
                    mesh.nodes.insert(name.to_owned(), node.clone());
                    planner.set_node(name, node);
                }
                Event::Node(name, None) => {
                    mesh.nodes.remove(name);
                    planner.remove_node(name);
                }
                Event::Snapshot(snapshot) => {
                    mesh = snapshot.clone();
                    planner.set_cluster(snapshot);
                }
                Event::Settings(new) => {
                    settings = new.clone();
                    planner.set_settings(new);
                }
                Event::Standings(new) => {
                    stands = new.clone();
                    planner.set_standings(new);
                }
            }
            prop_assert_eq!(planner.cluster(), &mesh);
            prop_assert_eq!(planner.desired(&kernel).unwrap(), &desired(&mesh, &settings, &stands, &host).unwrap());

            let ops = planner.changes(&kernel).unwrap();
            kernel.apply_all(&ops).unwrap();
            prop_assert_eq!(planner.plan(&kernel).unwrap().ops, vec![], "the changes were complete");
        }
    }

    /// Several changes may happen before the next plan.
    #[test]
    fn changes_accumulate_until_the_next_plan(
        first in cluster(),
        settings in settings(),
        own in key_file(),
        changes in collection::vec((named_node(), prop::bool::weighted(0.7)), 1..8),
    ) {
        let mut planner = Planner::new(settings, own, first);
        let mut kernel = Observed::default();
        let ops = planner.plan(&kernel).unwrap().ops;
        kernel.apply_all(&ops).unwrap();
        for ((name, node), stays) in changes {
            if stays || name == OWN {
                planner.set_node(name, node);
            } else {
                planner.remove_node(name);
            }
        }
        let ops = planner.changes(&kernel).unwrap();
        kernel.apply_all(&ops).unwrap();
        prop_assert_eq!(planner.plan(&kernel).unwrap().ops, vec![]);
    }
}
