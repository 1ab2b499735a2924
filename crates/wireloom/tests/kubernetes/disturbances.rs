//! What disturbances cost the traffic between pods: pings lost, at one in 10 ms, and packets in plaintext on the
//! network between the nodes.
//!
//! Figures are part of the output.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use wireloom_lab::{ClusterLayout, PATIENCE, Place, until};

use crate::{
    felix::assert_keys_are_shared,
    fixtures::{BOOT_UNIT, TAGS, WithWireloom, change_key, wireloom},
    pings::{Cost, Pings, pod, start, start_pods, wait_for_answer},
};

/// How long a cluster is without a DaemonSet.
const WITHOUT: Duration = Duration::from_secs(5);

/// How long pings continue before and after a disturbance.
const MARGIN: Duration = Duration::from_secs(1);

/// What is promised of a figure.
#[derive(Debug, Clone, Copy)]
enum Expected {
    /// It is 0.
    Nothing,
    /// Nothing yet, and it may be 0 by luck.
    Anything,
}

impl Cost {
    /// Prints the figures, and compares them with what is promised.
    fn judge(&self, disturbance: &str, lost: Expected, plaintext: Expected) {
        println!("figure: {disturbance}: {self}");
        for (what, figure, expected) in
            [("pings lost", self.lost, lost), ("packets in plaintext", self.plaintext, plaintext)]
        {
            match expected {
                Expected::Nothing => assert_eq!(figure, 0, "{disturbance}: {what}"),
                Expected::Anything => {}
            }
        }
    }
}

/// Three nodes with Wireloom that have proved themselves to each other, and a pod on each: `pod-a`, `pod-b`, `pod-c`.
struct Stage {
    on: WithWireloom,
}

impl Stage {
    fn new() -> Self {
        let on = WithWireloom::new(&ClusterLayout { nodes: 3, ..ClusterLayout::default() });
        start_pods(&on.cluster, on.cluster.nodes());
        Self { on }
    }

    fn pod(&self, name: &str) -> Place {
        self.on.cluster.pod(name).unwrap()
    }

    /// Measures what `disturb` costs `pod-a` and `pod-b`, which ping each other. Both must still be there afterwards.
    fn cost(&mut self, disturb: impl FnOnce(&mut WithWireloom)) -> Cost {
        let pings = Pings::start(&self.on.cluster);
        thread::sleep(MARGIN);
        disturb(&mut self.on);
        pings.wait_for_answers();
        thread::sleep(MARGIN);
        pings.stop()
    }
}

/// Objects that somebody makes while nobody looks: as many changes of the store.
const CHANGES: usize = 200;

#[test]
fn nothing_is_lost_while_the_api_server_is_away_and_comes_back_as_of_before() {
    let mut stage = Stage::new();
    stage.on.cluster.save_store().unwrap();
    let maps = (0..CHANGES).map(
        |n| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": format!("map-{n}") } }),
    );
    let maps = json!({ "apiVersion": "v1", "kind": "List", "items": maps.collect::<Vec<_>>() });
    until(PATIENCE, "the API server to have etcd again", || {
        stage.on.cluster.feed_kubectl("create --filename -", &maps.to_string()).ok()
    })
    .unwrap();
    let cost = stage.cost(|on| {
        on.cluster.stop_api_server();
        on.cluster.restore_store().unwrap();
        thread::sleep(Duration::from_secs(60));
        on.cluster.start_api_server().unwrap();
    });
    let disturbance = "API server away for a minute, and then with an older store";
    cost.judge(disturbance, Expected::Nothing, Expected::Nothing);

    // Agents do not wait for changes from the future.
    change_key(&stage.on.cluster, &stage.on.daemon_set);
}

/// New pods come up beside the old ones, and take over with their engines.
#[test]
fn a_rollout_costs_nothing_forward_and_back() {
    let mut stage = Stage::new();
    for (disturbance, tag) in [("rollout of a new version", TAGS[1]), ("its rollback", TAGS[0])] {
        let cost = stage.cost(|on| on.daemon_set.roll_out(&on.cluster, tag).unwrap());
        cost.judge(disturbance, Expected::Nothing, Expected::Nothing);
    }
}

