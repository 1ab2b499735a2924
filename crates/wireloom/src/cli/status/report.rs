//! The status as data: what `--json` prints.

use std::{collections::BTreeMap, net::SocketAddr, time::SystemTime};

use ipnet::IpNet;
use serde::Serialize;
use wireloom_kernel::{Backend, GuardCounters, PeerState, Refusals};
use wireloom_plan::{
    cluster::Cluster,
    desired::Owners,
    op::Op,
    proofs::Account,
    routing::Rule,
    settings::{Settings, UnprovenPeers},
    warning::Warning,
};
use wireloom_types::{LinkAddress, PeerLookup, PublicKey, SourceCheck, interface::AGENT_ALIAS};

use crate::{
    cli::{plan::WarningReport, situation::Situation},
    run_file::RunFile,
};

#[derive(Serialize)]
pub(super) struct Report<'a> {
    pub(super) node: &'a str,
    pub(super) agent: Option<RunFile>,
    pub(super) mode: &'static str,
    /// How the two decisions differ from standard WireGuard's; `None` when they do not.
    pub(super) link: Option<&'static str>,
    pub(super) interface: Interface<'a>,
    pub(super) peers: Vec<Peer<'a>>,
    /// Whether each other node of the mesh is proven, and why not.
    pub(super) standing: &'a BTreeMap<String, Account>,
    /// What happens to traffic with the workloads of unproven nodes.
    pub(super) unproven_peers: UnprovenPeers,
    /// What the guard refused besides what the peers' counters show; `None` without a guard.
    pub(super) guard: Option<GuardReport>,
    /// Packets that the firewall refused from senders that are not peers.
    pub(super) refused_strangers: Option<u64>,
    pub(super) rules: &'a [Rule],
    /// What an agent would do now.
    pub(super) pending: Vec<Op>,
    pub(super) warnings: Vec<WarningReport<'a>>,
    pub(super) errors: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Interface<'a> {
    pub(super) name: &'a str,
    pub(super) state: &'static str,
    pub(super) backend: Option<Backend>,
    pub(super) mtu: Option<u32>,
    pub(super) public_key: Option<PublicKey>,
    pub(super) listen_port: Option<u16>,
}

#[derive(Serialize)]
pub(super) struct Peer<'a> {
    /// The nodes that have this key.
    pub(super) nodes: Vec<&'a str>,
    pub(super) public_key: PublicKey,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) handshake_age_seconds: Option<u64>,
    pub(super) received: u64,
    pub(super) sent: u64,
    /// Packets that the firewall refused because of their source.
    pub(super) refused: Option<u64>,
    /// Packets from here to its nodes' workloads that the guard refused in plaintext.
    pub(super) refused_out: Option<u64>,
    /// The same from its nodes' workloads to here.
    pub(super) refused_in: Option<u64>,
    pub(super) allowed_ips: Vec<IpNet>,
}

/// Packets that the guard refused, by reason. What is 0 is left out.
#[derive(Serialize)]
pub(super) struct GuardReport {
    /// From here to workloads of proven nodes that are no peers now.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) no_peer_out: u64,
    /// The same in the other direction.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) no_peer_in: u64,
    /// From here to a pool's addresses whose node is unproven.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) unproven_out: u64,
    /// The same in the other direction.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) unproven_in: u64,
    /// To an address that is elsewhere than the mesh says; would have left in plaintext.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) returned: u64,
    /// Came from other machines with a local workload's address as the source.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) forged: u64,
    /// ICMP errors about packets between workloads that would have left in plaintext.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) errors: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(packets: &u64) -> bool {
    *packets == 0
}

impl GuardReport {
    /// Of what the guard refused towards and from nodes, only what is not of one of these peers.
    fn new(counters: &GuardCounters, refused: &Refused<'_>, peers: &[Peer<'_>]) -> Self {
        let without_peers = |refused: &BTreeMap<&str, u64>| {
            let is_peer = |name: &&str| peers.iter().any(|peer| peer.nodes.contains(name));
            refused.iter().filter(|(name, _)| !is_peer(name)).map(|(_, packets)| packets).sum()
        };
        Self {
            no_peer_out: without_peers(&refused.outgoing),
            no_peer_in: without_peers(&refused.incoming),
            unproven_out: counters.unproven_out,
            unproven_in: counters.unproven_in,
            returned: counters.returned,
            forged: counters.forged,
            errors: counters.errors,
        }
    }
}

/// What the guard refused, by node.
struct Refused<'a> {
    outgoing: BTreeMap<&'a str, u64>,
    incoming: BTreeMap<&'a str, u64>,
}

impl<'a> Refused<'a> {
    fn new(counters: &GuardCounters, cluster: &'a Cluster, settings: &Settings) -> Self {
        let owners = Owners::of(cluster, settings);
        Self { outgoing: owners.add_up(&counters.outgoing), incoming: owners.add_up(&counters.incoming) }
    }
}

