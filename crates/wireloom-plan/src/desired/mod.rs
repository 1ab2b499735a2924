//! The desired state of this node's kernel: a function of the cluster, the settings and a few facts about
//! this machine.
//!
//! Every object in it follows from a few entries of an index of the cluster's claims, independently of the
//! other objects. That lets [`crate::planner::Planner`] derive again only what one changed node touches.

mod claims;
mod firewall;
mod guard;
mod interface;
mod member;
mod neighbours;
mod owners;
mod peers;
mod routes;
mod rules;
mod sources;
mod warnings;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

pub(crate) use claims::Index;
pub use interface::{DesiredDevice, HEADROOM};
use ipnet::IpNet;
pub(crate) use neighbours::is_link_local;
pub use owners::Owners;
pub use peers::DesiredPeer;
use serde::Serialize;
use sources::{admitted, link_local};

use crate::{
    cluster::{Cluster, Node},
    firewall::{Firewall, Guarded, Source},
    observed::Observed,
    paths::Paths,
    refusal::Refusal,
    routing::{Family, RouteKind, Rule},
    settings::Settings,
    standing::Standings,
    sysctl::UnderlaySysctl,
    warning::Warning,
};
use wireloom_types::{LinkAddress, PresharedKeyHash, PublicKey};

/// The desired state of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Desired {
    /// The interface's name.
    pub interface: String,
    /// The interface's MTU, bytes.
    pub mtu: u32,
    /// The interface's `net.ipv4.conf.IFACE.rp_filter`.
    pub rp_filter: u8,
    /// The WireGuard device itself.
    pub device: DesiredDevice,
    /// The device's peers.
    pub peers: BTreeMap<PublicKey, DesiredPeer>,
    /// Addresses on our interface: this node's address inside the tunnel, and in link mode those on the link.
    pub addresses: BTreeSet<IpNet>,
    /// The peers' IP addresses on the link. Each that is not link-local also gets a host route in the table
    /// `main`.
    pub neighbours: BTreeMap<IpAddr, LinkAddress>,
    /// Routes in our table, by destination.
    pub routes: BTreeMap<IpNet, RouteKind>,
    /// Rules that look up our table.
    pub rules: BTreeSet<Rule>,
    /// Sysctls of underlay interfaces, by interface.
    pub sysctls: BTreeMap<String, BTreeMap<UnderlaySysctl, u8>>,
    /// The chains of the nftables table; absent when no table is needed.
    pub firewall: Option<Firewall>,
    /// The peers for which the table counts refused packets.
    pub judged_peers: BTreeSet<LinkAddress>,
    /// The addresses that the table lets each peer send from.
    pub sources: BTreeSet<Source>,
    /// The elements of the guard's sets.
    pub guarded: BTreeSet<Guarded>,
    /// What the operator should know.
    pub warnings: BTreeSet<Warning>,
}

/// The facts about this machine that the desired state depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The public half of the private key in the key file.
    pub public_key: PublicKey,
    /// The hash of the mesh's preshared key; absent when the mesh has none.
    pub preshared_key: Option<PresharedKeyHash>,
    /// The interfaces that carry this node's own addresses, by name.
    pub underlays: BTreeMap<String, HostUnderlay>,
    /// Those of them and of [`Host::outward`] that validated sources strictly before we changed that.
    pub strict: BTreeSet<String>,
    /// Whether `net.ipv4.conf.all.rp_filter` asks for strict validation of sources.
    pub all_strict: bool,
    /// The interfaces other than ours that lead to other machines.
    pub outward: BTreeSet<String>,
    /// The addresses that the machine has on other interfaces than ours.
    pub here: BTreeSet<IpNet>,
    /// Those of them on interfaces that lead to other machines by their kind.
    pub here_outward: BTreeSet<IpAddr>,
    /// The paths to the peers.
    pub paths: Paths,
}

/// An interface that carries this node's own addresses, without the sysctls that we change ourselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostUnderlay {
    /// Bytes.
    pub mtu: u32,
    /// This node's own addresses on it.
    pub addresses: BTreeSet<IpAddr>,
}

impl Host {
    /// The facts about the machine that was observed, without a preshared key.
    pub fn of(public_key: PublicKey, observed: &Observed) -> Self {
        let underlays = observed
            .underlays
            .iter()
            .map(|(name, underlay)| {
                let facts = HostUnderlay { mtu: underlay.mtu, addresses: underlay.addresses.clone() };
                (name.clone(), facts)
            })
            .collect();
        let is_strict = |name: &&String| {
            let saved = observed.saved_sysctls.get(*name);
            let saved = saved.and_then(|saved| saved.get(&UnderlaySysctl::RpFilter)).copied();
            let rp_filter = saved.or_else(|| observed.sysctl(name, UnderlaySysctl::RpFilter));
            rp_filter.is_some_and(|rp_filter| rp_filter.max(observed.rp_filter_all) == STRICT)
        };
        Self {
            public_key,
            preshared_key: None,
            underlays,
            strict: observed
                .underlays
                .keys()
                .chain(observed.outward.keys())
                .filter(is_strict)
                .cloned()
                .collect(),
            all_strict: observed.rp_filter_all == STRICT,
            outward: observed.outward.keys().cloned().collect(),
            here: observed.here.clone(),
            here_outward: observed.here_outward.clone(),
            paths: observed.paths.clone(),
        }
    }
}

