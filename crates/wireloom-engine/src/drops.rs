//! Counts what goes no further. Nothing is sent back for any of it: the counters are where it shows.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use wireloom_proto::DropReason;

/// Losses that are the engine's, not the protocol's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The network did not take a datagram: no route, no permission, or a send buffer that stays full.
    NotSent,
    /// A packet to tell its sender that the interface's queue does not empty any more.
    QueueStood,
    /// The network stack did not take a packet that came out of the tunnel.
    NotDelivered,
    /// A frame on the link that carries neither IPv4 nor IPv6.
    NotIp,
    /// A packet to or from a link address that is no peer's.
    NoNeighbour,
    /// A packet for a peer that is not heard any more, or whose endpoint is unknown.
    PeerLost,
    /// A packet that is too long for the way to its peer.
    TooBig,
    /// Neighbour discovery from a peer: it may not tell where others are.
    NotForTheLink,
    /// A handshake message that came while too many others waited for the engine's thread.
    DeviceBusy,
}

const LOSSES: [&str; 9] = [
    "not-sent",
    "queue-stood",
    "not-delivered",
    "not-ip",
    "no-neighbour",
    "peer-lost",
    "too-big",
    "not-for-the-link",
    "device-busy",
];

/// Counters by reason. They only grow, from the start of the process.
#[derive(Debug)]
pub struct Drops {
    protocol: [AtomicU64; DropReason::COUNT],
    engine: [AtomicU64; LOSSES.len()],
}

impl Default for Drops {
    fn default() -> Self {
        Self {
            protocol: [const { AtomicU64::new(0) }; DropReason::COUNT],
            engine: [const { AtomicU64::new(0) }; LOSSES.len()],
        }
    }
}

impl Drops {
    pub(crate) fn count(&self, reason: DropReason) {
        self.protocol[reason.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// Takes over a count that is kept elsewhere.
    pub(crate) fn set(&self, reason: DropReason, total: u64) {
        self.protocol[reason.index()].store(total, Ordering::Relaxed);
    }

    pub(crate) fn count_loss(&self, loss: Loss, packets: u64) {
        if packets > 0 {
            self.engine[loss as usize].fetch_add(packets, Ordering::Relaxed);
        }
    }

    /// Every reason with its count, zeroes included, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let protocol = DropReason::ALL.iter().map(|reason| reason.name()).zip(&self.protocol);
        let engine = LOSSES.into_iter().zip(&self.engine);
        protocol.chain(engine).map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }
}

impl fmt::Display for Drops {
    /// The reasons that occurred, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut any = false;
        for (name, count) in self.iter().filter(|(_, count)| *count > 0) {
            write!(f, "{}{name}={count}", if any { " " } else { "" })?;
            any = true;
        }
        if any { Ok(()) } else { f.write_str("none") }
    }
}
