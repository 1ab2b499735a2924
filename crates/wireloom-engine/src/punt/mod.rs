//! Punting, in the sense of routers: packets that the fast path cannot handle go to the thread that has the device.
//!
//! ```text
//!   worker 1 ── Punter ──▶ handshakes, signals, packets without a session ──▶ Punted ┐
//!   worker 2 ── Punter ──▶          …, frames that are not for one peer   ──▶ Punted ┴─▶ engine, Device
//!            ◀── wake-up: the device has taken your packets, and has sent or kept them
//! ```
//!
//! Neither end ever waits for the other. Anything that a stranger can send without limit (handshakes, ICMP errors) is
//! bounded here, and dropped beyond the bound. Packets are bounded because a worker reads no more of them until the
//! device has taken the last ones ([`SlowPath::is_taking_packets`]). Frames are bounded because a worker reads nothing
//! more while too many wait. Signals are rare by nature and never dropped.

mod slow_path;

use std::{
    collections::BTreeMap,
    io, iter, mem,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
};

use wireloom_proto::{DropReason, Endpoint, Now, PeerId, Signal, Transmit};

pub(crate) use self::slow_path::SlowPath;
use crate::{
    drops::{Drops, EngineDrop},
    offload::virtio::VirtioHeader,
    runtime::wake_up::WakeUp,
};

/// Handshake messages of one queue that may wait. A device under load answers about 4,000 a second, so the last one
/// waits for an eighth of a second.
const HANDSHAKES_MAX: usize = 512;

/// Frames of one queue that may wait, 4 MB of the longest ones: enough that a burst of ARP requests and neighbour
/// solicitations does not stop the queue.
const FRAMES_MAX: usize = 64;

/// Lots of path MTUs of one queue that may wait. What is dropped is reported again for the next packet that is too big.
const PATH_MTUS_MAX: usize = 4;

/// An item that is handed over. Bytes are copied, which is affordable because few packets come this way.
#[derive(Debug)]
pub(crate) enum Punt {
    Handshake {
        from: Endpoint,
        datagram: Box<[u8]>,
    },
    Packet {
        peer: PeerId,
        packet: Box<[u8]>,
    },
    /// A frame as it was read from the interface, for the owner of the link. It may be a super-packet.
    Frame {
        header: VirtioHeader,
        frame: Box<[u8]>,
    },
    /// The network reported the MTUs of the paths to these addresses, in bytes.
    PathMtus(BTreeMap<IpAddr, usize>),
    Signal(Signal),
    BeginHandshake(PeerId),
    /// The worker's thread has ended without being told to.
    Ended,
}

/// A worker's end.
#[derive(Clone, Debug)]
pub(crate) struct Punter {
    punts: Sender<Punt>,
    waiting: Arc<Waiting>,
    engine: WakeUp,
    worker: WakeUp,
    drops: Arc<Drops>,
}

/// The engine's end for one worker.
#[derive(Debug)]
pub(crate) struct Punted {
    punts: Receiver<Punt>,
    waiting: Arc<Waiting>,
    worker: WakeUp,
    /// Packets and frames taken since the last call of [`Self::packets_are_sent`].
    packets: usize,
    frames: usize,
}

/// How many items were punted and not dealt with yet.
#[derive(Debug, Default)]
struct Waiting {
    handshakes: AtomicUsize,
    packets: AtomicUsize,
    frames: AtomicUsize,
    path_mtus: AtomicUsize,
}

/// Makes both ends for one worker. `engine` is signalled when there is something to take.
pub(crate) fn punts(engine: &WakeUp, drops: &Arc<Drops>) -> io::Result<(Punter, Punted)> {
    let (sender, receiver) = channel();
    let (waiting, worker) = (Arc::<Waiting>::default(), WakeUp::new()?);
    let punter = Punter {
        punts: sender,
        waiting: Arc::clone(&waiting),
        engine: engine.clone(),
        worker: worker.clone(),
        drops: Arc::clone(drops),
    };
    Ok((punter, Punted { punts: receiver, waiting, worker, packets: 0, frames: 0 }))
}

impl Punter {
    /// Signalled when the device has taken the worker's packets.
    pub(crate) fn wake_up(&self) -> &WakeUp {
        &self.worker
    }