#[test]
fn a_killed_container_costs_no_secrecy() {
    let cost = Stage::new().cost(|on| {
        let agent = on.daemon_set.agent(&on.cluster, 1).unwrap();
        on.cluster.nodes()[1].run(&format!("kill -KILL {agent}")).unwrap();
        let other = || on.daemon_set.agent(&on.cluster, 1).ok().filter(|other| *other != agent);
        until(PATIENCE, "another agent", other).unwrap();
        on.daemon_set.wait(&on.cluster).unwrap();
    });
    cost.judge("container killed", Expected::Anything, Expected::Nothing);
}

#[test]
fn a_deleted_daemon_set_costs_no_secrecy() {
    let mut stage = Stage::new();
    let cost = stage.cost(|on| {
        on.daemon_set.delete(&on.cluster).unwrap();
        thread::sleep(WITHOUT);
        on.daemon_set.apply(&on.cluster).unwrap();
    });
    let disturbance = format!("DaemonSet deleted, and made again after {} s", WITHOUT.as_secs());
    cost.judge(&disturbance, Expected::Anything, Expected::Nothing);

    // The same cluster serves for one thing more.
    assert_keys_are_shared(&stage.on.cluster, &stage.on.daemon_set);
}

/// Restarts `node-c`. Measures what pods of the other nodes lose, and all plaintext between pods.
fn restart_a_node(stage: &mut Stage) -> Cost {
    // A pod that has something to say as soon as its node is up.
    let a = stage.pod("pod-a").addresses;
    let command = ["/usr/bin/ping", "-q", "-i", "0.01", &a.v4.to_string()];
    stage.on.cluster.import_program("registry.local/ping:1", "/usr/bin/ping".as_ref()).unwrap();
    start(&stage.on.cluster, &[pod("speaker", "node-c", "registry.local/ping:1", &command)]);

    let a = stage.pod("pod-a");
    stage.cost(|on| {
        let began = Instant::now();
        on.cluster.restart_node(2).unwrap();
        let is_new = || {
            let pod = on.cluster.get("pod pod-c").ok()?;
            (pod["status"]["containerStatuses"][0]["restartCount"] == 1).then_some(())
        };
        until(2 * PATIENCE, "the pods of the restarted node", is_new).unwrap();
        let new = on.cluster.pod("pod-c").unwrap();
        wait_for_answer(&a, &new);
        let back = began.elapsed().as_secs_f64();
        println!("figure: node restarted: pods reach its pods again after {back:.1} s");
        on.daemon_set.wait(&on.cluster).unwrap();
    })
}

#[test]
fn a_node_that_restarts_sends_nothing_in_plaintext() {
    let mut stage = Stage::new();
    let unit = stage.on.cluster.nodes()[2].host.space.read(BOOT_UNIT).unwrap();
    assert!(unit.is_some(), "the boot unit is not installed");
    let cost = restart_a_node(&mut stage);
    let disturbance = "node restarted: pings between pods of other nodes, and all plaintext";
    cost.judge(disturbance, Expected::Nothing, Expected::Nothing);
}

#[test]
fn without_the_boot_unit_a_node_that_restarts_can_send_plaintext() {
    let mut stage = Stage::new();
    stage.on.daemon_set.without_boot_guard(&stage.on.cluster).unwrap();
    // What was installed before stays; an administrator removes it.
    for node in stage.on.cluster.nodes() {
        node.run(&format!("{} boot-guard remove", wireloom().display())).unwrap();
    }
    let cost = restart_a_node(&mut stage);
    assert_eq!(stage.on.cluster.nodes()[2].host.space.read(BOOT_UNIT).unwrap(), None);
    // Whether there is plaintext depends on which pod the kubelet starts first.
    let disturbance =
        "node restarted without the boot unit: pings between pods of other nodes, and all plaintext";
    cost.judge(disturbance, Expected::Nothing, Expected::Anything);
}
