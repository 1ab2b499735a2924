//! Replies to clients.

use std::fmt::Write;

use wireloom_proto::{Instant, PeerPath, PeerStatus, UnixTime};
use wireloom_types::{LinkAddress, Mode};
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
    pub(crate) const ENODEV: Self = Self(libc::ENODEV);
}

/// The reply to a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The lines that were asked for. They may contain keys.
    Lines(Zeroizing<String>),
    /// The changes are in force.
    Done,
    /// The request is refused, and nothing has changed.
    Refused(Errno),
}

/// The state of a device without its peers.
pub(crate) struct DeviceLines {
    pub(crate) private_key: Option<Zeroizing<String>>,
    /// The UDP port; 0 when none is chosen yet.
    pub(crate) listen_port: u16,
    /// The firewall mark; 0 is none.
    pub(crate) fwmark: u32,
}

/// The reply to `get=1`.
pub(crate) fn device<'a>(device: &DeviceLines, peers: impl Iterator<Item = PeerStatus<'a>>) -> Reply {
    let mut text = Lines::default();
    if let Some(key) = &device.private_key {
        text.line("private_key", key.as_str());
    }
    if device.listen_port != 0 {
        text.line("listen_port", device.listen_port);
    }
    if device.fwmark != 0 {
        text.line("fwmark", device.fwmark);
    }
    for peer in peers {
        text.peer(&peer);
    }
    Reply::Lines(text.0)
}

/// The reply to `get_drops=1`.
pub(crate) fn drops(drops: &Drops) -> Reply {
    let mut text = Lines::default();
    for (reason, count) in drops.iter() {
        text.line(reason, count);
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
    let mut text = Lines::default();
    text.line("peer_lookup", mode.peer_lookup());
    text.line("source_check", mode.source_check());
    let Some(link) = link else { return Reply::Lines(text.0) };
    text.line("link_address", link.own());
    for peer in peers {
        text.line("public_key", peer.public_key.to_hex());
        text.line("link_address", LinkAddress::of(*peer.public_key));
        text.line("reachable", peer.path.is_reachable());
        text.path_mtu(now, peer.path);
    }
    Reply::Lines(text.0)
}

/// The reply to `get_paths=1`.
pub(crate) fn paths<'a>(now: Instant, peers: impl Iterator<Item = PeerStatus<'a>>) -> Reply {
    let mut text = Lines::default();
    for peer in peers {
        text.line("public_key", peer.public_key.to_hex());
        text.path_mtu(now, peer.path);
    }
    Reply::Lines(text.0)
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

    fn path_mtu(&mut self, now: Instant, path: &PeerPath) {
        if let Some(path_mtu) = path.path_mtu(now) {
            self.line("path_mtu", path_mtu);
        }
    }

    fn peer(&mut self, peer: &PeerStatus<'_>) {
        self.line("public_key", peer.public_key.to_hex());
        if let Some(key) = peer.preshared_key {
            self.line("preshared_key", key.expose_hex().as_str());
        }
        self.line("protocol_version", peer.protocol_version);
        if let Some(endpoint) = peer.endpoint {
            self.line("endpoint", endpoint.remote);
        }
        let handshake = peer.last_handshake.map(UnixTime::since_epoch).unwrap_or_default();
        self.line("last_handshake_time_sec", handshake.as_secs());
        self.line("last_handshake_time_nsec", handshake.subsec_nanos());
        self.line("tx_bytes", peer.sent_bytes);
        self.line("rx_bytes", peer.received_bytes);
        self.line(
            "persistent_keepalive_interval",
            peer.persistent_keepalive.map_or(0, std::num::NonZeroU16::get),
        );
        for network in peer.allowed_ips {
            self.line("allowed_ip", network);
        }
    }
}

/// More bytes than any line written here has.
const LINE_MAX: usize = 128;
const FIRST_CAPACITY: usize = 4096;

impl Reply {
    /// The text for the client. `wg` expects the error of a `get` as a positive number and that of a `set` as a
    /// negative one, as wireguard-go writes it, whatever the specification says.
    pub(crate) fn into_text(self, to_a_set: bool) -> Zeroizing<String> {
        let sign = if to_a_set { -1 } else { 1 };
        match self {
            Self::Lines(mut text) => {
                // `Lines` has kept room for this, so no memory with keys is left behind by a reallocation.
                text.push_str("errno=0\n\n");
                text
            }
            Self::Done => Zeroizing::new("errno=0\n\n".into()),
            Self::Refused(Errno(number)) => Zeroizing::new(format!("errno={}\n\n", sign * number)),
        }
    }
}
