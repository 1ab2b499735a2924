//! The reconciler against the kernel's twin in memory.

use std::{io, net::SocketAddr, time::Duration};

use wireloom_kernel::Cause;
use wireloom_plan::{
    cluster::Node,
    observed::{Interface, Underlay},
    op::RtnetlinkOp,
    routing::{Family, OtherSelectors, RouteKind},
    standing::Standing,
};
use wireloom_types::{PeerLookup, interface::AGENT_ALIAS};

use super::*;

const KEYS: [PublicKey; 3] =
    [PublicKey::from_bytes([1; 32]), PublicKey::from_bytes([2; 32]), PublicKey::from_bytes([3; 32])];

/// A kernel in memory that can fail, and that counts observations.
#[derive(Default)]
struct Memory {
    observed: Observed,
    observations: usize,
    applied: Vec<Op>,
    /// Whether an operation fails.
    refuses: Option<fn(&Op) -> bool>,
    silence: Option<Silence>,
    /// What another program does after each application.
    meddler: Option<fn(&mut Observed)>,
}

impl Kernel for Memory {
    fn observe(&mut self, own: &BTreeSet<IpAddr>) -> Result<Observed, Error> {
        self.observations += 1;
        let mut observed = self.observed.clone();
        observed.underlays.retain(|_, underlay| !underlay.addresses.is_disjoint(own));
        Ok(observed)
    }

    fn silence(&self) -> Option<Silence> {
        self.silence
    }

    fn apply(&mut self, ops: &[Op]) -> Result<(), Vec<Error>> {
        for op in ops {
            if self.refuses.is_some_and(|refuses| refuses(op)) {
                let cause = Cause::from(io::Error::other("the test says so"));
                return Err(vec![Error::new(wording::op(op, "wg0"), cause)]);
            }
            self.observed.apply(op).expect("the planner asks only for what the kernel accepts");
            self.applied.push(op.clone());
        }
        if let Some(meddler) = self.meddler {
            meddler(&mut self.observed);
        }
        Ok(())
    }
}

fn node(number: u8) -> Node {
    Node {
        public_key: Some(KEYS[usize::from(number)]),
        endpoint: Some(SocketAddr::from(([192, 0, 2, number], 51820))),
        addresses: [IpAddr::from([192, 0, 2, number])].into(),
        workloads: [format!("10.161.{number}.0/24").parse().unwrap()].into(),
        ..Node::default()
    }
}

fn cluster(nodes: u8) -> Cluster {
    Cluster {
        pools: ["10.161.0.0/16".parse().unwrap()].into(),
        nodes: (0..nodes).map(|number| (format!("n{number}"), node(number))).collect(),
        ..Cluster::default()
    }
}

fn reconciler() -> Reconciler<Memory> {
    let mut memory = Memory::default();
    let addresses = [IpAddr::from([192, 0, 2, 0])].into();
    let underlay = Underlay { mtu: 1500, addresses, rp_filter: 1, src_valid_mark: false };
    memory.observed.underlays.insert("eth0".into(), underlay);
    let mut reconciler = Reconciler::new(memory, Settings::defaults("n0"), KEYS[0]);
    let proven = |key| Standing { key, egress: true, ingress: true, fresh: false };
    reconciler.set_standings([("n1".into(), proven(KEYS[1])), ("n2".into(), proven(KEYS[2]))].into());
    reconciler
}

fn settled(nodes: u8) -> Reconciler<Memory> {
    let mut reconciler = reconciler();
    reconciler.set_cluster(cluster(nodes));
    reconciler.pass().unwrap();
    reconciler.kernel.applied.clear();
    reconciler.kernel.observations = 0;
    reconciler
}

#[test]
fn nothing_happens_before_the_first_snapshot() {
    let mut reconciler = reconciler();
    reconciler.kernel.observed.interface = Some(Interface {
        alias: Some(AGENT_ALIAS.into()),
        mtu: 1420,
        up: true,
        peer_lookup: PeerLookup::Destination,
        link_address: None,
        left: false,
        rp_filter: 0,
    });
    assert_eq!(reconciler.pass().unwrap(), 0);
    assert_eq!(reconciler.kernel.observations, 0);
    assert!(reconciler.kernel.applied.is_empty());
}

#[test]
fn a_pass_settles_and_the_next_one_does_nothing() {
    let mut reconciler = reconciler();
    reconciler.set_cluster(cluster(3));
    assert!(reconciler.pass().unwrap() > 0);
    let routes = &reconciler.kernel.observed.routes;
    let peers = routes.iter().filter(|route| matches!(route.kind, RouteKind::Device { .. })).count();
    assert_eq!(peers, 2);
    assert!(
        matches!(reconciler.kernel.applied.last(), Some(Op::Rtnetlink(RtnetlinkOp::AddRule(_)))),
        "rules come last"
    );

    reconciler.distrust_kernel();
    assert_eq!(reconciler.pass().unwrap(), 0);
}

