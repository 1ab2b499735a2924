//! The operations that lead from the observed kernel to the desired one, in the words of the kernel.

use std::{collections::BTreeSet, net::SocketAddr};

use ipnet::IpNet;
use serde::Serialize;

use crate::{
    kernel::{Firewall, Route, Rule},
    key::PublicKey,
};

/// One change of the kernel. The order of a list of operations is part of its meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum Op {
    /// Create the interface (with our alias) and the WireGuard device behind it.
    CreateLink {
        /// Bytes.
        mtu: u32,
    },
    /// Change the interface's MTU.
    SetMtu {
        /// Bytes.
        mtu: u32,
    },
    /// Bring the interface up.
    SetUp,
    /// Set the device's private key (which the shell holds) and its port and mark.
    ConfigureDevice {
        /// What the private key's public half must be.
        public_key: PublicKey,
        /// UDP port.
        listen_port: u16,
        /// 0 is none.
        fwmark: u32,
    },
    /// Add a peer or change it, whole.
    SetPeer(SetPeer),
    /// Remove a peer.
    RemovePeer {
        /// Whom.
        public_key: PublicKey,
    },
    /// Add an address to our interface.
    AddAddress {
        /// With its prefix length.
        address: IpNet,
    },
    /// Remove an address from our interface.
    RemoveAddress {
        /// With its prefix length.
        address: IpNet,
    },
    /// Add a route to our table, in place of ours to the same destination if there is one.
    SetRoute(Route),
    /// Remove a route of ours.
    RemoveRoute(Route),
    /// Add a rule.
    AddRule(Rule),
    /// Remove a rule that leads to our table.
    RemoveRule(Rule),
    /// Replace the nftables table `inet wireloom`, atomically.
    SetFirewall(Firewall),
    /// Remove that table.
    RemoveFirewall,
    /// Set a sysctl of an underlay interface; the shell records what it was before.
    SetUnderlaySysctl {
        /// The interface.
        interface: String,
        /// Which.
        sysctl: UnderlaySysctl,
        /// New value.
        value: u8,
    },
    /// Put a sysctl of an underlay interface back to what was recorded.
    RestoreUnderlaySysctl {
        /// The interface.
        interface: String,
        /// Which.
        sysctl: UnderlaySysctl,
    },
}

/// A peer as it shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SetPeer {
    /// Who.
    pub public_key: PublicKey,
    /// Absent: the device's own knowledge of the endpoint stays (roaming).
    pub endpoint: Option<SocketAddr>,
    /// Replaces what it had.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
}

/// The sysctls of an underlay interface that host mode needs (`net.ipv4.conf.IFACE.…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnderlaySysctl {
    /// Loose (2), because ARP requests go through source validation and carry no mark.
    RpFilter,
    /// 1, so that source validation uses the packet's mark.
    SrcValidMark,
}
