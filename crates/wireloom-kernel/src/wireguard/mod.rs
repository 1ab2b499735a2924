//! The WireGuard device behind our interface.
//!
//! Either of two back ends carries out a plan: the kernel's own WireGuard over generic netlink
//! ([`in_kernel`]), or the userspace engine in a process of its own ([`userspace`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use serde::Serialize;
use wireloom_plan::op::SetPeer;
use wireloom_types::{
    PeerLookup, PresharedKey, PresharedKeyHash, PrivateKey, PublicKey, SourceCheck, limits::REJECT_AFTER_TIME,
};

pub use self::silence::Silence;
use crate::error::Cause;

pub(crate) mod in_kernel;
pub(crate) mod silence;
pub mod supervisor;
pub(crate) mod userspace;

/// A back end: it carries the packets of our interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The kernel's own WireGuard.
    Kernel,
    /// `wireloom device`, in a process of its own.
    Userspace,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "the kernel's WireGuard",
            Self::Userspace => "the userspace engine",
        })
    }
}

/// The device of our interface, under one back end.
pub(crate) trait WireguardDevice {
    /// Reads the device; `None` when nothing answers for it.
    fn read(&mut self) -> Result<Option<DeviceState>, Cause>;

    /// Creates the interface and the device behind it, unconfigured and down. An interface that outlived the
    /// device before ([`Interface::left`](wireloom_plan::observed::Interface::left)) is taken over as it is.
    fn create(&mut self, peer_lookup: PeerLookup, source_check: SourceCheck) -> Result<(), Cause>;

    /// Makes many changes, in one transaction if the back end has transactions. Peers that gain allowed-IPs
    /// must come before peers that are removed, so that an allowed-IP that moves always has an owner.
    fn change(&mut self, changes: &[Change<'_>]) -> Result<(), Cause>;

    /// Makes sure that the device ends, after its interface was removed.
    fn end(&mut self) -> Result<(), Cause>;
}

/// A change of the device.
pub(crate) enum Change<'a> {
    /// The device's own settings.
    Configure {
        key: &'a PrivateKey,
        listen_port: u16,
        fwmark: u32,
        source_check: SourceCheck,
    },
    /// Adds a peer, or replaces its whole configuration.
    SetPeer {
        peer: &'a SetPeer,
        /// The key with the hash that the peer is to have; absent: none.
        preshared_key: Option<&'a PresharedKey>,
    },
    RemovePeer(PublicKey),
    /// Changes the keepalive interval of an existing peer.
    SetKeepalive {
        public_key: PublicKey,
        /// Absent: unchanged.
        endpoint: Option<SocketAddr>,
        /// 0 is off.
        seconds: u16,
    },
}

/// A device as its back end describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// Derived from the private key; absent when none is set.
    pub public_key: Option<PublicKey>,
    /// UDP port; 0 when none is open.
    pub listen_port: u16,
    /// 0 is none.
    pub fwmark: u32,
    /// Who checks the sources of received packets.
    pub source_check: SourceCheck,
    /// All of its peers.
    pub peers: BTreeMap<PublicKey, PeerState>,
}

/// A peer as its device describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerState {
    /// Where the device sends to now.
    pub endpoint: Option<SocketAddr>,
    /// The peer's allowed-IPs.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// The hash of its preshared key; absent: it has none.
    pub preshared_key: Option<PresharedKeyHash>,
    /// When the last handshake completed.
    pub last_handshake: Option<SystemTime>,
    /// Bytes received from the peer.
    pub received: u64,
    /// Bytes sent to the peer.
    pub sent: u64,
}

impl PeerState {
    /// Whether it may be in a session with us.
    pub fn is_in_session(&self, now: SystemTime) -> bool {
        self.handshake_age(now).is_some_and(|age| age <= REJECT_AFTER_TIME)
    }

    /// The time since the last handshake; zero when the clock was set back since then.
    #[must_use]
    pub fn handshake_age(&self, now: SystemTime) -> Option<Duration> {
        self.last_handshake.map(|then| now.duration_since(then).unwrap_or_default())
    }
}

/// What may be shown of a preshared key that a device has; `None` for the key of zeros, which stands for none.
pub(crate) fn shown(key: &PresharedKey) -> Option<PresharedKeyHash> {
    (!key.is_zero()).then(|| PresharedKeyHash::of(key))
}
