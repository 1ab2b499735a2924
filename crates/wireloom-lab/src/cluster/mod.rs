//! A real Kubernetes cluster on the machines of a laboratory.
//!
//! ```text
//!  ┌ node-a ───────────────┐   ┌ node-b ───────────────┐   ┌ node-c ───────────────────┐
//!  │ containerd  kubelet   │   │ containerd  kubelet   │   │ etcd  kube-apiserver      │
//!  │ kube-proxy  cni0 pods │   │ kube-proxy  cni0 pods │   │ kube-controller-manager   │
//!  │                  eth0 │   │                  eth0 │   │ kube-scheduler       eth0 │
//!  └────────────────────┬──┘   └────────────────────┬──┘   └────────────────────────┬──┘
//!                       └───────── underlay ────────┴───────────────────────────────┘
//! ```
//!
//! Every program is the real one: Kubernetes' own from their Go module (`scripts/kubernetes-programs`), the others from
//! Debian. It needs root of the machine, because containers need control groups.

mod boot;
mod certificates;
mod control_plane;
mod daemon_set;
mod image;
mod layout;
mod network;
mod node;
mod process;
mod remains;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use self::{
    certificates::Authority,
    control_plane::{ADMINISTRATOR, CONFIGURATION, ControlPlane, server},
    image::pack,
    node::{Membership, NodePrograms, import},
    remains::Remains,
};
pub use self::{
    daemon_set::{DaemonSet, copy_manifests},
    layout::{ClusterLayout, PodNetwork, ProxyMode},
};
use crate::{Addresses, Error, Lab, Layout, Node, Place, Result, tools, until};

/// A Kubernetes cluster. Dropping it takes everything down; so do a panic and the death of this process, even by
/// SIGKILL.
#[derive(Debug)]
pub struct Cluster {
    // In this order they are dropped: programs, the machines, what is outside of them.
    /// Absent while a node is out of the cluster.
    nodes: Vec<Option<NodePrograms>>,
    control_plane: ControlPlane,
    /// Its machines: the nodes, and last the control plane's, which is no node of the cluster.
    pub lab: Lab,
    layout: ClusterLayout,
    authority: Authority,
    programs: PathBuf,
    remains: Remains,
}

/// The image that pods' networks are held by, and that test workloads run: the program `wireloom-workload`.
pub const WORKLOAD_IMAGE: &str = node::SANDBOX_IMAGE;

/// Where that image has the program.
pub const WORKLOAD_PROGRAM: &str = "/bin/wireloom-workload";

/// Where br_netfilter has its sysctls.
const BRIDGE_SYSCTLS: &str = "/proc/sys/net/bridge";

/// How long a node or a pod may take to become ready.
const READY: std::time::Duration = std::time::Duration::from_secs(120);

impl Cluster {
    /// Builds a cluster whose nodes are ready. `workload` is the program `wireloom-workload`.
    ///
    /// # Errors
    /// [`Error::NotRoot`]; [`Error::MissingModule`]; when a program is missing or fails, with the end of its log;
    /// [`Error::Timeout`].
    pub fn new(layout: &ClusterLayout, workload: &Path) -> Result<Self> {
        require_root()?;
        tools::require(&[
            "etcd",
            "containerd",
            "ctr",
            "runc",
            "/usr/lib/cni/bridge",
            "conntrack",
            "iptables",
            "nft",
            "bridge",
            "jq",
            "readelf",
        ])?;
        if !Path::new(BRIDGE_SYSCTLS).exists() {
            return Err(Error::MissingModule { module: "br_netfilter" });
        }
        let programs = kubernetes_programs()?;
        let remains = Remains::new()?;
        pack(&workload_image(&remains), WORKLOAD_IMAGE, workload, Path::new(WORKLOAD_PROGRAM))?;

        let lab = Lab::new(&Layout {
            nodes: layout.nodes + 1,
            pods: 0,
            block_address: true,
            routed: layout.network.is_routed(),
            ..Layout::default()
        })?;
        lab.nodes.iter().try_for_each(default_route)?;
        let authority = Authority::new()?;
        let machine = &lab.nodes[usize::from(layout.nodes)];
        let control_plane = ControlPlane::start(programs.clone(), machine, &authority)?;
        let mut cluster =
            Self { nodes: Vec::new(), control_plane, lab, layout: *layout, authority, programs, remains };
        cluster.apply(&node_objects(cluster.nodes()))?;
        for node in 0..usize::from(layout.nodes) {
            let programs = cluster.start_node(node)?;
            cluster.nodes.push(Some(programs));
        }
        cluster.wait_for_nodes()?;
        // Pods need it; the controller manager makes it.
        until(READY, "the service account of pods to exist", || cluster.get("serviceaccount default").ok())?;
        Ok(cluster)
    }

