//! What the operator should know although the plan goes on. Each text names the fix.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::Serialize;
use wireloom_types::{LinkAddress, PublicKey};

use crate::{
    bypass::Bypass,
    connections, owner,
    removals::Recurrence,
    routing::{Family, Route, Rule},
};

/// Something about the cluster, the settings or the kernel that may be a mistake.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case", tag = "warning")]
pub enum Warning {
    /// The membership has no key for this node: nothing is encrypted.
    OwnNodeKeyless,
    /// The key in the membership is not that of this node's key file: no peer will answer.
    OwnKeyDiffers {
        /// The key of the key file.
        key_file: PublicKey,
        /// The key that the other nodes see.
        membership: PublicKey,
    },
    /// Several nodes claim the same key: none of them is a peer.
    SharedKey {
        /// The key.
        public_key: PublicKey,
        /// Their names.
        nodes: Vec<String>,
        /// The one that has proved the key, and stays. Without one, all of them are left out.
        kept_by: Option<String>,
    },
    /// The keys of several nodes hash to the same link address: none of them is a peer.
    SharedLinkAddress {
        /// The link address.
        link_address: LinkAddress,
        /// Their names.
        nodes: Vec<String>,
    },
    /// The name of a node's endpoint cannot be resolved now: the last good address stays in force.
    Unresolved {
        /// The node's name.
        node: String,
        /// The name and port of its endpoint.
        endpoint: String,
        /// What the system's resolver says.
        error: String,
    },
    /// A node does not encrypt.
    KeylessNode {
        /// Its name.
        node: String,
    },
    /// A node of which we have a proof has no key now: traffic with its workloads is refused.
    ProvenNodeKeyless {
        /// Its name.
        node: String,
    },
    /// A local workload that no rule covers: its packets leave in plaintext.
    UncoveredWorkload {
        /// Often a single address, which never becomes a rule.
        workload: IpNet,
    },
    /// In scoped mode, a rule takes the host's own packets from this address for a workload's: they enter the
    /// tunnel, and the other end refuses them.
    AddressInScope {
        /// Own address.
        address: IpAddr,
        /// The source of that rule.
        source: IpNet,
    },
    /// In scoped mode, an interface to other machines, such as VXLAN, has an address in this node's workloads that is
    /// not declared: what the host sends from it past the tunnel counts as a workload's, and is refused.
    AddressNotDeclared {
        /// The address.
        address: IpAddr,
    },
    /// `encrypt_host_exempt` has addresses of a pool, which are workloads' and so stay encrypted.
    ExemptPool {
        /// What the setting says.
        prefix: IpNet,
        /// The pool.
        pool: IpNet,
    },
    /// In host mode, a node has connections here of the kind by which machines are administered, and no exempt address.
    TunnelOnly {
        /// Its name.
        node: String,
        /// The address at its end.
        address: IpAddr,
        /// The port of the service, here or there.
        port: u16,
        /// Whether it is so already: we have a proof that the node encrypts, and host mode is not merely prepared.
        already: bool,
    },
    /// In host mode, the machine has no declared address of this family.
    NoOwnAddress {
        /// The family; the mesh uses it.
        family: Family,
    },
    /// A declared address of this node that no interface of its machine has.
    AddressNotHere {
        /// The address.
        address: IpAddr,
    },
    /// Several nodes claim exactly the same prefix.
    ContestedPrefix {
        /// The prefix.
        prefix: IpNet,
        /// The node that gets it.
        taken_by: String,
        /// The nodes that do not get it.
        refused: Vec<String>,
    },
    /// A node's prefix holds prefixes of other nodes that are more than single addresses.
    NestedPrefixes {
        /// The wider prefix.
        prefix: IpNet,
        /// Its owner.
        node: String,
        /// The first narrower prefix of another node; the narrower one wins.
        inner: IpNet,
        /// The number of such narrower prefixes.
        count: usize,
    },
    /// A route in our table that somebody else made.
    ForeignRoute {
        /// The route.
        route: Route,
        /// Whether it is in the place of a route of ours.
        blocks_ours: bool,
    },
    /// A rule that somebody else made leads to our table.
    ForeignRule {
        /// The rule.
        rule: Rule,
    },
    /// Calico's Felix runs here, and our table is one of those that it takes for its own.
    TableOfFelix {
        /// Our table.
        table: u32,
        /// A table that nobody uses.
        free_table: Option<u32>,
    },
    /// Another program deletes our rules again and again.
    RulesDeleted {
        /// Our table.
        table: u32,
        /// How often.
        recurrence: Recurrence,
    },
    /// Something may pass by the guard.
    Bypass {
        /// What it is.
        bypass: Bypass,
    },
    /// A proven node still sends in plaintext, which is refused.
    HasNotProvedUs {
        /// Its name.
        node: String,
    },
    /// Routes of an interface without a device are passed over, so they drop nothing.
    LinkdownIgnored {
        /// The sysctls that say so.
        sysctls: BTreeSet<String>,
    },
    /// Most peers are missing from the mesh, and stay in force for now.
    RemovalsHeld {
        /// The names of the missing nodes.
        nodes: Vec<String>,
        /// When the last of them goes, in seconds from now.
        seconds: u64,
    },
    /// A record of the store, or a part of one, is left out of the mesh.
    LeftOut {
        /// The name of the record.
        record: String,
        /// What is left out and why, and the fix.
        what: String,
    },
    /// The store does not have this node's record as its agent published it.
    RecordNotAsPublished {
        /// Since when, in seconds since 1970.
        since: u64,
    },
    /// Nobody has given this node workloads yet, so its record is not published.
    NoOwnWorkloads,
    /// The operator had this node leave the mesh.
    HasLeft,
    /// The mesh has no pools, so nobody knows which addresses are workloads' but those that nodes have.
    RejectWithoutPools,
    /// `agent.toml` calls a setting by its former name.
    RenamedSetting {
        /// The former name.
        old: &'static str,
        /// The name.
        new: &'static str,
    },
    /// What the store says crosses the network without encryption.
    PlaintextStore {
        /// The first such endpoint, as `agent.toml` has it.
        endpoint: String,
    },
    /// A peer without a declared endpoint.
    NoEndpoint {
        /// Its name.
        node: String,
    },
    /// A workload CIDR of another node lies in no pool: in scoped mode, that node's rules do not cover it; in host
    /// mode, whatever is there is reached through the node.
    WorkloadOutsidePools {
        /// The node's name.
        node: String,
        /// The CIDR.
        workload: IpNet,
        /// Whether this node is in host mode.
        host_mode: bool,
    },
    /// A node without workloads and without addresses on the link: nothing of it is encrypted.
    NodeWithoutWorkloads {
        /// Its name.
        node: String,
    },
    /// This node's endpoint has another port than the one that its device listens on.
    ListenPortDiffers {
        /// Where the device listens.
        listen_port: u16,
        /// Where the other nodes send to.
        endpoint: SocketAddr,
        /// Whether this machine has the endpoint's address itself, so that no NAT can translate the port.
        here: bool,
    },
}

