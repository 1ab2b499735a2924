//! A userspace WireGuard interface as a process: `wireloom device`.

mod clock;
mod giving;
mod poll;
mod privileges;
mod store;
mod taking;
mod threads;

use std::{
    io,
    num::NonZero,
    os::fd::AsFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
    socket::{getsockopt, sockopt},
};
use wireloom_types::{
    Mode, PeerLookup,
    interface::{control_socket, handover_socket, holders_file},
};
use zeroize::Zeroizing;

use self::{
    giving::Giving,
    poll::{deleted, nothing, readable},
    store::{Inherited, ServiceManager},
    threads::Threads,
};
use crate::{
    control::{Inbox, Server},
    engine::Engine,
    handover::{envelope::Role, holders::Holders, socket::Listener},
    kept_timestamp::{self, KeptTimestamp},
    runtime::{crypto_pool::CryptoPool, turn::NextTurn},
    socket_file::ENDING,
    tun::{LinuxQueue, LinuxTun},
    udp::{FollowedRoutes, LinuxNetwork, LinuxUdp},
};

pub use self::taking::TakeOverError;
pub use crate::{
    control::OpenControlError,
    tun::{Offload, OpenTunError},
};

/// The most requests that are served before the next turn: one may take milliseconds, and clients may ask for ever.
const CALLS_AT_ONCE: usize = 4;

/// An interface that is open: it exists, and its control socket accepts clients.
///
/// When [`Self::run`] returns or the value is dropped, the interface and the socket are removed. A persistent interface
/// outlives a signal, or whatever else ends the process, so that the routes over it survive a restart, and drop what
/// they get meanwhile. It is removed by deleting it or the socket.
pub struct Interface {
    engine: Engine<LinuxTun, LinuxNetwork>,
    server: Server,
    inbox: Inbox,
    signals: SignalFd,
    giving: Giving,
    service_manager: ServiceManager,
}

/// Why the interface could not be opened. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The TUN interface could not be opened.
    #[error(transparent)]
    Tun(#[from] OpenTunError),
    /// The control socket could not be opened.
    #[error(transparent)]
    Control(#[from] OpenControlError),
    /// This process got descriptors of the interface from its supervisor, and another process has some, too.
    #[error("another process has the interface, or is about to")]
    HasAnother,
    /// Another operation failed.
    #[error("cannot {operation}: {cause}")]
    Failed {
        /// The operation.
        operation: &'static str,
        /// The system's error.
        cause: io::Error,
    },
}

/// Why the interface ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The interface was deleted.
    InterfaceDeleted,
    /// The control socket's file was removed.
    SocketRemoved,
    /// A signal asked for it.
    Signalled,
    /// Another process has taken the interface over.
    HandedOver,
}

