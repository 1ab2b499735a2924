//! Replies to clients.

use std::{fmt::Write, net::SocketAddr, num::NonZeroU16, time::Duration};

use ipnet::IpNet;
use wireloom_proto::{Instant, PeerStatus, UnixTime};
use wireloom_types::{LinkAddress, Mode, PresharedKey, PublicKey};
use zeroize::Zeroizing;

use crate::{drops::Drops, link::Link};

/// An error number as in errno.h. The protocol has nothing else for errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

impl Errno {
    pub(crate) const EINVAL: Self = Self(libc::EINVAL);
    pub(crate) const E2BIG: Self = Self(libc::E2BIG);
    pub(crate) const EIO: Self = Self(libc::EIO);
    pub(crate) const EEXIST: Self = Self(libc::EEXIST);
}

/// The reply to a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// What was asked for, to be written down by the client's thread.
    State(State),
    /// The lines that were asked for. They may contain keys.
    Lines(Zeroizing<String>),
    /// The changes are in force.
    Done,
    /// The request is refused, and nothing has changed.
    Refused(Errno),
}

/// A part of the device's state as it was when a client asked for it. Copying the state of 5,000 peers takes a tenth of
/// the time that writing it down takes, and handshakes wait meanwhile.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum State {
    Device(DeviceLines, Vec<PeerLines>),
    Link(Mode, LinkAddress, Vec<PathLines>),
    Paths(Vec<PathLines>),
}

/// The state of a device without its peers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DeviceLines {
    pub(crate) private_key: Option<Zeroizing<String>>,
    /// The UDP port; 0 when none is chosen yet.
    pub(crate) listen_port: u16,
    /// The firewall mark; 0 is none.
    pub(crate) fwmark: u32,
}

/// The state of a peer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PeerLines {
    public_key: PublicKey,
    /// In hexadecimal: a key that is copied and moved leaves copies behind, and a string's letters stay in place.
    preshared_key: Option<Zeroizing<String>>,
    protocol_version: u32,
    endpoint: Option<SocketAddr>,
    last_handshake: Option<UnixTime>,
    sent_bytes: u64,
    received_bytes: u64,
    persistent_keepalive: Option<NonZeroU16>,
    allowed_ips: Vec<IpNet>,
}

/// What is known of the way to a peer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PathLines {
    public_key: PublicKey,
    is_reachable: bool,
    /// Bytes; `None` when nothing is known.
    path_mtu: Option<usize>,
}

/// The reply to `get=1`.
pub(crate) fn device<'a>(device: DeviceLines, peers: impl Iterator<Item = PeerStatus<'a>>) -> Reply {
    let peers = peers.map(|peer| PeerLines {
        public_key: *peer.public_key,
        preshared_key: peer.preshared_key.map(PresharedKey::expose_hex),
        protocol_version: peer.protocol_version,
        endpoint: peer.endpoint.map(|endpoint| endpoint.remote),
        last_handshake: peer.last_handshake,
        sent_bytes: peer.sent_bytes,
        received_bytes: peer.received_bytes,
        persistent_keepalive: peer.persistent_keepalive,
        allowed_ips: peer.allowed_ips.iter().copied().collect(),
    });
    Reply::State(State::Device(device, peers.collect()))
}

/// The reply to `get_drops=1`.
pub(crate) fn drops(drops: &Drops) -> Reply {
    let mut text = Lines::default();
    for (reason, count) in drops.iter() {
        text.line(reason, count);
    }
    Reply::Lines(text.0)
}

/// The reply to `get_handover=1`. `waited` is how long packets waited for the hand-over to this process, if that is how
/// it got the interface.
pub(crate) fn handover(process: u32, waited: Option<Duration>) -> Reply {
    let mut text = Lines::default();
    text.line("process", process);
    if let Some(waited) = waited {
        text.line("waited_us", waited.as_micros());
    }
    Reply::Lines(text.0)
}

/// The reply to `get_link=1`.
pub(crate) fn link<'a>(
    now: Instant,
    mode: Mode,
    link: Option<&Link>,
    peers: impl Iterator<Item = PeerStatus<'a>>,
) -> Reply {
    if let Some(link) = link {
        return Reply::State(State::Link(mode, link.table().own(), path_lines(now, peers)));
    }
    let mut text = Lines::default();
    text.mode(mode);
    Reply::Lines(text.0)
}

/// The reply to `get_paths=1`.
pub(crate) fn paths<'a>(now: Instant, peers: impl Iterator<Item = PeerStatus<'a>>) -> Reply {
    Reply::State(State::Paths(path_lines(now, peers)))
}

