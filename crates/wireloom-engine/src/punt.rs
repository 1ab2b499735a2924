//! Punting, as routers call it: what is not for the fast path goes to the thread that has the device.
//!
//! ```text
//!   queue 1 ── Punting ──▶ handshakes, news, packets without a session ──▶ Punted ┐
//!   queue 2 ── Punting ──▶                  …                         ──▶ Punted ┴─▶ engine, Device
//!           ◀── bell: the device has taken (and sent, or keeps) your packets
//! ```
//!
//! Nobody ever waits here for the other end. What a stranger could send without end (handshakes) is
//! bounded and dropped beyond; packets are bounded because their queue reads no more of them until the
//! device has taken those ([`SlowPath::is_taking_packets`]); news is rare by nature, and never dropped.

use std::{
    io,
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
    slow_path::SlowPath,
};

/// Handshake messages of one queue that may wait: a device under load answers about 4,000 a second,
/// so that the last one waits for an eighth of one.
const HANDSHAKES_MAX: usize = 512;

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
    Signal(Signal),
    Seek(PeerId),
    /// The queue's thread has ended, and not because it was told to.
    Ended,
}

/// A queue's end.
#[derive(Debug)]
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
    /// Packets that the device has taken since [`Self::packets_are_sent`] was called last.
    taken: usize,
}

/// What has been punted and not been dealt with yet.
#[derive(Debug, Default)]
struct Waiting {
    handshakes: AtomicUsize,
    packets: AtomicUsize,
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
    Ok((punting, Punted { punts: receiver, waiting, queue, taken: 0 }))
}

impl Punting {
    /// Rung when the device has taken the queue's packets.
    pub(crate) fn bell(&self) -> &Bell {
        &self.queue
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

    fn poll_transmit(&mut self, _: Now, _: &mut [u8]) -> Option<Transmit> {
        None
    }

    fn is_taking_packets(&self) -> bool {
        // Acquire: what the engine did with them, it did before.
        self.waiting.packets.load(Ordering::Acquire) > 0
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
            Punt::Packet { .. } => self.taken += 1,
            Punt::Signal(_) | Punt::Seek(_) | Punt::Ended => {}
        }
        Some(punt)
    }

    /// The packets that were taken are on the wire, or wait for a session: those behind them may go.
    pub(crate) fn packets_are_sent(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        if taken > 0 && self.waiting.packets.fetch_sub(taken, Ordering::Release) == taken {
            self.queue.ring();
        }
    }

    /// Forgets what was handed over.
    pub(crate) fn clear(&mut self) {
        while self.poll().is_some() {}
        self.packets_are_sent();
    }
}