    /// The machines that are nodes of the cluster.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.lab.nodes[..usize::from(self.layout.nodes)]
    }

    /// The control plane's machine: on the underlay, but no node of the cluster.
    #[must_use]
    pub fn outside(&self) -> &Node {
        &self.lab.nodes[usize::from(self.layout.nodes)]
    }

    /// A directory for files that go with the cluster.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.remains.directory()
    }

    /// Runs kubectl as the administrator, with a command line that is split at white space, and returns its output.
    ///
    /// # Errors
    /// [`Error::Command`] with its output when it fails.
    pub fn kubectl(&self, line: &str) -> Result<String> {
        self.outside().run(&format!("{} {line}", self.kubectl_command()))
    }

    /// The beginning of every command line of kubectl, on the control plane's machine.
    #[must_use]
    pub fn kubectl_command(&self) -> String {
        // Its cache is by default in the home directory, where it would outlive the cluster.
        format!("{} --kubeconfig {ADMINISTRATOR} --cache-dir /run/kubectl", self.control_plane.kubectl())
    }

    /// Creates or changes objects: `kubectl apply` with this text, YAML or JSON.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn apply(&self, objects: &str) -> Result<()> {
        self.feed_kubectl("apply --filename -", objects).map(drop)
    }

    /// Runs kubectl as [`Cluster::kubectl`] does, with this text as its input.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn feed_kubectl(&self, line: &str, input: &str) -> Result<String> {
        self.outside().host.space.feed(&format!("{} {line}", self.kubectl_command()), input)
    }

    /// Runs kubectl with a service account's token, as [`Cluster::feed_kubectl`] does.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn with_token(&self, token: &str, line: &str, input: &str) -> Result<String> {
        let (kubectl, server) = (self.control_plane.kubectl(), server(self.outside()));
        let line = format!(
            "{kubectl} --kubeconfig /dev/null --cache-dir /run/kubectl-token --server {server} \
             --certificate-authority {CONFIGURATION}/ca.crt --token {token} {line}"
        );
        self.outside().host.space.feed(&line, input)
    }

    /// Runs kubectl with the credentials of a node's kubelet, by its index in [`Cluster::nodes`].
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn as_kubelet(&self, node: usize, line: &str) -> Result<String> {
        let kubectl = self.control_plane.kubectl();
        self.nodes()[node].run(&format!(
            "{kubectl} --kubeconfig {CONFIGURATION}/kubelet.kubeconfig --cache-dir /run/kubectl {line}"
        ))
    }

    /// What `kubectl get` says of these objects, as JSON.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn get(&self, objects: &str) -> Result<Value> {
        let output = self.kubectl(&format!("get {objects} --output json"))?;
        serde_json::from_str(&output)
            .map_err(|_| Error::Output { what: format!("kubectl get {objects}"), output })
    }

    /// Imports the archive of an image on every node, also on those that are restarted later.
    ///
    /// # Errors
    /// [`Error::Command`] when containerd refuses it.
    pub fn import(&self, archive: &Path) -> Result<()> {
        self.nodes().iter().try_for_each(|node| import(node, archive))
    }

    /// Imports an image of one program of this machine, with the libraries that it needs, on every node.
    ///
    /// # Errors
    /// [`Error::Command`] when it cannot be made, or containerd refuses it.
    pub fn import_program(&self, image: &str, program: &Path) -> Result<()> {
        let archive = self.directory().join("program.tar");
        pack(&archive, image, program, program)?;
        self.import(&archive)
    }

    /// The network of a running pod of the namespace `default`.
    ///
    /// # Errors
    /// [`Error::Output`] when it has no network or no addresses yet.
    pub fn pod(&self, name: &str) -> Result<Place> {
        let pod = self.get(&format!("pod {name}"))?;
        let unexpected =
            || Error::Output { what: format!("kubectl get pod {name}"), output: pod["status"].to_string() };
        let host = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        let node = self.nodes().iter().find(|node| node.name == host).ok_or_else(unexpected)?;
        let address = |k: usize| pod["status"]["podIPs"][k]["ip"].as_str();
        let addresses = match (address(0).map(str::parse), address(1).map(str::parse)) {
            (Some(Ok(v4)), Some(Ok(v6))) => Addresses { v4, v6 },
            _ => return Err(unexpected()),
        };
        let label = |key: &str, value: &str| format!("labels.\"{key}\"=={value}");
        let filter = [
            label("io.kubernetes.pod.uid", pod["metadata"]["uid"].as_str().unwrap_or_default()),
            label("io.cri-containerd.kind", "sandbox"),
        ]
        .join(",");
        let space = &node.host.space;
        let place = format!("{name} on {}", node.name);
        let sandboxes = space.run(&format!("ctr --namespace k8s.io containers list --quiet {filter}"))?;
        // A sandbox from before a restart of the node may still be listed; its network is gone.
        let mut networks = sandboxes.lines().filter_map(|sandbox| {
            let info = space.run(&format!("ctr --namespace k8s.io containers info {sandbox}")).ok()?;
            let info: Value = serde_json::from_str(&info).ok()?;
            let namespaces = info["Spec"]["linux"]["namespaces"].as_array()?;
            let network = namespaces.iter().find(|namespace| namespace["type"] == "network")?;
            let name = network["path"].as_str()?.rsplit('/').next()?;
            space.named_network(name, place.clone()).ok()
        });
        let space = networks.next().ok_or_else(unexpected)?;
        Ok(Place { name: place, space, addresses })
    }

    /// Turns a node off and on again, by its index in [`Cluster::nodes`]. What is on its disk stays: images, the
    /// kubelet's and Wireloom's state, systemd's units. Of these the one that loads Wireloom's guard is run, if it is
    /// enabled. It does not wait until the node is ready.
    ///
    /// # Errors
    /// As [`Cluster::new`].
    pub fn restart_node(&mut self, node: usize) -> Result<()> {
        self.nodes[node] = None;
        self.lab.restart(node)?;
        self.turn_on(node)
    }

    /// Takes a node out of the cluster: turns it off, and deletes its Node and its pods. Its disk stays. The index of
    /// every other node stays as it is.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn take_out(&mut self, node: usize) -> Result<()> {
        self.nodes[node] = None;
        let name = &self.nodes()[node].name;
        self.kubectl(&format!("delete node {name}"))?;
        let pods = format!("--all-namespaces --field-selector spec.nodeName={name}");
        self.kubectl(&format!("delete pods {pods} --force --grace-period 0")).map(drop)
    }

    /// Brings a node that was taken out back into the cluster, and waits until it is ready: with this name, the
    /// addresses and the pod CIDRs of this number ([`Lab::replace`]), and its old disk.
    ///
    /// # Errors
    /// As [`Cluster::new`].
    pub fn bring_in(&mut self, node: usize, name: &str, number: u8) -> Result<()> {
        self.lab.replace(node, name.to_owned(), number)?;
        self.apply(&node_objects(&self.nodes()[node..=node]))?;
        self.turn_on(node)?;
        self.wait_for_nodes()
    }

    /// The nodes that are in the cluster, each with its index in [`Cluster::nodes`].
    pub fn members(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.nodes().iter().enumerate().filter(|(n, _)| self.nodes[*n].is_some())
    }

    fn turn_on(&mut self, node: usize) -> Result<()> {
        default_route(&self.lab.nodes[node])?;
        self.nodes[node] = Some(self.start_node(node)?);
        Ok(())
    }

    /// Waits until every node is ready.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn wait_for_nodes(&self) -> Result<()> {
        until(READY, "every node to be ready", || {
            let nodes = self.get("nodes").ok()?;
            nodes["items"].as_array()?.iter().all(is_ready).then_some(())
        })
    }

    /// Waits until these pods are ready: a selector such as `--selector app=p1`, `--all`, or names.
    ///
    /// # Errors
    /// [`Error::Logged`], with the state of the pods.
    pub fn wait_for_pods(&self, pods: &str) -> Result<()> {
        let state = || self.kubectl(&format!("get pods {}", pods.replace("--all", ""))).unwrap_or_default();
        until(READY, "pods to be ready", || {
            let line = format!("wait pods {pods} --for condition=Ready --timeout 5s");
            self.kubectl(&line).ok()
        })
        .map(drop)
        .map_err(|error| Error::Logged { what: error.to_string(), log: state() })
    }

    /// Kills the API server.
    pub fn stop_api_server(&mut self) {
        self.control_plane.stop_api_server();
    }

    /// Starts the API server again, and waits until it is ready.
    ///
    /// # Errors
    /// [`Error::Logged`] when it is not ready in time.
    pub fn start_api_server(&mut self) -> Result<()> {
        let machine = &self.lab.nodes[usize::from(self.layout.nodes)];
        self.control_plane.start_api_server(machine)
    }

    /// Keeps a copy of everything that the API server has.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn save_store(&mut self) -> Result<()> {
        let machine = &self.lab.nodes[usize::from(self.layout.nodes)];
        self.control_plane.save_store(machine)
    }

    /// While the API server is stopped: gives it back the copy, as somebody does who restores a backup.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn restore_store(&mut self) -> Result<()> {
        let machine = &self.lab.nodes[usize::from(self.layout.nodes)];
        self.control_plane.restore_store(machine)
    }

    /// Lets the cluster outlive this process. Killing all processes whose ids are returned (SIGKILL) takes it down.
    ///
    /// # Errors
    /// When a part of it has already ended.
    pub fn keep(self) -> Result<Vec<u32>> {
        let Self { nodes, control_plane, lab, mut remains, .. } = self;
        remains.keep()?;
        nodes.into_iter().flatten().for_each(NodePrograms::leave);
        control_plane.leave();
        lab.keep()
    }

    fn start_node(&self, index: usize) -> Result<NodePrograms> {
        let machine = &self.lab.nodes[index];
        let others: Vec<_> = self.nodes().iter().filter(|node| node.number != machine.number).collect();
        self.layout.network.connect(machine, &others)?;
        let member = Membership {
            programs: &self.programs,
            server: &server(self.outside()),
            authority: &self.authority,
            proxy: self.layout.proxy,
            network: self.layout.network.plugin(machine),
            // It keeps its disk under another name.
            disk: self.remains.directory().join(format!("disk-{index}")),
            group: self.remains.group(&machine.name),
            image: &workload_image(&self.remains),
        };
        NodePrograms::start(machine, &member)
    }
}

