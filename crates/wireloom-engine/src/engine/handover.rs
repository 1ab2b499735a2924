//! Hands an engine's work over to another process, and takes it over.

use std::{io, iter, mem};

use wireloom_proto::{DropReason, Instant, Now};
use wireloom_types::Mode;

use super::{AWAIT_PEERS, Engine, Runner, Worker};
use crate::{
    batch::CryptoJob,
    handover::state::{EngineState, InterfaceState, Received, Record, Snapshot},
    link::Unheard,
    runtime::crypto_pool::CryptoPool,
    tun::{Tun, TunState, tell_stack},
    udp::{Network, Patience, Udp},
};

/// The most rounds of handling what the workers had punted before they stopped, each of about 8 handshake messages, and
/// of a segment of a multicast to all peers.
const ROUNDS_MAX: usize = 4;

impl<T: Tun, N: Network> Engine<T, N> {
    /// Everything that is to be handed over, but for packets that wait for a session. It is exact while the engine is
    /// [stopped](Self::stop).
    pub(crate) fn snapshot(&self, interface: InterfaceState) -> Snapshot {
        let state = EngineState {
            interface,
            peer_lookup: self.mode.peer_lookup(),
            source_check: self.mode.source_check(),
            listen_port: self.listen_port,
            chosen_port: self.chosen_port,
            fwmark: self.fwmark,
            up: self.state.up,
            mtu: self.state.mtu as u32,
            neighbours: self.link.as_ref().map(|link| link.told()).unwrap_or_default(),
            drops: self.drops.iter().map(|(name, count)| (name.to_owned(), count)).collect(),
        };
        Snapshot::of(&self.device, state)
    }

    /// What has changed since an earlier snapshot, and the packets that wait for a session. The engine must be stopped.
    pub(crate) fn changes_since(&self, before: &Snapshot, interface: InterfaceState) -> Record {
        self.snapshot(interface).changes_since(before, &self.device.staged_packets())
    }

    /// Stops: sends and delivers all that was read, and then reads nothing more. [`Self::resume`] ends it. Between the
    /// two, no other method may be called that changes something. Packets wait meanwhile: once `is_late` is true, what
    /// the workers had punted is dropped.
    ///
    /// # Errors
    /// When the engine cannot go on at all.
    pub(crate) fn stop(&mut self, now: Now, is_late: impl Fn() -> bool) -> io::Result<()> {
        let mut patience = Patience::default();
        self.workers.halt(|worker| patience = worker.send_unsent(now, mem::take(&mut patience)));
        self.workers.check()?;
        let mut more = true;
        for _ in 0..ROUNDS_MAX {
            more = self.send_multicasts(now, &mut patience);
            more |= self.answer_handshakes(now);
            // All of them: they are short, and say what happened to sessions.
            while self.take_news(now) {}
            if !more || is_late() {
                break;
            }
        }
        if more {
            self.workers.forget_punts(&self.drops);
            self.drops.count_many(DropReason::Forgotten, self.multicast.take().map_or(0, |_| 1));
        }
        // What the device has to send must be sent: it is not handed over.
        while let Some(udp) = &mut self.udp
            && self.outgoing.transmit(now, &mut self.device, udp, &mut patience)
        {}
        // The next process cannot know what this one has heard since it looked last.
        while let Some(link) = &self.link
            && link.answer_late(|frame| tell_stack(&mut self.writer, frame)) == Unheard::Some
        {}
        Ok(())
    }

    /// Rises whenever the port is opened or closed: [`Self::sockets`] are others then.
    pub(crate) fn port_changes(&self) -> u64 {
        self.port_changes
    }

    /// What `duplicate` makes of each worker's sockets, in their order; nothing while the port is closed. The workers
    /// stop for that, as for a change of settings.
    ///
    /// # Errors
    /// The first error of `duplicate`.
    pub(crate) fn sockets<S>(&mut self, duplicate: impl Fn(&N::Udp) -> io::Result<S>) -> io::Result<Vec<S>> {
        let mut sockets = Vec::new();
        self.workers.change(|worker| sockets.extend(worker.udp().map(&duplicate)));
        sockets.into_iter().collect()
    }

    /// Goes on after [`Self::stop`] as if nothing had been.
    pub(crate) fn resume(&mut self) {
        if self.awaits_peers.is_none() {
            self.workers.resume();
        }
    }

