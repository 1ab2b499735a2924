//! The engine: ties the interface, the UDP port and the protocol together.
//!
//! Its thread is the control thread. It has the device: handshakes, timers, configuration. Packets are carried by
//! workers on threads of their own, one for each queue of the interface, so nothing here holds them up.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod by_hand;
mod handover;
mod outgoing;
mod requests;
mod worker;
mod workers;

use std::{collections::HashSet, io, iter, sync::Arc, time::Duration};

use wireloom_proto::{Device, DropReason, Endpoint, Instant, Now};
use wireloom_types::{Mode, PeerLookup, PrivateKey, SourceCheck};

pub(crate) use self::worker::{Runner, Worker};
use self::{outgoing::Outgoing, workers::Workers};
use crate::{
    batch::CryptoJob,
    data_path::{DataPath, Forwarder, RoutingLoops},
    drops::Drops,
    kept_timestamp::KeptTimestamp,
    link::{Link, Unheard},
    punt::{KnownAddresses, LANES, Multicast, PathMtus, Punted},
    runtime::{crypto_pool::CryptoPool, turn::NextTurn, wake_up::WakeUp},
    tun::{Tun, TunEvent, TunState, tell_stack},
    udp::{Network, Patience, Udp},
};

/// When to try again to open the port, after that failed when the interface came up.
const REBIND_INTERVAL: Duration = Duration::from_secs(1);
/// When to try again to open a port whose sockets the supervisor is about to close, and how often: for five seconds in
/// all. The supervisor does nothing that takes long, but systemd may keep them too, and is busy for seconds when it
/// reads the units of a large host again.
const STORED_INTERVAL: Duration = Duration::from_millis(20);
const STORED_TRIES: u32 = 250;
/// How long nothing is read of a port that was adopted, unless there are peers before: as long as packets may wait for
/// a new agent, which takes a second or two for its first pass. Afterwards packets for nobody are refused again.
const AWAIT_PEERS: Duration = Duration::from_secs(30);
/// The most handshake messages that a turn answers: each takes up to 200 µs, and timers have their turn in between.
const HANDSHAKES_AT_ONCE: usize = 8;
/// A turn begins no further segment of a multicast after this many copies: timers and handshakes have their turn.
const COPIES_AT_ONCE: usize = 256;
/// The most signals of each worker that a turn takes.
const SIGNALS_AT_ONCE: usize = 256;
/// The pause before more of what is due is done, when it is more than a turn does: thousands of keepalives or
/// handshakes at once leave the processor to the packets in between. Nothing cuts it short, such as the answers to
/// these handshakes, but handshakes that packets wait for do not wait for it.
const DUE_PAUSE: Duration = Duration::from_millis(2);
/// How often the workers get the addresses of the peers anew while handshake messages come.
const KNOWN_INTERVAL: Duration = Duration::from_secs(1);
/// How often it looks whether a peer is heard again about which the network stack had asked in vain: a worker that
/// hears it may have nothing else to say.
const LOOK: Duration = Duration::from_secs(1);

