//! Counters of dropped packets. Most drops are silent on the network, so these counters are where they show.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use wireloom_proto::DropReason;

/// Why the engine dropped a packet, where the protocol has no [`DropReason`] for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineDrop {
    /// The network did not take a datagram: no route, no permission, or a send buffer that stays full.
    NotSent,
    /// The kernel's queue for the interface did not empty, so its senders have to slow down.
    QueueStood,
    /// The network stack did not take a packet that came out of the tunnel.
    NotDelivered,
    /// A frame carries neither IPv4 nor IPv6.
    NotIp,
    /// A link address belongs to no peer.
    NoNeighbour,
    /// The peer is unreachable: it has stopped answering, or its endpoint is unknown.
    PeerUnreachable,
    /// A packet is longer than the path to its peer takes.
    TooBig,
    /// A packet is neighbour discovery, a redirect, or a fragment that may be one: nobody on a link may say where
    /// others are.
    NotForTheLink,
    /// A datagram of ours was routed into the interface that it came from.
    RoutingLoop,
    /// A handshake message or a multicast came while too many others waited for the control thread.
    DeviceBusy,
    /// The network marked a datagram as having met congestion, and the packet in it knows no such mark: its sender
    /// learns it by the loss (RFC 6040, section 4.2).
    Congested,
}

/// The counters' names, in the order of the reasons. Users read them, so they do not change.
const ENGINE_DROPS: [&str; 11] = [
    "not-sent",
    "queue-stood",
    "not-delivered",
    "not-ip",
    "no-neighbour",
    "peer-lost",
    "too-big",
    "not-for-the-link",
    "routing-loop",
    "device-busy",
    "congested",
];

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The protocol's reason.
    Protocol(DropReason),
    /// The engine's own reason.
    Engine(EngineDrop),
}

impl From<DropReason> for Reason {
    fn from(reason: DropReason) -> Self {
        Self::Protocol(reason)
    }
}

impl From<EngineDrop> for Reason {
    fn from(reason: EngineDrop) -> Self {
        Self::Engine(reason)
    }
}

/// Counters of dropped packets by reason. They only grow, from the start of the process.
#[derive(Debug)]
pub(crate) struct Drops {
    protocol: [AtomicU64; DropReason::COUNT],
    engine: [AtomicU64; ENGINE_DROPS.len()],
}

impl Default for Drops {
    fn default() -> Self {
        Self {
            protocol: [const { AtomicU64::new(0) }; DropReason::COUNT],
            engine: [const { AtomicU64::new(0) }; ENGINE_DROPS.len()],
        }
    }
}

impl Drops {
    /// Counts one packet.
    pub(crate) fn count(&self, reason: impl Into<Reason>) {
        self.count_many(reason, 1);
    }

    /// Counts `packets` packets.
    pub(crate) fn count_many(&self, reason: impl Into<Reason>, packets: u64) {
        if packets > 0 {
            let counter = match reason.into() {
                Reason::Protocol(reason) => &self.protocol[reason.index()],
                Reason::Engine(reason) => &self.engine[reason as usize],
            };
            counter.fetch_add(packets, Ordering::Relaxed);
        }
    }

    /// Sets the counters to what another process has counted, by name. Names that are not known are passed over.
    pub(crate) fn restore(&self, counts: &[(String, u64)]) {
        for (name, count) in counts {
            let protocol = DropReason::ALL.iter().map(|reason| reason.name()).zip(&self.protocol);
            let mut all = protocol.chain(ENGINE_DROPS.into_iter().zip(&self.engine));
            if let Some((_, counter)) = all.find(|(known, _)| known == name) {
                counter.store(*count, Ordering::Relaxed);
            }
        }
    }

    /// Sets a counter that is kept elsewhere.
    pub(crate) fn set(&self, reason: DropReason, total: u64) {
        self.protocol[reason.index()].store(total, Ordering::Relaxed);
    }

    /// The name and the count of every reason, zeroes included, in a fixed order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let protocol = DropReason::ALL.iter().map(|reason| reason.name()).zip(&self.protocol);
        let engine = ENGINE_DROPS.into_iter().zip(&self.engine);
        protocol.chain(engine).map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }
}

impl fmt::Display for Drops {
    /// Writes the reasons that occurred, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut any = false;
        for (name, count) in self.iter().filter(|(_, count)| *count > 0) {
            write!(f, "{}{name}={count}", if any { " " } else { "" })?;
            any = true;
        }
        if any { Ok(()) } else { f.write_str("none") }
    }
}
