//! What can be wrong on a node. Its text is in `wording`.

use std::{
    mem::{Discriminant, discriminant},
    net::SocketAddr,
};

use ipnet::IpNet;
use serde::Serialize;
use wireloom_types::PublicKey;

use super::{DroppingChain, MarkUser, PolicyRule};
use crate::{
    routing::{Family, Rule},
    settings::HostTransition,
    warning::Severity,
};

/// Something that is wrong on this node. The text names what, where, why and the fix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case", tag = "warning")]
pub enum Finding {
    /// Nothing of ours is on this machine.
    NothingProgrammed,
    /// No agent runs.
    AgentNotRunning,
    /// The agent runs and has not looked at the kernel for long.
    AgentStuck {
        /// For how long, seconds.
        seconds: u64,
    },
    /// Our interface does not exist.
    InterfaceMissing {
        /// Its name.
        interface: String,
    },
    /// Our interface is down.
    InterfaceDown {
        /// Its name.
        interface: String,
    },
    /// Nothing answers for our interface.
    DeviceAbsent {
        /// Its name.
        interface: String,
    },
    /// The WireGuard device is there and does not answer.
    DeviceSilent {
        /// For how long, seconds.
        seconds: u64,
    },
    /// Rules of ours are missing.
    RulesMissing {
        /// One of them.
        rule: Rule,
        /// How many there are.
        count: usize,
    },
    /// Routes of ours into the tunnel are missing.
    RoutesMissing {
        /// Our table.
        table: u32,
        /// The destination of one of them.
        destination: IpNet,
        /// How many there are.
        count: usize,
    },
    /// The guard is missing, or somebody changed it.
    GuardMissing,
    /// A foreign rule takes packets between workloads away from ours.
    ForeignRule {
        /// The rule.
        rule: PolicyRule,
        /// A local workload CIDR that it matches.
        workload: IpNet,
        /// It has selectors besides addresses, so that it takes some packets only.
        sometimes: bool,
        /// Whether the guard refuses what it leads past the tunnel.
        refused: bool,
    },
    /// This machine does not forward packets of a family that its workloads use.
    ForwardingOff {
        /// The family.
        family: Family,
    },
    /// A base chain of somebody else drops what it does not accept.
    Dropper {
        /// The chain.
        chain: DroppingChain,
        /// The UDP port of encrypted packets.
        port: u16,
        /// The name of our interface.
        interface: String,
    },
    /// A peer was asked for a handshake, and there never was one.
    NeverAnswered {
        /// Its name.
        node: String,
        /// Where it was asked.
        endpoint: Option<SocketAddr>,
        /// The key that the mesh has for it.
        public_key: Option<PublicKey>,
        /// For how long, seconds, if that is known.
        seconds: Option<u64>,
    },
    /// A peer does not answer any more.
    Silent {
        /// Its name.
        node: String,
        /// Where it is asked.
        endpoint: Option<SocketAddr>,
        /// For how long, seconds.
        seconds: u64,
    },
    /// Encrypted packets to a peer would go through the tunnel themselves.
    EndpointThroughTunnel {
        /// The peer's name.
        node: String,
        /// Its endpoint.
        endpoint: SocketAddr,
        /// The name of our interface.
        interface: String,
    },
    /// This machine has no route to a peer's endpoint.
    NoRouteToEndpoint {
        /// The peer's name.
        node: String,
        /// Its endpoint.
        endpoint: SocketAddr,
    },
    /// The configured MTU of our interface is larger than the way to peers carries.
    MtuTooLarge {
        /// Bytes.
        mtu: u32,
        /// The interface that the encrypted packets leave by.
        interface: String,
        /// What it carries without fragments, of packets inside the tunnel. Bytes.
        carries: u32,
    },
    /// Peers sent through the tunnel from addresses that they may not have.
    SourceNotAllowed {
        /// Packets in the last minute.
        packets: u64,
    },
    /// Somebody whose key no node has asks for handshakes.
    UnknownPeer {
        /// Handshakes in the last minute.
        packets: u64,
    },
    /// Somebody asks for handshakes with another key than ours.
    BadMac1 {
        /// Handshakes in the last minute.
        packets: u64,
        /// Our key, if the device tells.
        public_key: Option<PublicKey>,
    },
    /// A peer asks for handshakes that are older than an earlier one.
    StaleTimestamp {
        /// Handshakes in the last minute.
        packets: u64,
    },
    /// This machine's clock was set back.
    ClockSetBack {
        /// By at least how much, seconds.
        seconds: u64,
    },
    /// The table `main` has no route to workloads of other nodes.
    NoRouteToWorkloads {
        /// One of them.
        workload: IpNet,
        /// The node that has it.
        node: String,
        /// How many there are.
        count: usize,
        /// Whether the node of one is unproven, so that all traffic with it needs such a route.
        unproven: bool,
    },
    /// The table `main` has no route to local workloads.
    LocalWorkloadWithoutRoute {
        /// Their CIDR.
        workload: IpNet,
    },
    /// Another program uses bits of our mark.
    MarkCollision {
        /// Our mark.
        mark: u32,
        /// The program.
        user: MarkUser,
    },
    /// This node is on its way into host mode, or out of it.
    HostTransition {
        /// How far.
        step: HostTransition,
    },
    /// systemd-networkd removes our rules when it starts.
    NetworkdRemovesRules,
}