impl<'a> Report<'a> {
    /// The report of a situation; `pending`, `warnings` and `errors` are what planning for it gave.
    pub(super) fn new(
        situation: &'a Situation,
        pending: Vec<Op>,
        warnings: &'a [Warning],
        mut errors: Vec<String>,
    ) -> Self {
        let settings = &situation.config.settings;
        let mut problems: Vec<_> = situation.problems.iter().collect();
        let agent = situation.agent.as_ref();
        if let Some(agent) = agent {
            let reported =
                [&agent.trouble, &agent.membership_error, &agent.settings_error, &agent.proofs_error];
            let reported = reported.into_iter().flatten();
            // The agent reports the same errors, and adds what follows from them.
            let is_reported = |error: &str| reported.clone().any(|reported| reported.starts_with(error));
            errors.retain(|error| !is_reported(error));
            problems.retain(|problem| !is_reported(&problem.what));
            errors.extend(reported.cloned());
        }
        errors.extend(problems.iter().map(ToString::to_string));
        let kernel = situation.kernel.as_ref();
        let interface = kernel.and_then(|kernel| kernel.observed.interface.as_ref());
        let cluster = situation.cluster.as_ref();
        let names = cluster.map(names_by_key).unwrap_or_default();
        let device = kernel.and_then(|kernel| kernel.device.as_ref());
        let guard = kernel.and_then(|kernel| kernel.guard.as_ref());
        let refusals = kernel.and_then(|kernel| kernel.refusals.as_ref());
        let refused = guard.zip(cluster);
        let refused = refused.map(|(guard, cluster)| Refused::new(guard, cluster, settings));
        let peers = device.into_iter().flat_map(|device| &device.peers);
        let peers: Vec<_> =
            peers.map(|(key, peer)| Peer::new(*key, peer, &names, refusals, refused.as_ref())).collect();
        let guard = guard.zip(refused.as_ref());
        let guard = guard.map(|(guard, refused)| GuardReport::new(guard, refused, &peers));
        Self {
            node: &settings.node,
            agent: agent.map(without_what_is_elsewhere),
            mode: if settings.encrypt_host_traffic { "host" } else { "scoped" },
            link: link_mode(settings),
            interface: Interface {
                name: &settings.interface,
                state: match interface {
                    None => "absent",
                    Some(interface) if interface.alias.as_deref() != Some(AGENT_ALIAS) => "foreign",
                    Some(interface) if interface.up => "up",
                    Some(_) => "down",
                },
                backend: kernel.and_then(|kernel| kernel.backend),
                mtu: interface.map(|interface| interface.mtu),
                public_key: device.and_then(|device| device.public_key),
                listen_port: device.map(|device| device.listen_port),
            },
            peers,
            guard,
            standing: &situation.standing,
            unproven_peers: settings.unproven_peers,
            refused_strangers: refusals.map(|refusals| refusals.strangers),
            rules: kernel.map(|kernel| &kernel.observed.rules[..]).unwrap_or_default(),
            pending,
            warnings: warnings.iter().map(WarningReport::from).collect(),
            errors,
        }
    }
}

/// What the agent reports and is nowhere else in the status.
fn without_what_is_elsewhere(agent: &RunFile) -> RunFile {
    RunFile {
        settings: None,
        configured_endpoints: BTreeMap::new(),
        standing: BTreeMap::new(),
        ..agent.clone()
    }
}

fn link_mode(settings: &Settings) -> Option<&'static str> {
    match (settings.peer_lookup, settings.source_check) {
        (PeerLookup::Destination, SourceCheck::AllowedIps) => None,
        (PeerLookup::Destination, _) => Some("the destination selects the peer; sources are not checked"),
        (PeerLookup::Gateway, SourceCheck::Off) => {
            Some("the next hop selects the peer; sources are not checked")
        }
        (PeerLookup::Gateway, _) => Some("the next hop selects the peer; the firewall checks sources"),
    }
}

fn names_by_key(cluster: &Cluster) -> BTreeMap<PublicKey, Vec<&str>> {
    let mut names: BTreeMap<PublicKey, Vec<&str>> = BTreeMap::new();
    for (name, node) in &cluster.nodes {
        if let Some(key) = node.public_key {
            names.entry(key).or_default().push(name);
        }
    }
    names
}

impl<'a> Peer<'a> {
    fn new(
        key: PublicKey,
        peer: &PeerState,
        names: &BTreeMap<PublicKey, Vec<&'a str>>,
        refusals: Option<&Refusals>,
        refused: Option<&Refused<'_>>,
    ) -> Self {
        let nodes = names.get(&key).cloned().unwrap_or_default();
        let sum = |of: &BTreeMap<&str, u64>| nodes.iter().filter_map(|name| of.get(name)).sum();
        Self {
            refused_out: refused.map(|refused| sum(&refused.outgoing)),
            refused_in: refused.map(|refused| sum(&refused.incoming)),
            nodes,
            public_key: key,
            endpoint: peer.endpoint,
            handshake_age_seconds: peer.handshake_age(SystemTime::now()).map(|age| age.as_secs()),
            received: peer.received,
            sent: peer.sent,
            refused: refusals.and_then(|refusals| refusals.peers.get(&LinkAddress::of(key)).copied()),
            allowed_ips: peer.allowed_ips.iter().copied().collect(),
        }
    }
}
