//! The WireGuard device behind our interface.
//!
//! Two back ends carry out one plan: the kernel's own WireGuard over generic netlink ([`kernel`]),
//! and the userspace engine in a process of its own ([`userspace`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use serde::Serialize;
use wireloom_plan::op::SetPeer;
use wireloom_types::{PeerLookup, PrivateKey, PublicKey, SourceCheck, limits::REJECT_AFTER_TIME};

use super::error::Cause;

pub(super) mod kernel;
mod uapi;
pub(super) mod userspace;

/// Who carries the packets of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Implementation {
    /// The kernel's own WireGuard.
    Kernel,
    /// `wireloom device`, in a process of its own.
    Userspace,
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "the kernel's WireGuard",
            Self::Userspace => "the userspace engine",
        })
    }
}

/// What a back end does for the shell.
pub(super) trait Backend {
    /// The device as it is; `None` when nothing answers for it.
    fn read(&mut self) -> Result<Option<DeviceState>, Cause>;

    /// Makes the interface and the device behind it, unconfigured and down. The interface of a link that
    /// is there already is taken over as it is.
    fn create(&mut self, peer_lookup: PeerLookup, source_check: SourceCheck) -> Result<(), Cause>;

    /// Makes many changes, in one transaction where the back end has such. Peers that get something
    /// come before those that are removed, so that what moves is nobody's at no time.
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
    /// Of a peer that is there only this.
    SetKeepalive {
        public_key: PublicKey,
        /// Absent: stays as it is.
        endpoint: Option<SocketAddr>,
        /// 0 is off.
        seconds: u16,
    },
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
    /// True when it may be in a session with us.
    pub(super) fn is_in_session(&self, now: SystemTime) -> bool {
        self.handshake_age(now).is_some_and(|age| age <= REJECT_AFTER_TIME)
    }

    /// Time since the last handshake; zero when the clock was set back since.
    #[must_use]
    pub fn handshake_age(&self, now: SystemTime) -> Option<Duration> {
        self.last_handshake.map(|then| now.duration_since(then).unwrap_or_default())
    }
}