    /// An engine that goes on where another one has stopped. `sockets` are those of its workers, or none if its port
    /// was closed. Nothing happens before [`Self::resume`]. The other arguments are those of [`Self::new`].
    ///
    /// # Errors
    /// When the mode makes no sense, or the system refuses an event or a duplicate of a socket.
    pub(crate) fn take_over(
        now: Now,
        received: Received,
        (tun, queues): (T, Vec<T::Queue>),
        network: N,
        sockets: Vec<N::Udp>,
        runner: Box<dyn Runner<Worker<T::Queue, N::Udp>>>,
        pool: Option<&CryptoPool<CryptoJob>>,
    ) -> io::Result<Self> {
        let Received { successor, shared, staged } = received;
        let state = shared.engine;
        let mode = Mode::new(state.peer_lookup, state.source_check).map_err(io::Error::other)?;
        let device = successor.finish(now, &shared.device, &staged);
        let mut engine = Self::with_device(device, mode, (tun, queues), network, runner, pool)?;
        engine.drops.restore(&state.drops);
        if let Some(link) = &engine.link {
            link.change(|table| engine.device.peers().for_each(|peer| table.insert(peer.path)));
            link.remember(&state.neighbours);
        }
        engine.state = TunState { up: state.up, mtu: state.mtu as usize };
        (engine.listen_port, engine.chosen_port) = (state.listen_port, state.chosen_port);
        engine.fwmark = state.fwmark;
        // The one before knew nothing, either.
        if engine.device.private_key().is_none() && !sockets.is_empty() {
            engine.awaits_peers = Some(now.monotonic + AWAIT_PEERS);
        }
        engine.adopt(sockets)?;
        engine.publish_known_addresses();
        Ok(engine)
    }

    /// The interface, its queues and the workers' sockets, which tests pass on as the system passes on descriptors. The
    /// engine must be stopped.
    #[cfg(test)]
    pub(crate) fn into_parts(self) -> (T, Vec<T::Queue>, Vec<N::Udp>) {
        let (queues, sockets): (Vec<_>, Vec<_>) =
            self.workers.into_idle().into_iter().map(Worker::into_parts).unzip();
        (self.tun, queues, sockets.into_iter().flatten().collect())
    }

    /// Notes when the engine before has stopped, as its process says.
    pub(crate) fn note_stopped(&mut self, at: Instant) {
        self.stopped_at = Some(at);
    }

    /// Notes how long packets have waited since then, once this engine reads them. False while it awaits peers.
    pub(crate) fn note_reading(&mut self, now: Instant) -> bool {
        if self.awaits_peers.is_some() {
            return false;
        }
        if let Some(stopped_at) = self.stopped_at.take() {
            let waited = now.since(stopped_at);
            tracing::info!(
                "took over from another process; packets waited for {:.1} ms",
                waited.as_secs_f64() * 1e3
            );
            self.waited = Some(waited);
        }
        true
    }

    /// The number of queues.
    pub(crate) fn queues(&self) -> usize {
        self.workers.len()
    }

    /// Uses these sockets with this mark in an engine that knows nothing of them: as a port that the system chose,
    /// until it is configured. Before there are peers, nothing is read for [`AWAIT_PEERS`]: the packets would be
    /// refused.
    ///
    /// # Errors
    /// When the system refuses duplicates of the sockets.
    pub(crate) fn adopt_unknown(&mut self, now: Now, sockets: Vec<N::Udp>, mark: u32) -> io::Result<()> {
        self.chosen_port = sockets.first().map(Udp::port);
        self.fwmark = mark;
        self.awaits_peers = (!sockets.is_empty()).then(|| now.monotonic + AWAIT_PEERS);
        self.adopt(sockets)
    }

    /// Uses these sockets of an open port, one of each worker, from [`Self::resume`] on.
    ///
    /// # Errors
    /// When the system refuses duplicates of the sockets.
    pub(crate) fn adopt(&mut self, sockets: Vec<N::Udp>) -> io::Result<()> {
        let mut sockets = sockets.into_iter();
        let Some(mut first) = sockets.next() else { return Ok(()) };
        let sender = self.network.sender(&mut first)?;
        self.udp = Some(sender);
        self.workers.give(iter::once(first).chain(sockets).collect(), self.state.mtu);
        Ok(())
    }
}
