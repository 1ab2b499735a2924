//! How long a packet may be on its way to each peer.
//!
//! ```text
//!  kernel ──which interface, its MTU, what ICMP told──▶ Paths ──▶ desired: the interface's MTU, `mtu` of routes
//!  echoes through the tunnel ──▶ Prober ──what came through──┘
//! ```
//!
//! The interface is as wide as the widest way out of this machine. A route to a peer whose path is narrower says so,
//! and the kernel itself tells senders, with ICMP errors.

mod prober;
mod target;

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize, Serializer};
use wireloom_types::PublicKey;

pub use self::{
    prober::{Check, Echo, Prober},
    target::{Target, targets},
};
use crate::routing::Family;

/// Payloads are padded to a multiple of this many bytes (section 5.4.6 of the WireGuard paper).
const PADDING: u32 = 16;

/// Every link carries IPv6 packets of this many bytes (section 5 of RFC 8200). The kernel takes IPv6 away from an
/// interface with a smaller MTU.
pub(crate) const LEAST_IPV6_MTU: u32 = 1280;

/// Every IPv4 host takes packets of this many bytes (section 3.1 of RFC 791).
const LEAST_IPV4_MTU: u32 = 576;

/// 40 (IPv6) + 20 (TCP).
const TCP_HEADERS_V6: u32 = 60;

/// The bytes that WireGuard adds to a padded packet: 20 or 40 (IP) + 8 (UDP) + 16 (header) + 16 (tag).
pub const fn overhead(outer: Family) -> u32 {
    match outer {
        Family::V4 => 60,
        Family::V6 => 80,
    }
}

/// How the MTU of a path is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Known {
    /// It is that of the interface or route by which the packets leave. Nothing is known of what comes after.
    Interface,
    /// A router on the path reported it, with an ICMP error.
    Reported,
    /// Longer packets were lost.
    Probed,
}

/// The path to a peer's endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Path {
    /// The family of the endpoint.
    pub outer: Family,
    /// The MTU of the interface or route by which packets leave this machine, bytes.
    pub way_out: u32,
    /// The longest packet that the whole path carries, as far as is known; at most [`Path::way_out`]. Bytes.
    pub mtu: u32,
    /// How the latter is known.
    pub known: Known,
}

impl Path {
    /// The longest packet that fits into the path once it is padded and encrypted, bytes.
    pub fn inner(&self) -> u32 {
        let fits = self.mtu.saturating_sub(overhead(self.outer));
        fits - fits % PADDING
    }

    /// The longest packet inside of the tunnel that all peers must make way for. They pay for it, so a report, which
    /// anybody can forge, counts no further than to what IPv6 needs.
    fn inner_for_all(&self) -> u32 {
        let least = match (self.outer, self.known) {
            (Family::V4, Known::Interface | Known::Probed) => LEAST_IPV4_MTU,
            (Family::V4, Known::Reported) | (Family::V6, _) => LEAST_IPV6_MTU,
        };
        Self { mtu: self.mtu.max(least), ..*self }.inner()
    }

    /// What a route to the peer must say, if the path carries less than an interface of this MTU sends. Such an
    /// interface pads no packet beyond its MTU.
    pub fn narrower_than(&self, interface: u32) -> Option<u32> {
        (self.mtu < interface + overhead(self.outer)).then(|| self.inner().min(interface))
    }

    /// The same path, if packets that are longer than `inner` inside of the tunnel are lost.
    #[must_use]
    pub fn probed(self, inner: u32) -> Self {
        let mtu = inner + overhead(self.outer);
        if mtu < self.mtu { Self { mtu, known: Known::Probed, ..self } } else { self }
    }
}

/// What is known of the path to a node, for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The longest packet that it carries, bytes; absent while no way to the node is known.
    pub mtu: Option<u32>,
    /// How that is known.
    pub known: Option<Known>,
    /// What probes say. Only they find a router that drops long packets without a report.
    pub check: Check,
}

/// The paths to the peers, by their keys. Clones share them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    by_peer: Arc<BTreeMap<PublicKey, Path>>,
    widest: Option<u32>,
    least_inner: Option<u32>,
}