    /// Punts a frame that the fast path of the link cannot handle.
    pub(crate) fn punt_frame(&self, header: VirtioHeader, frame: &[u8]) {
        self.waiting.frames.fetch_add(1, Ordering::Relaxed);
        self.punt(Punt::Frame { header, frame: frame.into() });
    }

    /// Hands an item over.
    pub(crate) fn punt(&self, punt: Punt) {
        // It fails when the engine is gone, and with it the need for this.
        let _ = self.punts.send(punt);
        self.engine.signal();
    }
}

impl SlowPath for Punter {
    fn handle_handshake(&mut self, _: Now, from: Endpoint, datagram: &[u8]) -> Result<(), DropReason> {
        // Only this end adds, so the bound holds.
        if self.waiting.handshakes.load(Ordering::Relaxed) < HANDSHAKES_MAX {
            self.waiting.handshakes.fetch_add(1, Ordering::Relaxed);
            self.punt(Punt::Handshake { from, datagram: datagram.into() });
        } else {
            self.drops.count(EngineDrop::DeviceBusy);
        }
        Ok(())
    }

    fn handle_outgoing(&mut self, _: Now, peer: PeerId, packet: &[u8], _: usize) -> Result<(), DropReason> {
        self.waiting.packets.fetch_add(1, Ordering::Relaxed);
        self.punt(Punt::Packet { peer, packet: packet.into() });
        Ok(())
    }

    fn handle_signal(&mut self, _: Now, signal: Signal) {
        self.punt(Punt::Signal(signal));
    }

    fn begin_handshake(&mut self, _: Now, peer: PeerId) {
        self.punt(Punt::BeginHandshake(peer));
    }

    fn learn_path_mtus(&mut self, _: Now, reports: BTreeMap<IpAddr, usize>) {
        // Only this end adds, so the bound holds.
        if self.waiting.path_mtus.load(Ordering::Relaxed) < PATH_MTUS_MAX {
            self.waiting.path_mtus.fetch_add(1, Ordering::Relaxed);
            self.punt(Punt::PathMtus(reports));
        }
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        Vec::new()
    }

    fn poll_transmit(&mut self, _: Now) -> Option<Transmit<'_>> {
        None
    }

    fn is_taking_packets(&self) -> bool {
        // Acquire: whatever the engine did with the packets happened before this.
        self.waiting.packets.load(Ordering::Acquire) > 0
    }

    fn may_have_more(&self) -> bool {
        // Only this end adds, so the bound holds.
        !self.is_taking_packets() && self.waiting.frames.load(Ordering::Relaxed) < FRAMES_MAX
    }
}

impl Punted {
    /// The next item.
    pub(crate) fn poll(&mut self) -> Option<Punt> {
        let punt = self.punts.try_recv().ok()?;
        match punt {
            Punt::Handshake { .. } => {
                self.waiting.handshakes.fetch_sub(1, Ordering::Relaxed);
            }
            Punt::Packet { .. } => self.packets += 1,
            Punt::Frame { .. } => self.frames += 1,
            Punt::PathMtus(_) => {
                self.waiting.path_mtus.fetch_sub(1, Ordering::Relaxed);
            }
            Punt::Signal(_) | Punt::BeginHandshake(_) | Punt::Ended => {}
        }
        Some(punt)
    }

    /// Releases the worker: the packets that were taken are on the wire or wait for a session, so later ones may be
    /// sealed.
    pub(crate) fn packets_are_sent(&mut self) {
        let packets = mem::take(&mut self.packets);
        if packets > 0 && self.waiting.packets.fetch_sub(packets, Ordering::Release) == packets {
            self.worker.signal();
        }
        let frames = mem::take(&mut self.frames);
        // The worker waits for the wake-up only when it had reached the bound.
        if frames > 0 && self.waiting.frames.fetch_sub(frames, Ordering::Relaxed) == FRAMES_MAX {
            self.worker.signal();
        }
    }

    /// Discards whatever waits. Returns how many packets and datagrams that were.
    pub(crate) fn clear(&mut self) -> u64 {
        let punts = iter::from_fn(|| self.poll());
        let packets = punts
            .filter(|punt| matches!(punt, Punt::Handshake { .. } | Punt::Packet { .. } | Punt::Frame { .. }));
        let packets = packets.count() as u64;
        self.packets_are_sent();
        packets
    }
}