/// `rp_filter`: the source must be reachable through the interface that the packet came in by
/// (Documentation/networking/ip-sysctl.rst).
const STRICT: u8 = 1;

/// Derives the whole desired state.
///
/// # Errors
/// [`Refusal::NodeMissing`] and [`Refusal::NoMark`]: the kernel must stay as it is.
pub fn desired(
    cluster: &Cluster,
    settings: &Settings,
    standings: &Standings,
    host: &Host,
) -> Result<Desired, Refusal> {
    let index = Index::of(cluster, settings, host);
    Ok(View::new(cluster, settings, standings, host, &index)?.desired())
}

/// The cluster as this node sees it.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
    standings: &'a Standings,
    host: &'a Host,
    index: &'a Index,
    /// This node's own entry in the cluster.
    own: &'a Node,
    /// See [`View::can_encrypt`].
    can_encrypt: bool,
    /// See [`View::source`].
    sources: [Option<IpAddr>; 2],
    /// See [`View::tunnel_address`].
    tunnel_addresses: [Option<IpAddr>; 2],
    /// The interface's MTU.
    mtu: u32,
}

impl<'a> View<'a> {
    pub(crate) fn new(
        cluster: &'a Cluster,
        settings: &'a Settings,
        standings: &'a Standings,
        host: &'a Host,
        index: &'a Index,
    ) -> Result<Self, Refusal> {
        if settings.fwmark == 0 {
            return Err(Refusal::NoMark);
        }
        let own = cluster
            .nodes
            .get(&settings.node)
            .ok_or_else(|| Refusal::NodeMissing { node: settings.node.clone() })?;
        let mut view = Self {
            cluster,
            settings,
            standings,
            host,
            index,
            own,
            can_encrypt: false,
            sources: [None; 2],
            tunnel_addresses: [None; 2],
            mtu: 0,
        };
        let is_ours = |key| view.rightful_holder(key) == Some(&settings.node);
        view.can_encrypt = own.public_key.is_some_and(|key| is_ours(key) && is_ours(host.public_key));
        view.mtu = view.interface_mtu();
        view.tunnel_addresses = Family::ALL.map(|family| view.tunnel_address(family));
        if settings.encrypt_host_traffic {
            let here = |family| view.addresses_here().find(|address| Family::of(*address) == family);
            view.sources = Family::ALL.map(here);
        }
        Ok(view)
    }

    /// Derives everything, node by node, from what each node claims and gets.
    pub(crate) fn desired(&self) -> Desired {
        let mut peers = Vec::new();
        let mut neighbours = Vec::new();
        let mut routes = Vec::new();
        let mut judged_peers = Vec::new();
        let mut sources = Vec::new();
        let mut guarded = self.guarded_of_all();
        let mut warnings: BTreeSet<_> = self.general_warnings().collect();
        for (name, node) in &self.cluster.nodes {
            let member = self.member_of(name, node);
            let owned: Vec<_> = self.owned(&member).collect();
            let route = |prefix| self.route_to(&member, prefix).map(|kind| (prefix, kind));
            routes.extend(owned.iter().filter_map(|claim| route(claim.prefix)));
            neighbours.extend(member.neighbours());
            if let Some(peer) = member.peer {
                let allowed_ips = owned.iter().map(|claim| claim.prefix).collect();
                peers.push((peer.key, self.peer_with(&member, allowed_ips)));
            }
            if let Some(peer) = self.judged_peer(&member) {
                judged_peers.push(peer);
                sources.extend(owned.iter().flat_map(|claim| admitted(claim, peer)));
                sources.push(link_local(peer));
            }
            guarded.extend(owned.iter().flat_map(|claim| self.guarded_in(claim, &member)));
            warnings.extend(self.warnings_of_member(&member));
            warnings.extend(owned.iter().flat_map(|claim| self.warnings_of_claim(claim)));
        }
        Desired {
            interface: self.settings.interface.clone(),
            mtu: self.mtu,
            rp_filter: self.rp_filter(),
            device: self.device(),
            peers: peers.into_iter().collect(),
            addresses: self.addresses(),
            neighbours: neighbours.into_iter().collect(),
            routes: routes.into_iter().collect(),
            rules: self.rules(),
            sysctls: self.sysctls(),
            firewall: self.firewall(),
            judged_peers: judged_peers.into_iter().collect(),
            sources: sources.into_iter().collect(),
            guarded,
            warnings,
        }
    }

    /// This node's own addresses that its machine really has.
    fn addresses_here(&self) -> impl Iterator<Item = IpAddr> + use<'a> {
        let host = self.host;
        self.own
            .addresses
            .iter()
            .copied()
            .filter(|address| host.underlays.values().any(|underlay| underlay.addresses.contains(address)))
    }

    fn is_own(&self, name: &str) -> bool {
        name == self.settings.node
    }
}