impl Paths {
    /// The path to the peer with this key; `None` if it has no endpoint, or no route leads there.
    pub fn get(&self, key: PublicKey) -> Option<&Path> {
        self.by_peer.get(&key)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (PublicKey, &Path)> {
        self.by_peer.iter().map(|(key, path)| (*key, path))
    }

    /// The greatest MTU of a way out, bytes.
    pub fn widest(&self) -> Option<u32> {
        self.widest
    }

    /// The longest TCP segment over IPv6 that all paths carry, if one does not carry IPv6 packets of the least MTU.
    /// Bytes, at least 452; at least 1140 because of reports and because of IPv6 paths.
    pub fn segment_v6(&self) -> Option<u16> {
        let least = self.least_inner.filter(|inner| *inner < LEAST_IPV6_MTU)?;
        u16::try_from(least.saturating_sub(TCP_HEADERS_V6)).ok()
    }
}

impl FromIterator<(PublicKey, Path)> for Paths {
    fn from_iter<T: IntoIterator<Item = (PublicKey, Path)>>(paths: T) -> Self {
        let by_peer: BTreeMap<_, _> = paths.into_iter().collect();
        Self {
            widest: by_peer.values().map(|path| path.way_out).max(),
            least_inner: by_peer.values().map(Path::inner_for_all).min(),
            by_peer: Arc::new(by_peer),
        }
    }
}

impl Serialize for Paths {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.by_peer.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(outer: Family, mtu: u32) -> Path {
        Path { outer, way_out: 1500, mtu, known: Known::Reported }
    }

    #[test]
    fn what_fits_is_padded() {
        for (outer, mtu, inner) in [
            (Family::V4, 1400, 1328),
            (Family::V6, 1400, 1312),
            (Family::V4, 1368, 1296),
            (Family::V6, 1368, 1280),
            (Family::V4, 1280, 1216),
            (Family::V6, 1280, 1200),
            (Family::V4, 40, 0),
        ] {
            assert_eq!(path(outer, mtu).inner(), inner, "{outer} {mtu}");
        }
    }

    #[test]
    fn a_path_is_narrow_if_the_interfaces_longest_packet_does_not_fit() {
        // The longest packets are not padded, so they fit although 1420 is no multiple of 16.
        assert_eq!(path(Family::V6, 1500).narrower_than(1420), None);
        assert_eq!(path(Family::V6, 1499).narrower_than(1420), Some(1408));
        assert_eq!(path(Family::V4, 1480).narrower_than(1420), None);
        assert_eq!(path(Family::V4, 1479).narrower_than(1420), Some(1408));
        // An operator set 1500.
        assert_eq!(path(Family::V4, 1500).narrower_than(1500), Some(1440));
    }

    #[test]
    fn a_probe_only_narrows() {
        let reported = path(Family::V4, 1400);
        assert_eq!(reported.probed(1420), reported);
        let probed = reported.probed(1280);
        assert_eq!((probed.mtu, probed.inner(), probed.known), (1340, 1280, Known::Probed));
    }

    #[test]
    fn ipv6_segments_are_limited_where_its_least_packets_do_not_fit() {
        let segment = |outer, known, mtus: &[u32]| {
            let path = |mtu: &u32| Path { known, ..path(outer, *mtu) };
            let paths = mtus.iter().zip(1..).map(|(mtu, key)| (PublicKey::from_bytes([key; 32]), path(mtu)));
            paths.collect::<Paths>().segment_v6()
        };
        for known in [Known::Interface, Known::Reported, Known::Probed] {
            assert_eq!(segment(Family::V4, known, &[1500, 1340]), None);
            assert_eq!(segment(Family::V4, known, &[1500, 1339, 1400]), Some(1204));
            assert_eq!(segment(Family::V6, known, &[1500, 1360]), None);
            assert_eq!(segment(Family::V6, known, &[1500, 1280]), Some(1140));
            assert_eq!(segment(Family::V6, known, &[1500, 552]), Some(1140));
            assert_eq!(segment(Family::V4, known, &[]), None);
        }
        // Anybody can forge this one.
        assert_eq!(segment(Family::V4, Known::Reported, &[552]), Some(1156));
        assert_eq!(segment(Family::V4, Known::Probed, &[1006]), Some(884));
        assert_eq!(segment(Family::V4, Known::Probed, &[100]), Some(452));
    }
}