impl Interface {
    /// Opens the interface `name`, down and without configuration, and its control socket. A persistent interface of
    /// the same kind that an earlier process left is taken over with its addresses and routes, and stays persistent.
    /// `threads` threads carry its packets, or one if the interface that was left cannot have more. `persistent` makes
    /// a new interface persistent; in link mode ([`PeerLookup::Gateway`]) it always is. `offload` says whether the
    /// network stack and the device exchange super-packets. In the directory `state`, the file `NAME.timestamp` keeps
    /// what the timestamps of handshakes have reached, if that is possible there.
    ///
    /// Call it before the process has other threads: it blocks the signals that [`Self::run`] handles (SIGINT, SIGTERM,
    /// SIGUSR1, SIGHUP), and gives up the privileges that are no longer needed.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        name: &str,
        mode: Mode,
        threads: NonZero<usize>,
        persistent: bool,
        offload: Offload,
        state: &Path,
    ) -> Result<Self, OpenError> {
        let failed = |operation| move |cause: io::Error| OpenError::Failed { operation, cause };
        let signals = block_signals().map_err(|error| failed("block signals")(error.into()))?;
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).map_err(|error| failed("draw randomness")(io::Error::other(error)))?;
        let holders = Holders::open(&holders_file(name));
        let holders = holders.and_then(|holders| holders.enter().map(|()| holders)).inspect_err(|error| {
            tracing::warn!("if this process hangs while it takes over, the next one cannot find it: {error}");
        });
        let holders = holders.ok();
        // Two processes must not have one queue. The supervisor closes it once this process has ended, and the other
        // one can open the interface: it may be about to take over.
        if Inherited::waits() && holders.as_ref().is_some_and(|holders| !is_alone(holders)) {
            return Err(OpenError::HasAnother);
        }
        let mut inherited = Inherited::receive();
        let (tun, queues) = match open_stored(&mut inherited, name, mode.peer_lookup()) {
            Some(interface) => interface,
            None => {
                // The port without the interface would be half of what there was.
                inherited.refuse_traffic();
                open_tun(name, mode.peer_lookup(), threads, offload)?
            }
        };
        let listener =
            inherited.take(Role::Control).map(|listener| Server::take_over(&control_socket(name), listener));
        let mut server = match listener {
            Some(Ok(server)) => server,
            _ => Server::open(control_socket(name))?,
        };
        privileges::drop_unneeded().map_err(failed("give up privileges"))?;
        let inbox = server.start().map_err(failed("serve the control socket"))?;
        // Threads inherit the dropped privileges and the blocked signals, so they start only now.
        let threads = Threads::start(queues.len()).map_err(failed("start threads"))?;
        let pool = match queues.len() {
            1 => None,
            queues => Some(CryptoPool::start(queues - 1, queues).map_err(failed("start threads"))?),
        };
        let interface = (tun, queues);
        let mut engine = Engine::new(&seed, mode, interface, LinuxNetwork, Box::new(threads), pool.as_ref())
            .map_err(failed("create an event descriptor"))?;
        let now = clock::now().map_err(failed("read the clock"))?;
        match KeptTimestamp::open(state, name) {
            Ok(file) => engine = engine.with_kept_timestamp(file, now),
            Err(error) => tracing::info!("{}", kept_timestamp::complaint(state, &error)),
        }
        // Last, so that a failure leaves nothing behind.
        if persistent || mode.peer_lookup() == PeerLookup::Gateway {
            engine.tun().set_persistent(true).map_err(failed("make the interface persistent"))?;
        }
        let sockets = inherited.sockets(engine.queues());
        if sockets.len() == engine.queues() {
            let mark = sockets[0].0.as_fd();
            let mark = getsockopt(&mark, sockopt::Mark).unwrap_or_default();
            match LinuxUdp::take_over(sockets, mark, FollowedRoutes::open()) {
                Ok(sockets) => {
                    engine.adopt_unknown(now, sockets, mark).map_err(failed("use the stored sockets"))?;
                }
                Err(error) => tracing::warn!("cannot use the stored port: {error}"),
            }
        }
        let path = handover_socket(name);
        // Without its file nobody can connect to it.
        let listener = inherited.take(Role::Handover).filter(|_| path.exists());
        let giving = match listener.map(|socket| Listener::from_fd(socket, path.clone())) {
            Some(Ok(listener)) => Giving::take_over(listener),
            _ => Giving::open(path),
        };
        let service_manager = ServiceManager::start();
        service_manager.forget_rest(inherited);
        let mut interface = Self { engine, server, inbox, signals, giving, service_manager };
        interface.keep_all();
        Ok(interface)
    }

    /// Tells systemd or `wireloom engine`, if one of them supervises this process, that the interface is ready.
    pub fn say_ready(&self) {
        self.service_manager.say_ready();
    }

    /// Carries packets until something ends it.
    ///
    /// # Errors
    /// When the system fails in a way that makes it impossible to go on.
    pub fn run(mut self) -> io::Result<End> {
        let end = self.control();
        if matches!(end, Ok(End::HandedOver)) {
            // Whatever is left is the other process's.
            self.server.leave();
            return end;
        }
        self.giving.close();
        // Before anything else shows that this process ends: the next one may want the port.
        self.engine.close_port();
        self.engine.finish();
        end
    }

    fn control(&mut self) -> io::Result<End> {
        let mut events = true;
        loop {
            let now = clock::now()?;
            let mut calls = 0;
            while calls < CALLS_AT_ONCE
                && let Some(call) = self.inbox.poll()
            {
                call.reply.send(self.engine.handle(now, call.request));
                calls += 1;
            }
            let timeout = match self.engine.turn(now, events) {
                Ok(NextTurn::Never) => return Ok(End::InterfaceDeleted),
                Ok(NextTurn::Now) => Some(Duration::ZERO),
                Ok(NextTurn::Wait(_)) if calls == CALLS_AT_ONCE => Some(Duration::ZERO),
                Ok(NextTurn::Wait(at)) => at.map(|at| at.since(now.monotonic)),
                // The interface was deleted. Its descriptor says so before rtnetlink does.
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return Ok(End::InterfaceDeleted),
                Err(error) => return Err(error),
            };
            self.keep_port();
            if self.give()? {
                return Ok(End::HandedOver);
            }
            let woken = self.wait(self.no_longer_than(timeout))?;
            if woken.interface_deleted {
                return Ok(End::InterfaceDeleted);
            }
            if woken.socket_touched && !self.server.is_in_place() {
                return match self.engine.tun().set_persistent(false) {
                    // Whoever removed the socket has deleted the interface before.
                    Err(error) if error.raw_os_error() == Some(libc::EBADFD) => Ok(End::InterfaceDeleted),
                    outcome => outcome.map(|()| End::SocketRemoved),
                };
            }
            if woken.signalled && self.handle_signals()? {
                return Ok(End::Signalled);
            }
            events = woken.events;
        }
    }
}