/// How much a warning matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know; may be deliberate.
    Info,
    /// Traffic may not be treated as the operator wants.
    Warning,
    /// Traffic certainly fails or leaves in plaintext.
    Error,
}

impl Severity {
    /// Its name in JSON and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl Warning {
    /// Whether it is about what others made in the kernel, not about the cluster and the settings.
    pub fn is_about_others(&self) -> bool {
        matches!(
            self,
            Self::ForeignRule { .. }
                | Self::ForeignRoute { .. }
                | Self::TableOfFelix { .. }
                | Self::Bypass { .. }
                | Self::LinkdownIgnored { .. }
        )
    }

    /// How much the warning matters.
    pub fn severity(&self) -> Severity {
        match self {
            Self::NoEndpoint { .. }
            | Self::AddressNotHere { .. }
            | Self::ListenPortDiffers { here: false, .. }
            | Self::TunnelOnly { already: true, .. } => Severity::Info,
            Self::OwnNodeKeyless
            | Self::KeylessNode { .. }
            | Self::Unresolved { .. }
            | Self::WorkloadOutsidePools { .. }
            | Self::NodeWithoutWorkloads { .. }
            | Self::ListenPortDiffers { here: true, .. }
            | Self::NestedPrefixes { .. }
            | Self::RenamedSetting { .. }
            | Self::PlaintextStore { .. }
            | Self::HasLeft
            | Self::RejectWithoutPools
            | Self::LeftOut { .. }
            | Self::AddressNotDeclared { .. }
            | Self::ExemptPool { .. }
            | Self::TunnelOnly { already: false, .. }
            | Self::ForeignRule { .. }
            | Self::Bypass { .. }
            | Self::LinkdownIgnored { .. }
            | Self::ForeignRoute { blocks_ours: false, .. } => Severity::Warning,
            Self::OwnKeyDiffers { .. }
            | Self::SharedKey { .. }
            | Self::ProvenNodeKeyless { .. }
            | Self::SharedLinkAddress { .. }
            | Self::UncoveredWorkload { .. }
            | Self::AddressInScope { .. }
            | Self::NoOwnAddress { .. }
            | Self::ContestedPrefix { .. }
            | Self::TableOfFelix { .. }
            | Self::RulesDeleted { .. }
            | Self::NoOwnWorkloads
            | Self::RecordNotAsPublished { .. }
            | Self::HasNotProvedUs { .. }
            | Self::RemovalsHeld { .. }
            | Self::ForeignRoute { blocks_ours: true, .. } => Severity::Error,
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnNodeKeyless => f.write_str(
                "the membership has no public key for this node, so it neither encrypts nor is encrypted to; \
                 publish the key that `wireloom key public` prints",
            ),
            Self::OwnKeyDiffers { key_file, membership } => write!(
                f,
                "this node's key file holds {key_file} but the membership says {membership}: \
                 no peer will answer; publish the former, or put the private key of the latter into the key file",
            ),
            Self::SharedKey { public_key, nodes, kept_by: None } => write!(
                f,
                "nodes {} claim the same key {public_key} and are left out of the mesh; \
                 generate a key of its own for each of them",
                nodes.join(", "),
            ),
            Self::SharedKey { public_key, nodes, kept_by: Some(owner) } => write!(
                f,
                "nodes {} claim the same key {public_key}; {owner} has proved that it has it, and the others are left \
                 out of the mesh; generate a key of its own for each of them",
                nodes.join(", "),
            ),
            Self::SharedLinkAddress { link_address, nodes } => write!(
                f,
                "the keys of nodes {} hash to the same link address {link_address}, so these nodes are left out of the \
                 mesh; generate a new key for one of them",
                nodes.join(", "),
            ),
            Self::RenamedSetting { old, new } => {
                write!(f, "agent.toml calls {new} by its former name {old}; rename it, with the same value")
            }
            Self::PlaintextStore { endpoint } => write!(
                f,
                "the records cross the network to {endpoint} in plaintext: whoever is on the way can read and change \
                 them, and so decides what this node encrypts and for whom; write https://",
            ),
            Self::LeftOut { record, what } => write!(f, "of the record {record:?}: {what}"),
            Self::RecordNotAsPublished { since } => write!(
                f,
                "since {:02}:{:02}:{:02} UTC this node's record in the store is not what its agent published: somebody \
                 else changes or deletes it; this node goes on as it should be, but the other nodes go by the store, \
                 and may send to it in plaintext, or not at all; find out who writes there; `wireloom reload` writes \
                 the record again",
                since / 3600 % 24,
                since / 60 % 60,
                since % 60,
            ),
            Self::NoOwnWorkloads => f.write_str(
                "nobody has given this node workloads yet, so it publishes no record and no peer encrypts with it; it \
                 waits for podCIDRs in its Node or a block of Calico's; write workloads = [\"CIDR\"] in [membership] \
                 if \
                 neither will come",
            ),
            Self::HasLeft => f.write_str(
                "this node has left the mesh, so its traffic is direct; `wireloom join` takes it back",
            ),
            Self::RejectWithoutPools => f.write_str(
                "unproven_peers = \"reject\" refuses plaintext with addresses of pools only, and the mesh has none, so \
                 what no node has is not refused; declare them with pools in [membership]",
            ),
            Self::Unresolved { node, endpoint, error } => write!(
                f,
                "the endpoint {endpoint} of node {node} cannot be resolved: {error}; the last address that it led to, \
                 if any, stays in force; fix the name or the name server: it is tried again by itself",
            ),
            Self::KeylessNode { node } => write!(
                f,
                "node {node} has no public key, so traffic with it is not encrypted; \
                 publish its key, or refuse such traffic with unproven_peers = \"reject\"",
            ),
            Self::ProvenNodeKeyless { node } => write!(
                f,
                "node {node} has proved that it encrypts, but its record has no public key now, or has just vanished, \
                 so traffic with its workloads is refused; put its key back, or write encrypt = false in its record if \
                 it is to be reached in plaintext",
            ),
            Self::UncoveredWorkload { workload } => write!(
                f,
                "local workload {workload} is covered by no rule: what it sends leaves in plaintext; \
                 declare a pool that holds it (or, with scope = \"node\", give this node a block that does)",
            ),
            Self::AddressInScope { address, source } => write!(
                f,
                "this node's own address {address} lies in {source}, so a rule takes the host's traffic for a \
                 workload's and other nodes refuse it; narrow the pool, or set encrypt_host_traffic",
            ),
            Self::AddressNotDeclared { address } => write!(
                f,
                "this machine's address {address} lies in this node's workloads, so what the host sends from it past \
                 the tunnel is refused as a workload's; add it to this node's `addresses`",
            ),
            Self::ExemptPool { prefix, pool } => write!(
                f,
                "encrypt_host_exempt has {prefix}, which overlaps the pool {pool}: what is between workloads stays \
                 encrypted; name addresses of hosts alone",
            ),
            Self::TunnelOnly { node, address, port, already } => {
                let what = connections::service(*port);
                let exempt = IpNet::from(*address);
                write!(
                    f,
                    "{node} has a connection of {what} (port {port}) with this node from {address}, which "
                )?;
                f.write_str(if *already {
                    "is reachable through the tunnel only, so not if a key is wrong; "
                } else {
                    "will be reachable through the tunnel only, once host mode is on and that node has proved that it \
                     encrypts; "
                })?;
                write!(f, "for a way around it, set encrypt_host_exempt = [\"{exempt}\"] on all nodes")
            }
            Self::NoOwnAddress { family } => write!(
                f,
                "this node has no {family} address that it declares: with encrypt_host_traffic the kernel chooses the \
                 source itself, and the other end may refuse it; add the address to this node's `addresses`",
            ),
            Self::AddressNotHere { address } => write!(
                f,
                "the membership gives this node the address {address}, which no interface here has; \
                 remove it from `addresses`, or configure it",
            ),
            Self::ContestedPrefix { prefix, taken_by, refused } => write!(
                f,
                "{prefix} is claimed by {taken_by} and by {}; {taken_by} gets it; \
                 remove it from the `workloads` of all others",
                refused.join(", "),
            ),
            Self::NestedPrefixes { prefix, node, inner, count } => write!(
                f,
                "{prefix} of node {node} holds {count} prefixes of other nodes, for example {inner}, which win; \
                 narrow {prefix}, or remove what lies in it",
            ),
            Self::ForeignRoute { route, blocks_ours } => {
                write!(
                    f,
                    "the route `{route}` in our table is not ours and stays, and packets of workloads that it \
                     matches follow it; ",
                )?;
                f.write_str(if *blocks_ours {
                    "it is in the place of a route of ours: move it to another table"
                } else {
                    "move it to another table"
                })
            }
            Self::ForeignRule { rule } => write!(
                f,
                "the {} rule `{rule}` leads to our table, is not ours and stays; let it look up another table",
                rule.family,
            ),
            Self::TableOfFelix { table, free_table } => write!(
                f,
                "Felix of Calico runs here (nftables has `cali-` chains) and takes table {table} for its own, even \
                 with its WireGuard off: at every refresh, by default every 90 s, it deletes our rules there, and \
                 packets leave in plaintext until they are back; {}",
                owner::advice(*free_table),
            ),
            Self::RulesDeleted { table, recurrence } => write!(
                f,
                "our rules were deleted {recurrence}: another program owns table {table}, and packets leave in \
                 plaintext until our rules are back; find out which one does it, or move away: run `wireloom down`, \
                 set another [routing] table in agent.toml, and start the agent again",
            ),
            Self::Bypass { bypass } => bypass.fmt(f),
            Self::HasNotProvedUs { node } => write!(
                f,
                "{node} has not proved us: it has proved that it encrypts, and yet packets from its workloads come in \
                 plaintext, and are refused; its agent does not run, or does not hear our keepalives (UDP is blocked \
                 on the way there): see `wireloom status` on {node}; if that shows us as proven, somebody else sends \
                 under its addresses",
            ),
            Self::LinkdownIgnored { sysctls } => {
                let zero: Vec<String> = sysctls.iter().map(|sysctl| format!("{sysctl}=0")).collect();
                write!(
                    f,
                    "{} is 1: when the device ends, our routes are passed over and drop nothing, so the guard alone \
                     refuses plaintext; run `sysctl -w {}`",
                    sysctls.iter().map(String::as_str).collect::<Vec<_>>().join(" and "),
                    zero.join(" "),
                )
            }
            Self::RemovalsHeld { nodes, seconds } => write!(
                f,
                "the mesh no longer has {} nodes, most of this node's peers ({}); they stay in force for {seconds} s \
                 and are then removed; if that is meant, run `wireloom reload --now`, otherwise put them back",
                nodes.len(),
                first_of(nodes),
            ),
            Self::WorkloadOutsidePools { node, workload, host_mode: true } => write!(
                f,
                "workloads {workload} of node {node} lie in no pool: all that is sent there goes through the tunnel to \
                 {node}, whoever else has these addresses, except those in encrypt_host_exempt; declare a pool that \
                 holds them, or correct the node's `workloads`",
            ),
            Self::WorkloadOutsidePools { node, workload, host_mode: false } => write!(
                f,
                "workloads {workload} of node {node} lie in no pool, so no rule there covers what they send: it \
                 leaves in plaintext; declare a pool that holds them, or correct the node's `workloads`",
            ),
            Self::NodeWithoutWorkloads { node } => write!(
                f,
                "node {node} has no workloads, so nothing with it is encrypted; add its pod CIDRs to the node's \
                 `workloads`, or remove the node",
            ),
            Self::ListenPortDiffers { listen_port, endpoint, here } => {
                write!(
                    f,
                    "the device listens on UDP port {listen_port}, but the other nodes send to this node's endpoint \
                     {endpoint}; ",
                )?;
                f.write_str(if *here {
                    "set listen_port in agent.toml to the endpoint's port, or correct the endpoint in the mesh"
                } else {
                    "unless a NAT translates that port, correct listen_port in agent.toml or the endpoint in the mesh"
                })
            }
            Self::NoEndpoint { node } => write!(
                f,
                "node {node} declares no endpoint, so only it can start a session; \
                 declare one if others must reach it at any time",
            ),
        }
    }
}

/// The first few of many names.
pub(crate) fn first_of(names: &[String]) -> String {
    const SHOWN: usize = 5;
    match names.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{} and {more} more", names[..SHOWN].join(", ")),
        _ => names.join(", "),
    }
}