/// A WireGuard interface at work, on any kind of interface and network.
///
/// No call blocks: [`Engine::turn`] does the pending work and says when the next turn is due.
///
/// While the interface is down, the port is closed, there are no sessions, and no timer runs. Persistent keepalives,
/// and the handshakes for them, begin when it comes up.
pub(crate) struct Engine<T: Tun, N: Network> {
    device: Device,
    mode: Mode,
    /// The link, in link mode. All workers share it.
    link: Option<Arc<Link>>,
    outgoing: Outgoing,
    drops: Arc<Drops>,
    tun: T,
    /// For what the network stack is told.
    writer: T::Queue,
    state: TunState,
    network: N,
    /// The port, while it is open: sends by the first worker's sockets.
    udp: Option<N::Udp>,
    workers: Workers<T::Queue, N::Udp>,
    /// The multicast that is being sent to all.
    multicast: Option<Multicast>,
    /// The lane of handshake messages that is served next.
    next_lane: usize,
    /// When the device does what is due next, at the earliest: see [`DUE_PAUSE`].
    due_at: Instant,
    /// When it looks next which peers are heard again about which the network stack had asked, if there are such.
    look_at: Option<Instant>,
    known_addresses: KnownAddresses,
    /// When they are published again, at the earliest.
    publish_known_at: Instant,
    /// As configured; 0 lets the system choose one.
    listen_port: u16,
    /// The port that the system chose. It is kept while the interface is down, as by the kernel's WireGuard
    /// (`wg_socket_reinit` in drivers/net/wireguard/socket.c): peers may know it, and firewalls.
    chosen_port: Option<u16>,
    fwmark: u32,
    /// Rises whenever the port is opened or closed: opening closes the earlier one first.
    port_changes: u64,
    /// Whether the supervisor has duplicates of the port's sockets. It takes a moment to close them.
    is_port_stored: bool,
    /// How often opening the port is tried again for that.
    tries_left: u32,
    /// The port was adopted, and nobody has configured peers yet: until then, packets wait in the kernel.
    awaits_peers: Option<Instant>,
    /// When to try again to open the port, if that failed.
    rebind_at: Option<Instant>,
    kept_timestamp: Option<KeptTimestamp>,
    /// When the engine before has stopped, until packets are read.
    stopped_at: Option<Instant>,
    /// How long packets waited for the hand-over to this engine.
    waited: Option<Duration>,
}

impl<T: Tun, N: Network> Engine<T, N> {
    /// An engine without keys and peers. `seed` comes from the system's random generator. The interface has a link
    /// address exactly when the mode is link mode. The runner runs a worker for each of its queues, which the crypto
    /// pool helps, if there is one.
    pub(crate) fn new(
        seed: &[u8; 32],
        mode: Mode,
        (tun, queues): (T, Vec<T::Queue>),
        network: N,
        runner: Box<dyn Runner<Worker<T::Queue, N::Udp>>>,
        pool: Option<&CryptoPool<CryptoJob>>,
    ) -> io::Result<Self> {
        Self::with_device(Device::new(seed), mode, (tun, queues), network, runner, pool)
    }

    /// The same with this device.
    fn with_device(
        device: Device,
        mode: Mode,
        (tun, queues): (T, Vec<T::Queue>),
        network: N,
        runner: Box<dyn Runner<Worker<T::Queue, N::Udp>>>,
        pool: Option<&CryptoPool<CryptoJob>>,
    ) -> io::Result<Self> {
        let drops = Arc::new(Drops::default());
        let link = tun.link_address().map(|own| Arc::new(Link::new(own, device.transport())));
        debug_assert_eq!(link.is_some(), mode.peer_lookup() == PeerLookup::Gateway);
        let check_sources = mode.source_check() == SourceCheck::AllowedIps;
        let loops = Arc::<RoutingLoops>::default();
        let data_path = || {
            let forwarder = link.clone().map_or(Forwarder::AllowedIps, Forwarder::Link);
            let mut data_path = DataPath::new(device.transport(), &drops, &loops, forwarder, check_sources);
            if let Some(pool) = pool {
                data_path.set_crypto_pool(pool);
            }
            data_path
        };
        let known_addresses = KnownAddresses::default();
        let workers = Workers::new(queues, data_path, &known_addresses, &drops, runner)?;
        Ok(Self {
            device,
            mode,
            link,
            outgoing: Outgoing::new(&drops),
            drops,
            writer: tun.writer(),
            tun,
            state: TunState::default(),
            network,
            udp: None,
            workers,
            multicast: None,
            next_lane: 0,
            due_at: Instant::from_origin(Duration::ZERO),
            look_at: None,
            known_addresses,
            publish_known_at: Instant::from_origin(Duration::ZERO),
            listen_port: 0,
            chosen_port: None,
            fwmark: 0,
            port_changes: 0,
            is_port_stored: false,
            tries_left: 0,
            awaits_peers: None,
            rebind_at: None,
            kept_timestamp: None,
            stopped_at: None,
            waited: None,
        })
    }

