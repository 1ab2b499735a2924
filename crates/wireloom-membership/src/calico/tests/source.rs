//! The Kubernetes source beside Calico, against the twin of the API server.

use std::{
    collections::BTreeSet,
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use serde_json::{Value, json};
use wireloom_plan::cluster::{Cluster, Node};

use super::super::hash::selector;
use crate::{
    Complaint, Event, Following, Local, Source, Start,
    kubernetes::{
        Settings, Workloads,
        twin::{Fault, NODES, RECORDS, Twin, node},
    },
};

const POOLS: &str = "/apis/crd.projectcalico.org/v1/ippools";
const BLOCKS: &str = "/apis/crd.projectcalico.org/v1/blockaffinities";
const POOLS_V3: &str = "/apis/projectcalico.org/v3/ippools";
const BLOCKS_V3: &str = "/apis/projectcalico.org/v3/blockaffinities";
const MIGRATIONS: &str = "/apis/migration.projectcalico.org/v1/datastoremigrations";
const MIGRATIONS_BETA: &str = "/apis/migration.projectcalico.org/v1beta1/datastoremigrations";
const KEY: &str = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
const KEY_OF_FELIX: &str = "75b/PKFeTdjHIG0nplcoBE35+eSCqfXFtM+LpUfxE2k=";
const KEY_OF_N2: &str = "H1KT8LUdVs2rKvTeGSloB3SLSOBeKss/lXD2fomnwz4=";
const ANNOTATION: &str = "projectcalico.org/WireguardPublicKey";

/// How long to wait for what should happen soon.
const PATIENCE: Duration = Duration::from_secs(30);

/// The source of the node n1, and what it has delivered.
struct Followed {
    following: Following,
    events: Receiver<Event>,
    cluster: Option<Cluster>,
    local: Option<Local>,
    complaints: BTreeSet<Complaint>,
    problems: Vec<String>,
}

impl Followed {
    fn start(twin: &Twin, settings: Settings) -> Self {
        let source =
            Source::Kubernetes(Box::new(Settings { kubeconfig: Some(twin.kubeconfig()), ..settings }));
        let (sender, events) = channel();
        let start = Start { node: "n1".into(), recorded: None };
        let following = source.follow(start, move |event| drop(sender.send(event))).unwrap();
        Self {
            following,
            events,
            cluster: None,
            local: None,
            complaints: BTreeSet::new(),
            problems: Vec::new(),
        }
    }

    /// Takes events until what was delivered is as it should be.
    #[track_caller]
    fn wait(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Snapshot(cluster)) => self.cluster = Some(cluster),
                Ok(Event::Local(local)) => self.local = Some(local),
                Ok(Event::LeftOut(complaints)) => self.complaints = complaints,
                Ok(Event::OwnRecord { .. }) => {}
                Ok(Event::Problem(problem)) => self.problems.push(problem.to_string()),
                Err(_) => panic!(
                    "{what}: {:?} {:?} {:?} {:?}",
                    self.cluster, self.local, self.complaints, self.problems
                ),
            }
        }
    }

    fn workloads(&self) -> Option<BTreeSet<IpNet>> {
        self.local.as_ref()?.workloads.clone()
    }

    fn pools(&self) -> Option<BTreeSet<IpNet>> {
        self.cluster.as_ref().map(|cluster| cluster.pools.clone())
    }

    fn node(&self, name: &str) -> Option<&Node> {
        self.cluster.as_ref()?.nodes.get(name)
    }
}

fn settings(felix_peers: bool) -> Settings {
    Settings { kubeconfig: None, workloads: Workloads::Auto, pools: BTreeSet::new(), felix_peers }
}

