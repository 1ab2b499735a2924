//! The WireGuard device behind our interface.
//!
//! Two back ends carry out one plan: the userspace engine in a process of its own
//! ([`userspace`]), and, when its issue comes, the kernel's WireGuard over generic netlink.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use wireloom_engine::PrivateKey;
use wireloom_plan::{
    key::PublicKey,
    op::SetPeer,
    settings::{PeerLookup, SourceCheck},
};

use super::error::Cause;

mod uapi;
pub(super) mod userspace;

/// What a back end does for the shell.
pub(super) trait Backend {
    /// The device as it is; `None` when nothing answers for it.
    fn read(&mut self) -> Result<Option<DeviceState>, Cause>;

    /// Makes the interface and the device behind it, unconfigured and down. The interface of a link that
    /// is there already is taken over as it is.
    fn create(&mut self, peer_lookup: PeerLookup, source_check: SourceCheck) -> Result<(), Cause>;

    /// Makes many changes in one transaction.
    fn change(&mut self, changes: &[Change<'_>]) -> Result<(), Cause>;

    /// Sees to it that the device goes with its interface, which was removed.
    fn end(&mut self) -> Result<(), Cause>;
}

/// A change of the device.
pub(super) enum Change<'a> {
    /// The device's own settings.
    Configure {
        key: &'a PrivateKey,
        listen_port: u16,
        fwmark: u32,
        source_check: SourceCheck,
    },
    /// A peer, whole.
    SetPeer(&'a SetPeer),
    RemovePeer(PublicKey),
}

/// A device as its back end describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// Derived from its private key; absent when none is set.
    pub public_key: Option<PublicKey>,
    /// UDP port; 0 when none is open.
    pub listen_port: u16,
    /// 0 is none.
    pub fwmark: u32,
    /// Who judges the sources of what it receives.
    pub source_check: SourceCheck,
    /// All of its peers.
    pub peers: BTreeMap<PublicKey, PeerState>,
}

/// A peer as the device describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerState {
    /// Where it sends to now.
    pub endpoint: Option<SocketAddr>,
    /// Its allowed-IPs.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// When the last handshake was completed.
    pub last_handshake: Option<SystemTime>,
    /// Bytes.
    pub received: u64,
    /// Bytes.
    pub sent: u64,
}

impl PeerState {
    /// Time since the last handshake; zero when the clock was set back since.
    #[must_use]
    pub fn handshake_age(&self, now: SystemTime) -> Option<Duration> {
        self.last_handshake.map(|then| now.duration_since(then).unwrap_or_default())
    }
}