fn path_lines<'a>(now: Instant, peers: impl Iterator<Item = PeerStatus<'a>>) -> Vec<PathLines> {
    let lines = |peer: PeerStatus<'_>| PathLines {
        public_key: *peer.public_key,
        is_reachable: peer.path.is_reachable(),
        path_mtu: peer.path.path_mtu(now),
    };
    peers.map(lines).collect()
}

impl State {
    fn into_lines(self) -> Zeroizing<String> {
        let mut text = Lines::default();
        match self {
            Self::Device(device, peers) => {
                text.device(&device);
                for peer in peers {
                    text.peer(&peer);
                }
            }
            Self::Link(mode, own, paths) => {
                text.mode(mode);
                text.line("link_address", own);
                for path in paths {
                    text.line("public_key", path.public_key.to_hex());
                    text.line("link_address", LinkAddress::of(path.public_key));
                    text.line("reachable", path.is_reachable);
                    text.path_mtu(&path);
                }
            }
            Self::Paths(paths) => {
                for path in paths {
                    text.line("public_key", path.public_key.to_hex());
                    text.path_mtu(&path);
                }
            }
        }
        text.0
    }
}

#[derive(Default)]
struct Lines(Zeroizing<String>);

impl Lines {
    fn line(&mut self, key: &str, value: impl std::fmt::Display) {
        // A string that grows leaves its old memory behind. It may contain keys, so it has to be wiped.
        if self.0.capacity() - self.0.len() < LINE_MAX {
            let mut larger = Zeroizing::new(String::with_capacity(2 * self.0.capacity() + FIRST_CAPACITY));
            larger.push_str(&self.0);
            self.0 = larger;
        }
        writeln!(self.0, "{key}={value}").expect("writing to a string cannot fail");
    }

    fn device(&mut self, device: &DeviceLines) {
        if let Some(key) = &device.private_key {
            self.line("private_key", key.as_str());
        }
        if device.listen_port != 0 {
            self.line("listen_port", device.listen_port);
        }
        if device.fwmark != 0 {
            self.line("fwmark", device.fwmark);
        }
    }

    fn mode(&mut self, mode: Mode) {
        self.line("peer_lookup", mode.peer_lookup());
        self.line("source_check", mode.source_check());
    }

    fn path_mtu(&mut self, path: &PathLines) {
        if let Some(path_mtu) = path.path_mtu {
            self.line("path_mtu", path_mtu);
        }
    }

    fn peer(&mut self, peer: &PeerLines) {
        self.line("public_key", peer.public_key.to_hex());
        if let Some(key) = &peer.preshared_key {
            self.line("preshared_key", key.as_str());
        }
        self.line("protocol_version", peer.protocol_version);
        if let Some(endpoint) = peer.endpoint {
            self.line("endpoint", endpoint);
        }
        let handshake = peer.last_handshake.map(UnixTime::since_epoch).unwrap_or_default();
        self.line("last_handshake_time_sec", handshake.as_secs());
        self.line("last_handshake_time_nsec", handshake.subsec_nanos());
        self.line("tx_bytes", peer.sent_bytes);
        self.line("rx_bytes", peer.received_bytes);
        self.line("persistent_keepalive_interval", peer.persistent_keepalive.map_or(0, NonZeroU16::get));
        for network in &peer.allowed_ips {
            self.line("allowed_ip", network);
        }
    }
}

/// More bytes than any line written here has.
const LINE_MAX: usize = 128;
const FIRST_CAPACITY: usize = 4096;

impl Reply {
    /// The same reply with its state written down.
    #[cfg(test)]
    pub(crate) fn into_lines(self) -> Self {
        match self {
            Self::State(state) => Self::Lines(state.into_lines()),
            other => other,
        }
    }

    /// The text for the client. `wg` expects the error of a `get` as a positive number and that of a `set` as a
    /// negative one, as wireguard-go writes it, whatever the specification says.
    pub(crate) fn into_text(self, to_a_set: bool) -> Zeroizing<String> {
        let sign = if to_a_set { -1 } else { 1 };
        // `Lines` has kept room for this, so no memory with keys is left behind by a reallocation.
        let successful = |mut text: Zeroizing<String>| {
            text.push_str("errno=0\n\n");
            text
        };
        match self {
            Self::State(state) => successful(state.into_lines()),
            Self::Lines(text) => successful(text),
            Self::Done => Zeroizing::new("errno=0\n\n".into()),
            Self::Refused(Errno(number)) => Zeroizing::new(format!("errno={}\n\n", sign * number)),
        }
    }
}