#[test]
fn one_changed_node_costs_no_observation_of_the_kernel() {
    let mut reconciler = settled(2);
    reconciler.set_cluster(cluster(3));
    // The peer, its route, and what the guard refuses in two directions.
    assert_eq!(reconciler.pass().unwrap(), 4, "{:?}", reconciler.kernel.applied);
    assert_eq!(reconciler.kernel.observations, 0);
    assert_eq!(reconciler.mirror(), Some(&reconciler.kernel.observed));
}

#[test]
fn what_somebody_removed_comes_back() {
    let mut reconciler = settled(2);
    let before = reconciler.kernel.observed.clone();
    reconciler.kernel.observed.rules.clear();
    reconciler.kernel.observed.routes.clear();
    reconciler.distrust_kernel();
    let done = reconciler.pass().unwrap();
    assert_eq!(reconciler.kernel.observed, before);
    assert_eq!(reconciler.repairs(), done);
    // What was asked for is no repair, and neither is nothing.
    reconciler.set_cluster(cluster(3));
    assert!(reconciler.pass().unwrap() > 0 && reconciler.repairs() == 0);
    reconciler.distrust_kernel();
    assert_eq!((reconciler.pass().unwrap(), reconciler.repairs()), (0, 0));
}

#[test]
fn the_mode_can_be_switched_there_and_back() {
    let mut reconciler = settled(2);
    let scoped = reconciler.kernel.observed.clone();
    let settings = Settings::defaults("n0");
    reconciler.set_settings(Settings { encrypt_host_traffic: true, ..settings.clone() }, KEYS[0]);
    reconciler.pass().unwrap();
    assert!(reconciler.kernel.observed.rules.iter().all(|rule| rule.invert));
    assert!(reconciler.kernel.observed.firewall.is_some());
    reconciler.set_settings(settings, KEYS[0]);
    reconciler.pass().unwrap();
    assert_eq!(reconciler.kernel.observed, scoped);
}

#[test]
fn another_key_is_given_to_the_device() {
    let mut reconciler = settled(2);
    let mut cluster = cluster(2);
    cluster.nodes.get_mut("n0").unwrap().public_key = Some(KEYS[2]);
    reconciler.set_settings(Settings::defaults("n0"), KEYS[2]);
    reconciler.set_cluster(cluster);
    reconciler.pass().unwrap();
    let device = reconciler.kernel.observed.device.as_ref().unwrap();
    assert_eq!(device.public_key, Some(KEYS[2]));
}

#[test]
fn after_a_failure_the_kernel_is_observed_and_the_rest_is_done() {
    let mut reconciler = settled(2);
    reconciler.kernel.refuses = Some(|op| matches!(op, Op::Rtnetlink(RtnetlinkOp::SetRoute(_))));
    reconciler.set_cluster(cluster(3));
    let trouble = reconciler.pass().unwrap_err();
    assert_eq!(trouble.to_string(), "cannot set the route `10.161.2.0/24 dev wg0`: the test says so");
    assert!(trouble.retry_can_help());
    assert_eq!(reconciler.mirror(), None);

    reconciler.kernel.refuses = None;
    // The route, and what comes after it: the guard refuses in two directions.
    assert_eq!(reconciler.pass().unwrap(), 3);
    assert!(reconciler.kernel.observations > 0);
}

#[test]
fn while_the_device_is_silent_everything_else_is_repaired() {
    let mut reconciler = settled(2);
    reconciler.kernel.silence = Some(Silence { process: Some(7), lasted: Duration::from_secs(2) });
    reconciler.kernel.observed.rules.clear();
    reconciler.set_cluster(cluster(3));
    let trouble = reconciler.pass().unwrap_err();
    assert_eq!(
        trouble.to_string(),
        "the WireGuard device does not answer (process 7); everything else is repaired, and the device is restarted \
         after 15 s without an answer"
    );
    assert!(trouble.retry_can_help());
    let kernel = &reconciler.kernel;
    assert!(!kernel.observed.rules.is_empty());
    assert!(kernel.observed.routes.iter().any(|route| route.destination == "10.161.2.0/24".parse().unwrap()));
    assert!(!kernel.applied.iter().any(|op| matches!(op, Op::Device(_))), "{:?}", kernel.applied);
    assert_eq!(reconciler.mirror(), None);

    // What it has missed is told to it when it answers.
    reconciler.kernel.silence = None;
    assert_eq!(reconciler.pass().unwrap(), 1);
    assert_eq!(reconciler.kernel.observed.device.as_ref().unwrap().peers.len(), 2);
}