/// Nodes as objects of the API, with the pod CIDRs that the laboratory routes to them.
fn node_objects(nodes: &[Node]) -> String {
    let node = |node: &Node| {
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": node.name },
            "spec": { "podCIDR": node.block[0], "podCIDRs": node.block },
        })
    };
    let items: Vec<_> = nodes.iter().map(node).collect();
    json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()
}

/// The archive of the [`WORKLOAD_IMAGE`].
fn workload_image(remains: &Remains) -> PathBuf {
    remains.directory().join("workload.tar")
}

/// Whether an object's condition `Ready` is true.
fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// Adds a default route to a gateway that does not exist. Kubernetes' programs want to see one, and packets to a
/// service's address need a route before NAT changes it.
fn default_route(machine: &Node) -> Result<()> {
    machine.run("ip route add default via 192.168.1.254")?;
    machine.run("ip -6 route add default via fd00:192:168:1::fe").map(drop)
}

/// The directory of Kubernetes' programs. They are built if this is the first time.
fn kubernetes_programs() -> Result<PathBuf> {
    let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../../scripts/kubernetes-programs"].iter().collect();
    let output = Command::new(&script).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.map_err(Error::io(format!("run {}", script.display())))?;
    if !output.status.success() {
        return Err(Error::Command {
            command: "scripts/kubernetes-programs".into(),
            place: "this machine".into(),
            status: output.status,
            stderr: "its messages are above".into(),
        });
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end()))
}

/// Root of a user namespace is not enough: containers need control groups and devices.
fn require_root() -> Result<()> {
    let whole =
        std::fs::read_to_string("/proc/self/uid_map").map_err(Error::io("read /proc/self/uid_map"))?;
    let is_whole = whole.split_whitespace().eq(["0", "0", "4294967295"]);
    if nix::unistd::geteuid().is_root() && is_whole { Ok(()) } else { Err(Error::NotRoot) }
}
