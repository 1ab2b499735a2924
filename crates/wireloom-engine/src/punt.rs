//! Punting, as routers call it: what is not for the fast path goes to the thread that has the device.
//!
//! ```text
//!   queue 1 ── Punting ──▶ handshakes, news, packets without a session ──▶ Punted ┐
//!   queue 2 ── Punting ──▶       …, frames that are not for one peer   ──▶ Punted ┴─▶ engine, Device
//!           ◀── bell: the device has taken (and sent, or keeps) your packets
//! ```
//!
//! Nobody ever waits here for the other end. What a stranger could send without end (handshakes, ICMP
//! errors) is bounded and dropped beyond; packets are bounded because their queue reads no more of them until the
//! device has taken those ([`SlowPath::is_taking_packets`]), and frames because their queue reads no more
//! of anything while so many of them wait; news is rare by nature, and never dropped.

use std::{
    io, mem,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
};

use wireloom_proto::{DropReason, Endpoint, Now, PeerId, Signal, Transmit};

use crate::{
    bell::Bell,
    drops::{Drops, Loss},
    offload::virtio::VirtioHeader,
    slow_path::SlowPath,
};

/// Handshake messages of one queue that may wait: a device under load answers about 4,000 a second,
/// so that the last one waits for an eighth of one.
const HANDSHAKES_MAX: usize = 512;

/// Frames of one queue that may wait, 4 MB of the longest ones: enough that a burst of questions for link
/// addresses does not stop the queue.
const FRAMES_MAX: usize = 64;

/// Path MTUs of one queue that may wait: whoever was told too early is told again by the next packet that
/// is too big.
const PATH_MTUS_MAX: usize = 64;

/// What is handed over. Bytes are copied: it is not the way of every packet.
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
    Link(LinkPunt),
    Signal(Signal),
    Seek(PeerId),
    /// The queue's thread has ended, and not because it was told to.
    Ended,
}

/// What is for whoever has the link.
#[derive(Debug)]
pub(crate) enum LinkPunt {
    /// A frame, which may be a super-packet, as it was read from the interface.
    Frame { offload: VirtioHeader, frame: Box<[u8]> },
    /// What the network told about the way to this address.
    PathMtu { remote: IpAddr, path_mtu: u16 },
}

/// A queue's end.
#[derive(Clone, Debug)]
pub(crate) struct Punting {
    punts: Sender<Punt>,
    waiting: Arc<Waiting>,
    engine: Bell,
    queue: Bell,
    drops: Arc<Drops>,
}

/// The engine's end of one queue.
#[derive(Debug)]
pub(crate) struct Punted {
    punts: Receiver<Punt>,
    waiting: Arc<Waiting>,
    queue: Bell,
    /// Packets, and frames, that were taken since [`Self::packets_are_sent`] was called last.
    packets: usize,
    frames: usize,
}

/// What has been punted and not been dealt with yet.
#[derive(Debug, Default)]
struct Waiting {
    handshakes: AtomicUsize,
    packets: AtomicUsize,
    frames: AtomicUsize,
    path_mtus: AtomicUsize,
}

/// Makes both ends for one queue; `engine` is rung when there is something to take.
pub(crate) fn punts(engine: &Bell, drops: &Arc<Drops>) -> io::Result<(Punting, Punted)> {
    let (sender, receiver) = channel();
    let (waiting, queue) = (Arc::<Waiting>::default(), Bell::new()?);
    let punting = Punting {
        punts: sender,
        waiting: Arc::clone(&waiting),
        engine: engine.clone(),
        queue: queue.clone(),
        drops: Arc::clone(drops),
    };
    Ok((punting, Punted { punts: receiver, waiting, queue, packets: 0, frames: 0 }))
}

impl Punting {
    /// Rung when the device has taken the queue's packets.
    pub(crate) fn bell(&self) -> &Bell {
        &self.queue
    }

    /// Hands a frame over that is not for the fast path of the link.
    pub(crate) fn punt_frame(&self, offload: VirtioHeader, frame: &[u8]) {
        self.waiting.frames.fetch_add(1, Ordering::Relaxed);
        self.punt(Punt::Link(LinkPunt::Frame { offload, frame: frame.into() }));
    }

    /// Hands over what the network told about the way to this address.
    pub(crate) fn punt_path_mtu(&self, remote: IpAddr, path_mtu: u16) {
        // Only this end adds, so that the bound holds.
        if self.waiting.path_mtus.load(Ordering::Relaxed) < PATH_MTUS_MAX {
            self.waiting.path_mtus.fetch_add(1, Ordering::Relaxed);
            self.punt(Punt::Link(LinkPunt::PathMtu { remote, path_mtu }));
        }
    }

    /// Hands something over.
    pub(crate) fn punt(&self, punt: Punt) {
        // An engine that is gone misses nothing.
        let _ = self.punts.send(punt);
        self.engine.ring();
    }
}

impl SlowPath for Punting {
    fn handle_handshake(&mut self, _: Now, from: Endpoint, datagram: &[u8]) -> Result<(), DropReason> {
        // Only this end adds, so that the bound holds.
        if self.waiting.handshakes.load(Ordering::Relaxed) < HANDSHAKES_MAX {
            self.waiting.handshakes.fetch_add(1, Ordering::Relaxed);
            self.punt(Punt::Handshake { from, datagram: datagram.into() });
        } else {
            self.drops.count_loss(Loss::DeviceBusy, 1);
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

    fn seek(&mut self, _: Now, peer: PeerId) {
        self.punt(Punt::Seek(peer));
    }

    fn poll_transmit(&mut self, _: Now) -> Option<Transmit<'_>> {
        None
    }

    fn is_taking_packets(&self) -> bool {
        // Acquire: what the engine did with them, it did before.
        self.waiting.packets.load(Ordering::Acquire) > 0
    }

    fn may_have_more(&self) -> bool {
        // Only this end adds, so that the bound holds.
        !self.is_taking_packets() && self.waiting.frames.load(Ordering::Relaxed) < FRAMES_MAX
    }
}

impl Punted {
    /// The next thing that was handed over.
    pub(crate) fn poll(&mut self) -> Option<Punt> {
        let punt = self.punts.try_recv().ok()?;
        match punt {
            Punt::Handshake { .. } => {
                self.waiting.handshakes.fetch_sub(1, Ordering::Relaxed);
            }
            Punt::Packet { .. } => self.packets += 1,
            Punt::Link(LinkPunt::Frame { .. }) => self.frames += 1,
            Punt::Link(LinkPunt::PathMtu { .. }) => {
                self.waiting.path_mtus.fetch_sub(1, Ordering::Relaxed);
            }
            Punt::Signal(_) | Punt::Seek(_) | Punt::Ended => {}
        }
        Some(punt)
    }

    /// The packets that were taken are on the wire, or wait for a session: those behind them may go.
    pub(crate) fn packets_are_sent(&mut self) {
        let packets = mem::take(&mut self.packets);
        if packets > 0 && self.waiting.packets.fetch_sub(packets, Ordering::Release) == packets {
            self.queue.ring();
        }
        let frames = mem::take(&mut self.frames);
        // The queue waits for the bell only when it could hand over no more.
        if frames > 0 && self.waiting.frames.fetch_sub(frames, Ordering::Relaxed) == FRAMES_MAX {
            self.queue.ring();
        }
    }

    /// Forgets what was handed over.
    pub(crate) fn clear(&mut self) {
        while self.poll().is_some() {}
        self.packets_are_sent();
    }
}
