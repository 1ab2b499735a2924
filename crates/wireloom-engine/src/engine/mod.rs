//! The engine: ties the interface, the UDP port and the protocol together.

mod requests;
mod worker;
mod workers;

use std::{io, sync::Arc, time::Duration};

use wireloom_proto::{Device, DropReason, Instant, Now};
use wireloom_types::{Mode, PeerLookup, SourceCheck};

pub(crate) use self::worker::{Runner, Worker};
use self::workers::Workers;
use crate::{
    batch::CryptoJob,
    data_path::{DataPath, Forwarder, RoutingLoops, Turn},
    drops::Drops,
    icmp::Limiter,
    link::Link,
    runtime::{
        crypto_pool::CryptoPool,
        turn::{Backlog, NextTurn, Ready},
        wake_up::WakeUp,
    },
    tun::{Tun, TunEvent, TunState},
    udp::{Network, Patience, Udp},
};

/// When to try again to open the port, after that failed when the interface came up.
const REBIND_INTERVAL: Duration = Duration::from_secs(1);

/// A WireGuard interface at work, on any kind of interface and network.
///
/// No call blocks: [`Engine::turn`] does the pending work and says when the next turn is due.
///
/// While the interface is down, the port is closed, there are no sessions, and no timer runs. Persistent keepalives,
/// and the handshakes for them, begin when it comes up.
///
/// The engine carries the packets of the interface's first queue. Those of other queues are carried by workers on
/// other threads, while the port is open.
pub(crate) struct Engine<T: Tun, N: Network> {
    device: Device,
    mode: Mode,
    data_path: DataPath,
    drops: Arc<Drops>,
    tun: T,
    state: TunState,
    network: N,
    udp: Option<N::Udp>,
    workers: Option<Workers<T::Queue, N::Udp>>,
    /// As configured; 0 lets the system choose one.
    listen_port: u16,
    /// The port that the system chose. It is kept while the interface is down, as by the kernel's WireGuard
    /// (`wg_socket_reinit` in drivers/net/wireguard/socket.c): peers may know it, and firewalls.
    chosen_port: Option<u16>,
    fwmark: u32,
    /// When to try again to open the port, if that failed.
    rebind_at: Option<Instant>,
}

impl<T: Tun, N: Network> Engine<T, N> {
    /// An engine without keys and peers. `seed` comes from the system's random generator. The interface has a link
    /// address exactly when the mode is link mode.
    pub(crate) fn new(seed: &[u8; 32], mode: Mode, tun: T, network: N) -> Self {
        let device = Device::new(seed);
        let drops = Arc::new(Drops::default());
        let link = tun.link_address().map(Link::new);
        debug_assert_eq!(link.is_some(), mode.peer_lookup() == PeerLookup::Gateway);
        let forwarder = link.map_or(Forwarder::AllowedIps(Limiter::default()), Forwarder::Link);
        let check_sources = mode.source_check() == SourceCheck::AllowedIps;
        let data_path = DataPath::new(
            device.transport(),
            &drops,
            &Arc::<RoutingLoops>::default(),
            forwarder,
            check_sources,
        );
        Self {
            device,
            mode,
            data_path,
            drops,
            tun,
            state: TunState::default(),
            network,
            udp: None,
            workers: None,
            listen_port: 0,
            chosen_port: None,
            fwmark: 0,
            rebind_at: None,
        }
    }

    /// Adds workers for the interface's other queues, which this runner runs, and has the crypto pool help all queues.
    pub(crate) fn with_workers(
        mut self,
        queues: Vec<T::Queue>,
        runner: Box<dyn Runner<Worker<T::Queue, N::Udp>>>,
        pool: &CryptoPool<CryptoJob>,
    ) -> io::Result<Self> {
        let check_sources = self.mode.source_check() == SourceCheck::AllowedIps;
        let (transport, drops) = (self.device.transport(), &self.drops);
        let loops = self.data_path.routing_loops();
        let data_path = |forwarder| {
            let mut data_path = DataPath::new(transport, drops, loops, forwarder, check_sources);
            data_path.set_crypto_pool(pool);
            data_path
        };
        self.workers = Some(Workers::new(queues, data_path, self.data_path.link(), drops, runner)?);
        self.data_path.set_crypto_pool(pool);
        Ok(self)
    }

    /// Signalled when workers have something for the engine.
    pub(crate) fn wake_up(&self) -> Option<&WakeUp> {
        self.workers.as_ref().map(Workers::wake_up)
    }