    /// Keeps what the timestamps of handshakes have reached in this file. A device that has a key already was handed
    /// over.
    pub(crate) fn with_kept_timestamp(mut self, mut file: KeptTimestamp, now: Now) -> Self {
        if let Some(own) = self.device.private_key().map(PrivateKey::public_key) {
            file.go_on(own, &self.device, now);
        }
        self.kept_timestamp = Some(file);
        self
    }

    /// Notes that the supervisor keeps duplicates of the port's sockets.
    pub(crate) fn note_port_stored(&mut self) {
        self.is_port_stored = true;
    }

    /// Signalled when workers have something for the control thread.
    pub(crate) fn wake_up(&self) -> &WakeUp {
        self.workers.wake_up()
    }

    /// The counters of dropped packets.
    pub(crate) fn drops(&self) -> &Arc<Drops> {
        &self.drops
    }

    /// The interface.
    pub(crate) fn tun(&self) -> &T {
        &self.tun
    }

    /// A queue of the interface that is only written to.
    pub(crate) fn writer(&self) -> &T::Queue {
        &self.writer
    }

    /// The UDP port, while it is open.
    pub(crate) fn udp(&self) -> Option<&N::Udp> {
        self.udp.as_ref()
    }

    /// Does the pending work, for a bounded time. `events` says that the interface's state may have changed.
    ///
    /// # Errors
    /// When the interface can no longer be used.
    pub(crate) fn turn(&mut self, now: Now, events: bool) -> io::Result<NextTurn> {
        if events {
            while let Some(event) = self.tun.poll_event()? {
                match event {
                    TunEvent::State(state) => self.follow(state),
                    TunEvent::Gone => return Ok(NextTurn::Never),
                }
            }
        }
        self.workers.wake_up().clear();
        self.workers.check()?;
        self.open_port(now.monotonic);
        self.await_peers(now.monotonic);
        let Some(udp) = &mut self.udp else { return Ok(NextTurn::Wait(self.rebind_at)) };
        let mut patience = Patience::default();
        let mut more = udp.follow_routes(|| endpoints(&self.device));
        more |= self.send_multicasts(now, &mut patience);
        // Before signals, which may be about the data messages that came after them.
        let handshakes_wait = self.answer_handshakes(now);
        self.device.note_backlog(now, handshakes_wait);
        more |= self.take_news(now);
        if self.due_at <= now.monotonic {
            self.device.handle_timeout(now);
        } else {
            self.device.handle_urgent(now);
        }
        self.drops.set(DropReason::HandshakeTimedOut, self.device.timed_out_packets());
        if let Some(file) = &mut self.kept_timestamp {
            file.follow(&self.device, now);
        }
        if let Some(udp) = &mut self.udp {
            more |= self.outgoing.transmit(now, &mut self.device, udp, &mut patience);
        }
        more |= self.answer_late(now.monotonic);
        let due = self.device.poll_timeout();
        if self.due_at <= now.monotonic && due.is_some_and(|at| at <= now.monotonic) {
            self.due_at = now.monotonic + DUE_PAUSE;
        }
        if more || handshakes_wait {
            return Ok(NextTurn::Now);
        }
        let due = due.map(|at| at.max(self.due_at));
        Ok(NextTurn::Wait(due.into_iter().chain(self.awaits_peers).chain(self.look_at).min()))
    }

    /// Tells the network stack which peers are heard again, and notes when to look next. Returns whether there may be
    /// more.
    fn answer_late(&mut self, now: Instant) -> bool {
        let Some(link) = self.link.as_ref().filter(|_| self.look_at.is_none_or(|at| at <= now)) else {
            return false;
        };
        let left = link.answer_late(|frame| tell_stack(&mut self.writer, frame));
        self.look_at = (left == Unheard::Silent).then(|| now + LOOK);
        left == Unheard::Some
    }