/// The guard is there, and nothing else was changed.
#[track_caller]
fn assert_only_guarded(reconciler: &Reconciler<Memory>) {
    let Memory { observed, applied, .. } = &reconciler.kernel;
    assert!(observed.firewall.as_ref().is_some_and(|firewall| firewall.guard.is_some()), "{applied:?}");
    assert!(applied.iter().all(|op| matches!(op, Op::Firewall(_))), "{applied:?}");
}

#[test]
fn a_foreign_interface_is_refused_until_it_goes() {
    let mut reconciler = reconciler();
    reconciler.kernel.observed.interface = Some(Interface {
        alias: None,
        mtu: 1500,
        up: true,
        peer_lookup: PeerLookup::Destination,
        link_address: None,
        left: false,
        rp_filter: 0,
    });
    reconciler.set_cluster(cluster(2));
    let trouble = reconciler.pass().unwrap_err();
    assert!(matches!(trouble, Trouble::Refused(Refusal::ForeignInterface { .. })));
    assert!(!trouble.retry_can_help());
    assert_only_guarded(&reconciler);

    reconciler.kernel.observed.interface = None;
    assert!(reconciler.pass().unwrap() > 0);
}

#[test]
fn a_program_that_undoes_our_changes_is_reported_and_not_fought_for_ever() {
    let mut reconciler = reconciler();
    reconciler.kernel.meddler = Some(|observed| observed.rules.clear());
    reconciler.set_cluster(cluster(2));
    let trouble = reconciler.pass().unwrap_err();
    assert_eq!(
        trouble.to_string(),
        "the kernel does not stay as programmed: after 4 rounds it is still necessary to add the rule `IPv4 99: from \
         10.161.0.0/16 fwmark 0/0xa lookup 1 proto 157`; find out which other program changes it"
    );
    assert!(reconciler.kernel.observations <= ROUNDS + 1);
}

fn foreign_rule() -> Rule {
    let from = Some("203.0.113.2/32".parse().unwrap());
    Rule {
        family: Family::V4,
        priority: 1000,
        invert: false,
        from,
        mark: 0,
        mask: 0,
        table: 1,
        protocol: 0,
        other: OtherSelectors::default(),
    }
}

#[test]
fn a_foreign_table_is_refused_until_another_one_is_set() {
    let mut reconciler = reconciler();
    reconciler.kernel.observed.rules.push(foreign_rule());
    reconciler.set_cluster(cluster(2));
    let trouble = reconciler.pass().unwrap_err();
    assert!(matches!(trouble, Trouble::Refused(Refusal::ForeignTable { .. })));
    assert_only_guarded(&reconciler);

    // The kernel shows what is in the new table.
    reconciler.kernel.observed.rules.clear();
    reconciler.set_settings(Settings { table: 15_700, ..Settings::defaults("n0") }, KEYS[0]);
    assert!(reconciler.pass().unwrap() > 0);
    assert!(reconciler.kernel.observed.rules.iter().all(|rule| rule.table == 15_700));
}

#[test]
fn a_warning_about_others_stays_while_the_mesh_changes() {
    let mut reconciler = settled(2);
    reconciler.kernel.observed.rules.push(foreign_rule());
    reconciler.distrust_kernel();
    reconciler.pass().unwrap();
    let warning = Warning::ForeignRule { rule: foreign_rule() };
    assert!(reconciler.warnings().contains(&warning));
    reconciler.set_cluster(cluster(3));
    reconciler.pass().unwrap();
    assert!(reconciler.warnings().contains(&warning));
    assert_eq!(reconciler.kernel.observations, 1);
}

#[test]
fn only_what_others_delete_counts_as_deleted() {
    let mut reconciler = settled(2);
    assert!(!reconciler.rules_were_deleted());
    reconciler.kernel.observed.rules.clear();
    reconciler.distrust_kernel();
    reconciler.pass().unwrap();
    assert!(reconciler.rules_were_deleted());
    // It is said of one pass only, and not of rules that we replace.
    let settings = Settings { encrypt_host_traffic: true, ..Settings::defaults("n0") };
    reconciler.set_settings(settings, KEYS[0]);
    reconciler.pass().unwrap();
    assert!(!reconciler.rules_were_deleted());
    reconciler.distrust_kernel();
    reconciler.pass().unwrap();
    assert!(!reconciler.rules_were_deleted());
}
