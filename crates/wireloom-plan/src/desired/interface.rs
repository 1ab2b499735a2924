//! Our interface and the WireGuard device behind it.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::Serialize;
use wireloom_types::{PeerLookup, PublicKey, SourceCheck};

use super::{View, firewall::LOOSE, neighbours};

/// Bytes that WireGuard over IPv6 adds to a packet: 40 (IPv6) + 8 (UDP) + 16 (header) + 16 (tag).
pub const HEADROOM: u32 = 80;

/// The MTU of an Ethernet underlay in bytes, assumed when no underlay is known.
const ETHERNET_MTU: u32 = 1500;

/// `rp_filter`: no validation of sources (Documentation/networking/ip-sysctl.rst).
const OFF: u8 = 0;

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

impl DesiredDevice {
    /// `rp_filter` of our interface, given that of all interfaces: loose, as strict validation would fail. Off where
    /// allowed-IPs do not limit the sources: loose validation would drop what no route leads back to, such as the errors
    /// of a router beyond a peer. But where all interfaces are strict, an interface can only be loose, since the greater
    /// value applies.
    pub(crate) fn rp_filter(&self, all: u8) -> u8 {
        if self.source_check == SourceCheck::AllowedIps || all != OFF { LOOSE } else { OFF }
    }
}

impl View<'_> {
    pub(super) fn mtu(&self) -> u32 {
        let underlay = || self.host.underlays.values().map(|underlay| underlay.mtu).min();
        self.settings.mtu.unwrap_or_else(|| underlay().unwrap_or(ETHERNET_MTU).saturating_sub(HEADROOM))
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