    /// Reads what has waited since the port was adopted, once there are peers or the time is over.
    fn await_peers(&mut self, now: Instant) {
        if self.awaits_peers.is_some_and(|until| until <= now || self.device.peer_count() > 0) {
            self.awaits_peers = None;
            self.resume();
            self.note_reading(now);
        }
    }

    /// Sends the multicasts that the workers have punted. Returns whether there may be more.
    fn send_multicasts(&mut self, now: Now, patience: &mut Patience) -> bool {
        let Self { device, link: Some(link), outgoing, workers, udp: Some(udp), state, multicast, .. } = self
        else {
            return false;
        };
        let table = link.table();
        let mut copies = 0;
        loop {
            let next = || workers.punted().iter().find_map(Punted::next_multicast);
            let Some(present) = multicast.take().or_else(next) else { return false };
            let present = multicast.insert(present);
            match outgoing.send_to_all(now, present, state.mtu, &table, device, udp, patience) {
                // Without neighbours it is work, too.
                Some(sent) => copies += sent.max(1),
                None => *multicast = None,
            }
            if copies >= COPIES_AT_ONCE {
                return true;
            }
        }
    }

    /// Takes the signals and the path MTUs that the workers have punted. Returns whether there may be more.
    fn take_news(&mut self, now: Now) -> bool {
        let mut more = false;
        for punted in self.workers.punted() {
            let signals = iter::from_fn(|| punted.next_signal()).take(SIGNALS_AT_ONCE);
            more |= signals.map(|signal| self.device.handle_signal(now, signal)).count() == SIGNALS_AT_ONCE;
            while let Some(reports) = punted.next_path_mtus() {
                learn_path_mtus(&self.device, now, &reports);
            }
        }
        more
    }

    /// Answers handshake messages: one of each lane of each worker, and so on, from where the last turn stopped.
    /// Returns whether there are more.
    fn answer_handshakes(&mut self, now: Now) -> bool {
        let punted = self.workers.punted();
        let lanes = punted.len() * LANES.len();
        let (mut answered, mut empty) = (0, 0);
        while answered < HANDSHAKES_AT_ONCE && empty < lanes {
            let place = self.next_lane % lanes;
            self.next_lane = place + 1;
            let Some(handshake) = punted[place / LANES.len()].next_handshake(LANES[place % LANES.len()])
            else {
                empty += 1;
                continue;
            };
            (answered, empty) = (answered + 1, 0);
            if let Err(reason) = self.device.handle_handshake(now, handshake.from, &handshake.datagram) {
                self.drops.count(reason);
            }
        }
        let more_wait = punted.iter().any(Punted::has_handshakes);
        if answered > 0 && self.publish_known_at <= now.monotonic {
            self.publish_known_at = now.monotonic + KNOWN_INTERVAL;
            self.publish_known_addresses();
        }
        more_wait
    }

    fn publish_known_addresses(&self) {
        let known: HashSet<_> =
            endpoints(&self.device).into_iter().map(|endpoint| endpoint.remote.ip()).collect();
        self.known_addresses.store(Arc::new(known));
    }

    /// Follows a change of the interface.
    fn follow(&mut self, state: TunState) {
        if state.up != self.state.up {
            tracing::info!("the interface is {}", if state.up { "up" } else { "down" });
        }
        // A port that was adopted may be open while the interface is down.
        if !state.up && (self.state.up || self.udp.is_some()) {
            self.close_port();
            self.workers.forget_punts(&self.drops);
            self.multicast = None;
            self.device.handle_down();
            self.count_forgotten();
        }
        if state.mtu != self.state.mtu {
            self.workers.change(|worker| worker.set_mtu(state.mtu));
        }
        self.state = state;
        self.rebind_at = None;
    }