/// Why a wait ended.
#[derive(Default)]
struct Woken {
    events: bool,
    interface_deleted: bool,
    socket_touched: bool,
    signalled: bool,
}

impl Interface {
    /// Stores all descriptors for the next process.
    fn keep_all(&mut self) {
        for (queue, descriptor) in self.engine.tun().queues().enumerate() {
            self.service_manager.keep(Role::TunQueue(queue as u16), descriptor);
        }
        self.service_manager.keep(Role::Control, self.server.as_fd());
        if let Some(listener) = self.giving.listener() {
            self.service_manager.keep(Role::Handover, listener);
        }
        // Before this process says that it is ready: the supervisor forgets then what the one before has stored.
        self.keep_port();
    }

    /// Stores the sockets of the port whenever it is another one.
    fn keep_port(&mut self) {
        let changes = self.engine.port_changes();
        if self.service_manager.lacks_port(changes) {
            self.engine.note_port_stored();
            let sockets = self.engine.sockets(LinuxUdp::duplicates);
            self.service_manager.keep_port(changes, self.engine.queues(), sockets);
        }
    }

    /// Waits until there is something to do, but no longer than `timeout`; `None` means for ever.
    fn wait(&self, timeout: Option<Duration>) -> io::Result<Woken> {
        let routes = self.engine.udp().and_then(LinuxUdp::routes).map(readable);
        let fds = [
            deleted(self.engine.writer().packets()),
            readable(self.engine.tun().events()),
            readable(self.inbox.as_fd()),
            readable(self.server.watch()),
            readable(self.signals.as_fd()),
            readable(self.engine.wake_up().as_fd()),
            routes.unwrap_or(nothing(self.signals.as_fd())),
            self.giving.takers().map_or(nothing(self.signals.as_fd()), readable),
            self.giving.taker().map_or(nothing(self.signals.as_fd()), readable),
        ];
        let [deleted, events, _calls, socket, signals, ..] = poll::wait(fds, timeout)?;
        Ok(Woken { events, interface_deleted: deleted, socket_touched: socket, signalled: signals })
    }

    /// Handles the signals that have arrived. Returns true when one of them asks for the end.
    fn handle_signals(&self) -> io::Result<bool> {
        while let Some(signal) = self.signals.read_signal()? {
            match i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok()) {
                Some(Signal::SIGUSR1) => tracing::info!("dropped so far: {}", self.engine.drops()),
                // It asks daemons to read their files again, or says that the terminal is gone.
                Some(Signal::SIGHUP) => tracing::info!(
                    "nothing to reload: a device is configured through its control socket, by `wg` for example"
                ),
                _ => return Ok(true),
            }
        }
        Ok(false)
    }
}

/// Whether no other process has descriptors of the interface. One that has handed over may be about to end: it is
/// waited for. One that cannot be seen is there.
fn is_alone(holders: &Holders) -> bool {
    let deadline = Instant::now() + ENDING;
    loop {
        match holders.another() {
            Ok(None) => return true,
            _ if Instant::now() >= deadline => return false,
            _ => thread::sleep(ENDING / 50),
        }
    }
}

/// The interface that an earlier process of the same supervisor had, if its descriptors were stored.
fn open_stored(
    inherited: &mut Inherited,
    name: &str,
    peer_lookup: PeerLookup,
) -> Option<(LinuxTun, Vec<LinuxQueue>)> {
    let queues = inherited.queues();
    if queues.is_empty() {
        return None;
    }
    let count = queues.len();
    let opened = LinuxTun::take_over_unknown(queues, peer_lookup)
        .inspect_err(|error| tracing::warn!("cannot use the stored interface: {error}"));
    let opened = opened.ok().filter(|(tun, _)| tun.is_called(name));
    if opened.is_none() {
        inherited.refuse_queues(count);
    }
    opened
}

/// Opens the interface. The process that had the name before may be about to end: it is waited for.
fn open_tun(
    name: &str,
    peer_lookup: PeerLookup,
    queues: NonZero<usize>,
    offload: Offload,
) -> Result<(LinuxTun, Vec<LinuxQueue>), OpenTunError> {
    let deadline = Instant::now() + ENDING;
    loop {
        match LinuxTun::open(name, peer_lookup, queues, offload) {
            Err(OpenTunError::NameTaken(_)) if Instant::now() < deadline => thread::sleep(ENDING / 50),
            outcome => return outcome,
        }
    }
}

/// Blocks the signals and returns a descriptor that they are read from, so poll(2) can wait for them.
fn block_signals() -> nix::Result<SignalFd> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGHUP]);
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}
