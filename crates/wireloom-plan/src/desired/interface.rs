//! Our interface and the WireGuard device behind it.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::Serialize;
use wireloom_types::{PeerLookup, PublicKey, SourceCheck};

use super::{View, neighbours};
use crate::{paths::LEAST_IPV6_MTU, routing::Family};

/// Bytes that WireGuard over IPv6 adds to a packet: 40 (IPv6) + 8 (UDP) + 16 (header) + 16 (tag).
pub const HEADROOM: u32 = 80;

/// The MTU of an Ethernet underlay in bytes, assumed when no underlay is known.
const ETHERNET_MTU: u32 = 1500;

/// `net.ipv4.route.min_pmtu`: what the kernel takes for the least path MTU of IPv4, bytes.
const LEAST_IPV4_MTU: u32 = 552;

/// The desired WireGuard device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DesiredDevice {
    /// The public half of the device's private key.
    pub public_key: PublicKey,
    /// UDP port.
    pub listen_port: u16,
    /// The mark on the packets that the device sends.
    pub fwmark: u32,
    /// Decides the kind of interface.
    pub peer_lookup: PeerLookup,
    /// Who checks the sources of received packets.
    pub source_check: SourceCheck,
}

impl View<'_> {
    /// As wide as the widest way out to a peer: narrower paths have routes that say so. While no way is known, as the
    /// narrowest interface with an address of this node.
    pub(super) fn interface_mtu(&self) -> u32 {
        let underlay = || self.host.underlays.values().map(|underlay| underlay.mtu).min();
        self.settings.mtu.unwrap_or_else(|| {
            let outer = self.host.paths.widest().or_else(underlay).unwrap_or(ETHERNET_MTU);
            let has_ipv6 = self.families().any(|family| family == Family::V6);
            outer.saturating_sub(HEADROOM).max(if has_ipv6 { LEAST_IPV6_MTU } else { 0 })
        })
    }

    /// [`Self::interface_mtu`], which is derived once.
    pub(crate) fn mtu(&self) -> u32 {
        self.mtu
    }

    /// The longest packet for a peer, if its path carries less than the interface sends.
    pub(super) fn mtu_to(&self, key: PublicKey, family: Family) -> Option<u32> {
        let narrow = self.host.paths.get(key)?.narrower_than(self.mtu)?;
        let least = if family == Family::V6 { LEAST_IPV6_MTU } else { LEAST_IPV4_MTU };
        Some(narrow.max(least)).filter(|mtu| *mtu < self.mtu)
    }

    pub(super) fn device(&self) -> DesiredDevice {
        DesiredDevice {
            public_key: self.host.public_key,
            listen_port: self.settings.listen_port,
            fwmark: self.settings.fwmark,
            peer_lookup: self.settings.peer_lookup,
            source_check: self.settings.source_check,
        }
    }

    /// This node's address inside the tunnel of each family, and its own addresses on the link. Each has a full-length
    /// prefix: a wider one would create a route to addresses that no peer has, and in a partial mesh to peers that are
    /// not there.
    ///
    /// Masquerading on the interface chooses the address inside the tunnel, which the far end accepts. With an IPv4
    /// address on the interface, loose source validation is loose: on one without, it fails whenever a packet comes in
    /// by another interface than the route back (`no_addr` in `__fib_validate_source`, net/ipv4/fib_frontend.c).
    pub(super) fn addresses(&self) -> BTreeSet<IpNet> {
        let on_the_link = neighbours::declared(self.own, self.settings);
        on_the_link.chain(self.tunnel_addresses.into_iter().flatten()).map(IpNet::from).collect()
    }
}
