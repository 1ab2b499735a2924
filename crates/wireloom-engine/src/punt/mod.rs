//! Punting, in the sense of routers: what the fast path cannot handle goes to the control thread, which has the device.
//!
//! ```text
//!   worker 1 ── Punter ──▶ signals, handshakes, multicasts, path MTUs ──▶ Punted ┐
//!   worker 2 ── Punter ──▶                  …                         ──▶ Punted ┴─▶ control thread, Device
//! ```
//!
//! Neither end ever waits for the other. Whatever can come without limit is bounded here, and dropped beyond the bound.
//! Signals are few by nature, and never dropped. Packets that wait for a session are not punted:
//! [`Transport::reserve_or_stage`](wireloom_proto::Transport::reserve_or_stage) keeps them.

#[cfg(test)]
mod models;
mod sieve;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use wireloom_proto::{Endpoint, Instant, Signal};

pub(crate) use self::sieve::{KnownAddresses, Lane};
use self::sieve::{LANE, Sieve};
use crate::{
    drops::{Drops, EngineDrop},
    offload::segment::Segments,
    runtime::wake_up::WakeUp,
    sync::channel::{Receiver, Sender, bounded, unbounded},
};

/// The lanes of handshake messages, in the order in which they are served.
pub(crate) const LANES: [Lane; 2] = [Lane::Known, Lane::Strangers];

/// Multicasts of one queue that may wait: 16 MB of the longest super-packets, and usually less than 400 KB.
const MULTICASTS_MAX: usize = 256;

/// Lots of path MTUs of one queue that may wait. What is dropped is reported again for the next packet that is too big.
const PATH_MTUS_MAX: usize = 4;

/// A handshake message, and where it came from. Bytes are copied, which is affordable because few come this way.
#[derive(Debug)]
pub(crate) struct Handshake {
    pub(crate) from: Endpoint,
    pub(crate) datagram: Box<[u8]>,
}

/// A packet for every peer. It may be a super-packet.
#[derive(Debug)]
pub(crate) struct Multicast {
    pub(crate) segments: Segments,
    pub(crate) packet: Box<[u8]>,
}

/// The path MTUs, in bytes, that the network reported for these addresses.
pub(crate) type PathMtus = BTreeMap<IpAddr, usize>;

/// A worker's end.
#[derive(Debug)]
pub(crate) struct Punter {
    sieve: Sieve,
    signals: Sender<Signal>,
    known: Sender<Handshake>,
    strangers: Sender<Handshake>,
    multicasts: Sender<Multicast>,
    path_mtus: Sender<PathMtus>,
    ended: Arc<AtomicBool>,
    control: WakeUp,
    drops: Arc<Drops>,
}

/// The control thread's end for one worker.
#[derive(Debug)]
pub(crate) struct Punted {
    signals: Receiver<Signal>,
    known: Receiver<Handshake>,
    strangers: Receiver<Handshake>,
    multicasts: Receiver<Multicast>,
    path_mtus: Receiver<PathMtus>,
    ended: Arc<AtomicBool>,
}

/// Makes both ends for one worker. `control` is signalled when there is something to take.
pub(crate) fn punts(
    control: &WakeUp,
    known_addresses: &KnownAddresses,
    drops: &Arc<Drops>,
) -> (Punter, Punted) {
    let (signals, from_signals) = unbounded();
    let (known, from_known) = bounded(LANE);
    let (strangers, from_strangers) = bounded(LANE);
    let (multicasts, from_multicasts) = bounded(MULTICASTS_MAX);
    let (path_mtus, from_path_mtus) = bounded(PATH_MTUS_MAX);
    let ended = Arc::<AtomicBool>::default();
    let punter = Punter {
        sieve: Sieve::new(Arc::clone(known_addresses)),
        signals,
        known,
        strangers,
        multicasts,
        path_mtus,
        ended: Arc::clone(&ended),
        control: control.clone(),
        drops: Arc::clone(drops),
    };
    let punted = Punted {
        signals: from_signals,
        known: from_known,
        strangers: from_strangers,
        multicasts: from_multicasts,
        path_mtus: from_path_mtus,
        ended,
    };
    (punter, punted)
}

impl Punter {
    /// Tells the device what sealing, staging or opening reported.
    pub(crate) fn signal(&self, signal: Option<Signal>) {
        if let Some(signal) = signal {
            // It fails when the control thread is gone, and with it the need for this.
            let _ = self.signals.send(signal);
            self.control.signal();
        }
    }

    /// Punts a handshake message, unless there are too many.
    pub(crate) fn punt_handshake(&mut self, now: Instant, from: Endpoint, datagram: &[u8]) {
        let lane = match self.sieve.lane(now, from.remote.ip()) {
            Some(Lane::Known) => &self.known,
            Some(Lane::Strangers) => &self.strangers,
            None => return self.drops.count(EngineDrop::DeviceBusy),
        };
        self.punt(lane, Handshake { from, datagram: datagram.into() });
    }

    /// Punts a packet that goes to every peer, unless too many wait.
    pub(crate) fn punt_multicast(&self, segments: Segments, packet: &[u8]) {
        self.punt(&self.multicasts, Multicast { segments, packet: packet.into() });
    }

    /// Punts what the network reported, unless too much waits.
    pub(crate) fn punt_path_mtus(&self, reports: PathMtus) {
        if self.path_mtus.try_send(reports).is_ok() {
            self.control.signal();
        }
    }

    /// Tells the control thread that the worker's thread has ended without being told to.
    pub(crate) fn report_end(&self) {
        self.ended.store(true, Ordering::Release);
        self.control.signal();
    }

    fn punt<P>(&self, lane: &Sender<P>, punt: P) {
        match lane.try_send(punt) {
            Ok(()) => self.control.signal(),
            Err(_) => self.drops.count(EngineDrop::DeviceBusy),
        }
    }
}

impl Punted {
    pub(crate) fn next_signal(&self) -> Option<Signal> {
        self.signals.try_recv().ok()
    }

    pub(crate) fn next_multicast(&self) -> Option<Multicast> {
        self.multicasts.try_recv().ok()
    }

    pub(crate) fn next_path_mtus(&self) -> Option<PathMtus> {
        self.path_mtus.try_recv().ok()
    }

    pub(crate) fn next_handshake(&self, lane: Lane) -> Option<Handshake> {
        self.lane(lane).try_recv().ok()
    }

    /// Whether handshake messages wait.
    pub(crate) fn has_handshakes(&self) -> bool {
        LANES.into_iter().any(|lane| !self.lane(lane).is_empty())
    }

    fn lane(&self, lane: Lane) -> &Receiver<Handshake> {
        match lane {
            Lane::Known => &self.known,
            Lane::Strangers => &self.strangers,
        }
    }

    /// Whether the worker's thread has ended without being told to.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Discards whatever waits. Returns how many packets and datagrams that were.
    pub(crate) fn clear(&self) -> u64 {
        self.signals.try_iter().for_each(drop);
        self.path_mtus.try_iter().for_each(drop);
        let handshakes = self.known.try_iter().chain(self.strangers.try_iter()).count();
        (handshakes + self.multicasts.try_iter().count()) as u64
    }
}