fn cidrs(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A twin with this node, and these kinds of Calico's.
fn twin(kinds: &[&str]) -> Twin {
    let twin = Twin::on_a_thread();
    twin.put(NODES, node("n1", &["10.244.1.0/24"], &["192.168.77.1"]));
    kinds.iter().for_each(|kind| twin.add_kind(kind));
    twin
}

fn pool(cidr: &str) -> Value {
    json!({"metadata": {"name": cidr.replace(['.', ':', '/'], "-")}, "spec": {"cidr": cidr, "disabled": true}})
}

fn block(host: &str, cidr: &str) -> Value {
    let (label, hash) =
        selector(host).split_once('=').map(|(label, hash)| (label.to_owned(), hash.to_owned())).unwrap();
    json!({
        "metadata": {"name": format!("{host}-{}", cidr.replace(['.', ':', '/'], "-")), "labels": {label: hash}},
        "spec": {"cidr": cidr, "deleted": "false", "node": host, "state": "confirmed", "type": "host"},
    })
}

fn unlabelled(mut block: Value) -> Value {
    block["metadata"].as_object_mut().unwrap().remove("labels");
    block
}

fn with_annotations(mut node: Value, annotations: &[(&str, &str)]) -> Value {
    for (name, value) in annotations {
        node["metadata"]["annotations"][*name] = json!(value);
    }
    node
}

#[test]
fn pools_and_own_blocks_are_followed() {
    let twin = twin(&[POOLS, BLOCKS]);
    twin.put(POOLS, pool("10.162.0.0/27"));
    twin.put(BLOCKS, block("n1", "10.162.0.16/29"));
    twin.put(BLOCKS, block("n2", "10.162.0.8/29"));
    // n2 has borrowed an address of n1.
    twin.put(
        RECORDS,
        json!({"metadata": {"name": "n2"}, "spec": {"workloads": ["10.162.0.8/29", "10.162.0.17/32"]}}),
    );
    twin.put(RECORDS, json!({"metadata": {"name": "n1"}, "spec": {"workloads": ["10.162.0.16/29"]}}));
    let mut followed = Followed::start(&twin, settings(false));
    followed.wait("the own block", |it| it.workloads() == Some(cidrs(&["10.162.0.16/29"])));
    followed.wait("the mesh", |it| it.pools() == Some(cidrs(&["10.162.0.0/27"])));
    let borrowed = cidrs(&["10.162.0.8/29", "10.162.0.17/32"]);
    assert_eq!(followed.node("n2").unwrap().workloads, borrowed, "{:?}", followed.complaints);
    let mut watches = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while watches.is_empty() {
        assert!(Instant::now() < deadline, "nobody watches the blocks");
        let requests = twin.take_requests().into_iter();
        watches.extend(requests.filter(|request| request.contains(BLOCKS) && request.contains("watch=")));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(watches.iter().all(|it| it.contains("hostname-hash")), "{watches:?}");

    twin.put(BLOCKS, block("n1", "10.162.0.24/29"));
    followed
        .wait("a second block", |it| it.workloads() == Some(cidrs(&["10.162.0.16/29", "10.162.0.24/29"])));
    let mut deleted = block("n1", "10.162.0.16/29");
    deleted["spec"]["deleted"] = json!("true");
    twin.put(BLOCKS, deleted);
    followed.wait("the block to go", |it| it.workloads() == Some(cidrs(&["10.162.0.24/29"])));
    // Of the last one, the watch says only that it is gone, and a list has only others' after that.
    twin.remove(BLOCKS, "n1-10-162-0-24-29");
    followed.wait("the last block to go", |it| it.workloads() == Some(BTreeSet::new()));
    twin.compact();
    twin.cut_watches();
    twin.put(BLOCKS, block("n1", "10.162.0.0/29"));
    followed.wait("another block", |it| it.workloads() == Some(cidrs(&["10.162.0.0/29"])));
    twin.put(POOLS, pool("fd61::/48"));
    followed.wait("the pool", |it| it.pools().is_some_and(|pools| pools.len() == 2));
    twin.put(POOLS, json!({"metadata": {"name": "bad"}, "spec": {"cidr": "10.0.0.0/33"}}));
    followed.wait("the complaint", |it| it.complaints.iter().any(|complaint| complaint.record == "bad"));
}

#[test]
fn pod_cidrs_do_without_calico_and_a_host_without_a_block_waits_for_one() {
    let pod_cidrs = Some(cidrs(&["10.244.1.0/24"]));
    let no_calico = twin(&[]);
    let mut without = Followed::start(&no_calico, settings(false));
    without.wait("the podCIDRs", |it| it.workloads() == pod_cidrs);
    without.wait("the mesh", |it| it.cluster.is_some());

    let only_crds = twin(&[POOLS, BLOCKS]);
    let mut only = Followed::start(&only_crds, settings(false));
    only.wait("the podCIDRs", |it| it.workloads() == pod_cidrs);

    // As Calico before 3.31 writes them.
    let others = twin(&[POOLS, BLOCKS]);
    others.put(BLOCKS, unlabelled(block("n2", "10.244.1.64/26")));
    let mut followed = Followed::start(&others, settings(false));
    followed.wait("what is known of this node", |it| {
        it.local.as_ref().is_some_and(|local| !local.addresses.is_empty())
    });
    followed.wait("the mesh", |it| it.cluster.is_some());
    assert_eq!(followed.workloads(), None);
    others.put(BLOCKS, unlabelled(block("n1", "10.244.1.128/26")));
    followed.wait("the own block", |it| it.workloads() == Some(cidrs(&["10.244.1.128/26"])));
}

#[test]
fn a_migration_is_followed_from_group_to_group() {
    follow_a_migration(MIGRATIONS);
}

#[test]
fn a_migration_of_a_first_release_is_followed_too() {
    follow_a_migration(MIGRATIONS_BETA);
}

fn follow_a_migration(migrations: &str) {
    let twin = twin(&[POOLS, BLOCKS, POOLS_V3, BLOCKS_V3, migrations]);
    let migrate = |phase: &str| {
        twin.put(migrations, json!({"metadata": {"name": "v1-to-v3"}, "status": {"phase": phase}}));
    };
    twin.put(BLOCKS, block("n1", "10.162.0.16/29"));
    let mut copy = block("n1", "10.162.0.24/29");
    copy["spec"]["deleted"] = json!(false);
    twin.put(BLOCKS_V3, copy);
    migrate("Migrating");
    let mut followed = Followed::start(&twin, settings(false));
    followed.wait("the old group", |it| it.workloads() == Some(cidrs(&["10.162.0.16/29"])));
    migrate("Converged");
    twin.cut_watches();
    followed.wait("the new group", |it| it.workloads() == Some(cidrs(&["10.162.0.24/29"])));
    twin.remove_kind(BLOCKS);
    twin.remove_kind(POOLS);
    twin.remove_kind(migrations);
    twin.cut_watches();
    twin.put(BLOCKS_V3, block("n1", "10.162.0.0/29"));
    followed.wait("a change", |it| it.workloads() == Some(cidrs(&["10.162.0.0/29", "10.162.0.24/29"])));
}

#[test]
fn an_api_server_of_calicos_that_is_down_matters_only_where_objects_may_have_moved_to_it() {
    let twin = twin(&[POOLS, BLOCKS, POOLS_V3, BLOCKS_V3]);
    twin.put(POOLS, pool("10.162.0.0/27"));
    twin.put(BLOCKS, block("n1", "10.162.0.16/29"));
    twin.set_fault(Fault::LacksBackend("/apis/projectcalico.org/v3/"));
    let mut followed = Followed::start(&twin, settings(false));
    followed.wait("the old group", |it| it.workloads() == Some(cidrs(&["10.162.0.16/29"])));
    followed.wait("the pool", |it| it.pools() == Some(cidrs(&["10.162.0.0/27"])));
    drop(followed);

    twin.add_kind(MIGRATIONS);
    twin.put(MIGRATIONS, json!({"metadata": {"name": "v1-to-v3"}, "status": {"phase": "Converged"}}));
    twin.put(BLOCKS_V3, block("n1", "10.162.0.24/29"));
    let mut followed = Followed::start(&twin, settings(false));
    followed
        .wait("the problem", |it| it.problems.iter().any(|problem| problem.contains("service unavailable")));
    assert_eq!(followed.workloads(), None, "the old group does not count any more");
    twin.set_fault(Fault::None);
    followed.wait("the new group", |it| it.workloads() == Some(cidrs(&["10.162.0.24/29"])));
}

#[test]
fn keys_are_shared_with_felix_and_ours_comes_back() {
    let twin = twin(&[POOLS, BLOCKS]);
    let felix = [
        ("projectcalico.org/IPv4Address", "192.168.77.2/24"),
        ("projectcalico.org/IPv4WireguardInterfaceAddr", "10.162.0.8"),
        (ANNOTATION, KEY_OF_FELIX),
    ];
    twin.put(NODES, with_annotations(node("n2", &[], &["192.168.77.2"]), &felix));
    twin.put(POOLS, pool("10.162.0.0/27"));
    twin.put(BLOCKS, block("n1", "10.162.0.16/29"));
    twin.put(BLOCKS, block("n2", "10.162.0.8/29"));
    let mut followed = Followed::start(&twin, settings(true));
    followed.wait("the node of Felix", |it| it.node("n2").is_some());
    let n2 = followed.node("n2").unwrap();
    assert_eq!(n2.public_key, Some(KEY_OF_FELIX.parse().unwrap()));
    assert_eq!(
        (n2.endpoint, n2.workloads.clone()),
        (Some("192.168.77.2:51820".parse().unwrap()), cidrs(&["10.162.0.8/29"]))
    );

    let own = Node {
        public_key: Some(KEY.parse().unwrap()),
        workloads: cidrs(&["10.162.0.16/29"]),
        ..Node::default()
    };
    let published =
        || twin.get(NODES, "n1").unwrap()["metadata"]["annotations"][ANNOTATION].as_str() == Some(KEY);
    let wait = |what: &str, is_so: &dyn Fn() -> bool| {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    followed.following.publish(Some(own.clone()));
    wait("our key among Felix's", &published);
    // Felix starts with its WireGuard off, and clears the key.
    twin.put(NODES, node("n1", &["10.244.1.0/24"], &["192.168.77.1"]));
    wait("our key to come back", &published);
    // The IPAM gives a node with a key a tunnel address.
    let address = ("projectcalico.org/IPv4WireguardInterfaceAddr", "10.162.0.1");
    let ours = node("n1", &["10.244.1.0/24"], &["192.168.77.1"]);
    twin.put(NODES, with_annotations(ours, &[(ANNOTATION, KEY), address]));
    followed
        .wait("the tunnel address", |it| it.workloads() == Some(cidrs(&["10.162.0.16/29", "10.162.0.1/32"])));
    assert_eq!(followed.local.as_ref().unwrap().tunnel_addresses, ["10.162.0.1".parse().unwrap()].into());
    // This node leaves.
    followed.following.publish(Some(Node { encrypt: false, ..own }));
    wait("our key to go", &|| {
        twin.get(NODES, "n1").unwrap()["metadata"]["annotations"][ANNOTATION].is_null()
    });
    // n2 moves to Wireloom.
    twin.put(
        RECORDS,
        json!({"metadata": {"name": "n2"}, "spec": {"publicKey": KEY_OF_N2, "workloads": ["10.162.0.8/29"]}}),
    );
    followed.wait("its own record", |it| {
        it.node("n2").is_some_and(|n2| n2.public_key == Some(KEY_OF_N2.parse().unwrap()))
    });
}

#[test]
fn nodes_of_felix_stay_when_the_cluster_outgrows_what_is_followed() {
    let twin = twin(&[POOLS, BLOCKS]);
    let felix = [("projectcalico.org/IPv4Address", "192.168.77.2/24"), (ANNOTATION, KEY_OF_FELIX)];
    twin.put(NODES, with_annotations(node("n2", &[], &[]), &felix));
    (3..=500).for_each(|n| twin.put(NODES, node(&format!("n{n}"), &[], &[])));
    twin.put(BLOCKS, block("n2", "10.162.0.8/29"));
    let mut followed = Followed::start(&twin, settings(true));
    followed.wait("the node of Felix", |it| it.node("n2").is_some());
    twin.put(NODES, node("n501", &[], &[]));
    followed.wait("the complaint", |it| it.complaints.iter().any(|it| it.record == "felix_peers"));
    twin.put(BLOCKS, block("n2", "10.162.0.24/29"));
    let both = cidrs(&["10.162.0.8/29", "10.162.0.24/29"]);
    followed.wait("a further block", |it| it.node("n2").is_some_and(|n2| n2.workloads == both));
}
