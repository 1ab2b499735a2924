//! The operations that lead from the observed kernel to the desired one, in the words of the kernel.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::Serialize;
use wireloom_types::{LinkAddress, PeerLookup, PublicKey, SourceCheck};

use crate::kernel::{Firewall, Route, Rule, Source, UnderlaySysctl};

/// One change of the kernel. The order of a list of operations is part of its meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum Op {
    /// Create the interface (with our alias) and the WireGuard device behind it.
    CreateLink {
        /// Bytes.
        mtu: u32,
        /// Decides on its kind.
        peer_lookup: PeerLookup,
        /// Who judges the sources of what it receives.
        source_check: SourceCheck,
    },
    /// Start a device behind the interface that stayed when its device ended: its addresses,
    /// routes and neighbours are still there.
    StartDevice {
        /// Who judges the sources of what it receives.
        source_check: SourceCheck,
    },
    /// Remove the interface, the WireGuard device behind it and (as the kernel does) its
    /// addresses and the routes through it.
    RemoveLink,
    /// Change the interface's MTU.
    SetMtu {
        /// Bytes.
        mtu: u32,
    },
    /// Bring the interface up.
    SetUp,
    /// Set the device's private key (which the shell holds), its port and mark, and who judges
    /// sources. With another key an interface that is a link loses its neighbours.
    ConfigureDevice {
        /// What the private key's public half must be.
        public_key: PublicKey,
        /// UDP port.
        listen_port: u16,
        /// 0 is none.
        fwmark: u32,
        /// Who judges the sources of what it receives.
        source_check: SourceCheck,
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
    /// Add a permanent neighbour to our interface, in place of whatever is known of the address.
    SetNeighbour {
        /// The peer's IP address on the link.
        address: IpAddr,
        /// The peer.
        link_address: LinkAddress,
    },
    /// Remove a permanent neighbour of ours.
    RemoveNeighbour {
        /// The IP address.
        address: IpAddr,
    },
    /// Add a route to one address to the table `main`, out of our interface.
    AddLinkRoute {
        /// The peer's IP address on the link.
        address: IpAddr,
    },
    /// Remove such a route.
    RemoveLinkRoute {
        /// The IP address.
        address: IpAddr,
    },
    /// Add a route to our table, in place of the one with the same destination and metric if
    /// there is one (`NLM_F_CREATE | NLM_F_REPLACE`): a packet meets the old or the new.
    SetRoute(Route),
    /// Remove a route of ours.
    RemoveRoute(Route),
    /// Add a rule after those of its priority (`NLM_F_CREATE` without `NLM_F_EXCL`:
    /// `rule_exists` of `net/core/fib_rules.c` ignores the invert flag and takes "from all"
    /// for any source, so it would find rules that are not this one).
    AddRule(Rule),
    /// Remove the first rule that matches as `rule_find` of `net/core/fib_rules.c` does: what
    /// is zero or absent in the request matches anything, and the invert flag is not looked
    /// at. The request carries everything that the [`Rule`] has, its protocol included; the
    /// plan counts on this very rule of matching.
    RemoveRule(Rule),
    /// Make these the chains of the nftables table `inet wireloom`.
    ///
    /// This and the operations down to [`Op::RemoveFirewall`] are one transaction when they follow
    /// each other: packets meet the table as it was or as it shall be.
    SetFirewall {
        /// The chains.
        firewall: Firewall,
        /// Whatever is in the table goes first; else the sets stay as they are, counts included.
        anew: bool,
    },
    /// Count this peer's refused packets.
    JudgePeer {
        /// As its packets name it.
        peer: LinkAddress,
    },
    /// Count them no longer, and forget what was counted.
    ForgetPeer {
        /// As its packets named it.
        peer: LinkAddress,
    },
    /// Let a peer send from these addresses.
    AdmitSource(Source),
    /// Let it no longer.
    RefuseSource(Source),
    /// Make these all the sources that are admitted: for many changes at a time, which the kernel
    /// does faster so (removing one of 15,000 from a set of ranges takes it half a millisecond).
    ReplaceSources {
        /// Disjoint for each peer.
        sources: BTreeSet<Source>,
    },
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
    /// Put a sysctl of an underlay interface back to what was recorded, and forget the record;
    /// of an interface that is gone only the record goes.
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