impl Finding {
    /// How much it matters.
    pub fn severity(&self) -> Severity {
        match self {
            Self::NetworkdRemovesRules
            | Self::HostTransition { .. }
            | Self::NoRouteToWorkloads { unproven: false, .. } => Severity::Info,
            Self::AgentNotRunning
            | Self::AgentStuck { .. }
            | Self::ForeignRule { sometimes: true, .. }
            | Self::Dropper { .. }
            | Self::NeverAnswered { .. }
            | Self::Silent { .. }
            | Self::NoRouteToEndpoint { .. }
            | Self::MtuTooLarge { .. }
            | Self::SourceNotAllowed { .. }
            | Self::UnknownPeer { .. }
            | Self::BadMac1 { .. }
            | Self::StaleTimestamp { .. }
            | Self::NoRouteToWorkloads { unproven: true, .. }
            | Self::LocalWorkloadWithoutRoute { .. }
            | Self::MarkCollision { .. } => Severity::Warning,
            Self::NothingProgrammed
            | Self::InterfaceMissing { .. }
            | Self::InterfaceDown { .. }
            | Self::DeviceAbsent { .. }
            | Self::DeviceSilent { .. }
            | Self::RulesMissing { .. }
            | Self::RoutesMissing { .. }
            | Self::GuardMissing
            | Self::ForeignRule { sometimes: false, .. }
            | Self::ForwardingOff { .. }
            | Self::EndpointThroughTunnel { .. }
            | Self::ClockSetBack { .. } => Severity::Error,
        }
    }

    /// What it is about: two findings with the same subject differ in numbers only, and a log that had one need not
    /// have the other.
    pub fn subject(&self) -> (Discriminant<Self>, String) {
        let of = match self {
            Self::NeverAnswered { node, .. }
            | Self::Silent { node, .. }
            | Self::EndpointThroughTunnel { node, .. }
            | Self::NoRouteToEndpoint { node, .. } => node.clone(),
            Self::ForeignRule { rule, .. } => rule.to_string(),
            Self::ForwardingOff { family } => family.to_string(),
            Self::Dropper { chain, .. } => chain.to_string(),
            Self::LocalWorkloadWithoutRoute { workload } => workload.to_string(),
            Self::MtuTooLarge { interface, .. } => interface.clone(),
            Self::MarkCollision { user, .. } => user.to_string(),
            _ => String::new(),
        };
        (discriminant(self), of)
    }
}