    /// Counts the packets that waited for sessions which are gone.
    fn count_forgotten(&mut self) {
        self.drops.count_many(DropReason::Forgotten, self.device.take_forgotten_packets());
    }

    /// Opens the port if the interface is up and the port is closed. Nobody waits for the outcome, so a failure is
    /// logged, and the attempt repeated later.
    fn open_port(&mut self, now: Instant) {
        let wanted = self.state.up && self.udp.is_none() && self.rebind_at.is_none_or(|at| at <= now);
        if !wanted {
            return;
        }
        let port = self.chosen_port.unwrap_or(self.listen_port);
        let bound = match self.bind(port, self.fwmark) {
            Err(error) if self.tries_left > 0 && error.kind() == io::ErrorKind::AddrInUse => {
                self.tries_left -= 1;
                self.rebind_at = Some(now + STORED_INTERVAL);
                return;
            }
            Err(error) if self.chosen_port.is_some() && error.kind() == io::ErrorKind::AddrInUse => {
                tracing::warn!("cannot open UDP port {port} again: {error}; the system chooses another one");
                self.bind(0, self.fwmark)
            }
            bound => bound,
        };
        match bound {
            Ok(sockets) => {
                self.use_sockets(sockets);
                self.rebind_at = None;
                self.device.handle_up();
            }
            Err(error) => {
                tracing::error!("cannot open UDP port {port}: {error}; free it or set another listen-port");
                self.rebind_at = Some(now + REBIND_INTERVAL);
            }
        }
    }

    /// Opens a port for all queues.
    fn bind(&self, port: u16, mark: u32) -> io::Result<Sockets<N::Udp>> {
        let mut first = self.network.bind(port, mark)?;
        let others = (1..self.workers.len()).map(|_| self.network.join(&first, mark));
        let others = others.collect::<io::Result<Vec<_>>>()?;
        let sender = self.network.sender(&mut first)?;
        Ok(Sockets { sender, workers: std::iter::once(first).chain(others).collect() })
    }

    /// Uses these sockets from now on, and closes the earlier ones.
    fn use_sockets(&mut self, sockets: Sockets<N::Udp>) {
        let port = sockets.sender.port();
        tracing::info!("listening on UDP port {port}");
        self.chosen_port = (self.listen_port == 0).then_some(port);
        self.close_port();
        self.udp = Some(sockets.sender);
        self.workers.give(sockets.workers, self.state.mtu);
        self.resume();
    }

    /// Closes the port, and ends all sending and receiving.
    pub(crate) fn close_port(&mut self) {
        self.workers.close();
        self.udp = None;
        self.port_changes += 1;
        self.tries_left = if self.is_port_stored { STORED_TRIES } else { 0 };
    }

    /// Keeps what the timestamps of handshakes have reached, for the next process. To be called when the port is
    /// closed for good.
    pub(crate) fn finish(&mut self) {
        if let Some(file) = self.kept_timestamp.take() {
            file.finish(&self.device);
        }
    }
}

/// The endpoints of all peers.
fn endpoints(device: &Device) -> Vec<Endpoint> {
    device.peers().filter_map(|peer| peer.endpoint).collect()
}

/// Records the path MTUs, in bytes, that the network reported. Takes time for each peer.
fn learn_path_mtus(device: &Device, now: Now, reports: &PathMtus) {
    for peer in device.peers() {
        let Some(Endpoint { remote, .. }) = peer.path.endpoint() else { continue };
        if let Some(path_mtu) = reports.get(&remote.ip()) {
            peer.path.learn_path_mtu(now.monotonic, *path_mtu);
            tracing::debug!("the path MTU to {remote} is {path_mtu}");
        }
    }
}

/// The sockets of an open port.
struct Sockets<U> {
    /// Of the control thread.
    sender: U,
    /// One for each worker.
    workers: Vec<U>,
}

#[cfg(test)]
mod tests;