    /// The counters of dropped packets.
    pub(crate) fn drops(&self) -> &Arc<Drops> {
        &self.drops
    }

    /// The interface.
    pub(crate) fn tun(&self) -> &T {
        &self.tun
    }

    /// The UDP port, while it is open.
    pub(crate) fn udp(&self) -> Option<&N::Udp> {
        self.udp.as_ref()
    }

    /// Does the pending work, for a bounded time.
    ///
    /// # Errors
    /// When the interface can no longer be used.
    pub(crate) fn turn(&mut self, now: Now, ready: Ready) -> io::Result<NextTurn> {
        if ready.events {
            while let Some(event) = self.tun.poll_event()? {
                match event {
                    TunEvent::State(state) => self.follow(state),
                    TunEvent::Gone => return Ok(NextTurn::Never),
                }
            }
        }
        self.open_port(now.monotonic);
        let Some(udp) = &mut self.udp else { return Ok(NextTurn::Wait(self.rebind_at)) };
        let (slow_path, tun) = (&mut self.device, self.tun.first());
        let mut turn = Turn { now, mtu: self.state.mtu, slow_path, tun, udp, patience: Patience::default() };
        let mut backlog = Backlog::Empty;
        if ready.datagrams {
            backlog = self.data_path.receive(&mut turn);
        }
        let mut datagrams_wait = backlog == Backlog::More;
        if ready.packets || self.data_path.has_unsent() {
            backlog = backlog.max(self.data_path.send(&mut turn)?);
        }
        if let Some(workers) = &mut self.workers {
            let left = workers.serve(&mut self.data_path, &self.drops, &mut turn)?;
            datagrams_wait |= left == Backlog::More;
            backlog = backlog.max(left);
        }
        turn.slow_path.note_backlog(now, datagrams_wait);
        handle_timeout(turn.slow_path, &self.drops, now);
        self.data_path.transmit(&mut turn);
        if let Some(workers) = &mut self.workers {
            workers.packets_are_sent();
        }
        Ok(backlog.next_turn(self.device.poll_timeout()))
    }

    /// Lets the workers see the neighbours as they are now.
    fn publish_link(&self) {
        if let (Some(workers), Some(link)) = (&self.workers, self.data_path.link()) {
            workers.publish(link.table());
        }
    }

    /// Follows a change of the interface.
    fn follow(&mut self, state: TunState) {
        if state.up != self.state.up {
            tracing::info!("the interface is {}", if state.up { "up" } else { "down" });
        }
        if !state.up && self.state.up {
            self.close_port();
            if let Some(workers) = &mut self.workers {
                workers.forget_punts(&self.drops);
            }
            self.device.handle_down();
            self.count_forgotten();
        }
        if state.mtu != self.state.mtu
            && let Some(workers) = &mut self.workers
        {
            workers.change(|worker| worker.set_mtu(state.mtu));
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
        let first = self.network.bind(port, mark)?;
        let others = 0..self.workers.as_ref().map_or(0, Workers::len);
        let others = others.map(|_| self.network.join(&first, mark)).collect::<io::Result<_>>()?;
        Ok(Sockets { first, others })
    }

    /// Uses these sockets from now on, and closes the earlier ones.
    fn use_sockets(&mut self, sockets: Sockets<N::Udp>) {
        let port = sockets.first.port();
        tracing::info!("listening on UDP port {port}");
        self.chosen_port = (self.listen_port == 0).then_some(port);
        self.close_port();
        self.udp = Some(sockets.first);
        if let Some(workers) = &mut self.workers {
            workers.open(sockets.others, self.state.mtu);
        }
    }

    /// Closes the port, and ends all sending and receiving.
    pub(crate) fn close_port(&mut self) {
        if let Some(workers) = &mut self.workers {
            workers.close();
        }
        self.udp = None;
    }
}

/// Does what is due by the device's timers.
fn handle_timeout(device: &mut Device, drops: &Drops, now: Now) {
    if device.poll_timeout().is_some_and(|at| at <= now.monotonic) {
        device.handle_timeout(now);
        drops.set(DropReason::HandshakeTimedOut, device.timed_out_packets());
    }
}

/// The sockets of a port that is open for all queues.
struct Sockets<U> {
    first: U,
    /// For the workers.
    others: Vec<U>,
}

#[cfg(test)]
mod tests;
