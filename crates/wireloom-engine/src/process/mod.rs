//! A userspace WireGuard interface as a process: `wireloom device`.

mod clock;
mod poll;
mod privileges;
mod threads;

use std::{io, num::NonZero, os::fd::AsFd, time::Duration};

use nix::{
    poll::PollFd,
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use wireloom_types::{Mode, PeerLookup, interface::control_socket};
use zeroize::Zeroizing;

use self::{
    poll::{deleted, nothing, readable},
    threads::Threads,
};
use crate::{
    control::{Inbox, Server},
    engine::Engine,
    runtime::{
        busy_poll::busy_poll,
        crypto_pool::CryptoPool,
        turn::{NextTurn, Ready},
    },
    tun::LinuxTun,
    udp::{LinuxNetwork, LinuxUdp},
};

pub use crate::{
    control::OpenControlError,
    tun::{Offload, OpenTunError},
};

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
}

impl Interface {
    /// Opens the interface `name`, down and without configuration, and its control socket. A persistent interface of
    /// the same kind that an earlier process left is taken over with its addresses and routes, and stays persistent.
    /// `threads` threads carry its packets, or one if the interface that was left cannot have more. `persistent` makes
    /// a new interface persistent; in link mode ([`PeerLookup::Gateway`]) it always is. `offload` says whether the
    /// network stack and the device exchange super-packets.
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
    ) -> Result<Self, OpenError> {
        let failed = |operation| move |cause: io::Error| OpenError::Failed { operation, cause };
        let signals = block_signals().map_err(|error| failed("block signals")(error.into()))?;
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).map_err(|error| failed("draw randomness")(io::Error::other(error)))?;
        let (tun, queues) = LinuxTun::open(name, mode.peer_lookup(), threads, offload)?;
        let server = Server::open(control_socket(name))?;
        privileges::drop_unneeded().map_err(failed("give up privileges"))?;
        let inbox = server.start().map_err(failed("serve the control socket"))?;
        let mut engine = Engine::new(&seed, mode, tun, LinuxNetwork);
        if !queues.is_empty() {
            // Threads inherit the dropped privileges and the blocked signals, so they start only now.
            let others = queues.len();
            let pool = CryptoPool::start(others, 1 + others).map_err(failed("start threads"))?;
            let threads = Threads::start(others).map_err(failed("start threads"))?;
            engine = engine
                .with_workers(queues, Box::new(threads), &pool)
                .map_err(failed("create an event descriptor"))?;
        }
        // Last, so that a failure leaves nothing behind.
        if persistent || mode.peer_lookup() == PeerLookup::Gateway {
            engine.tun().set_persistent(true).map_err(failed("make the interface persistent"))?;
        }
        Ok(Self { engine, server, inbox, signals })
    }

    /// Carries packets until something ends it.
    ///
    /// # Errors
    /// When the system fails in a way that makes it impossible to go on.
    pub fn run(mut self) -> io::Result<End> {
        let end = self.carry_packets();
        // Before anything else shows that this process ends: the next one may want the port.
        self.engine.close_port();
        end
    }

    fn carry_packets(&mut self) -> io::Result<End> {
        let mut ready = Ready::ALL;
        loop {
            let now = clock::now()?;
            while let Some(call) = self.inbox.poll() {
                call.reply.send(self.engine.handle(now, call.request));
            }
            let timeout = match self.engine.turn(now, ready) {
                Ok(NextTurn::Never) => return Ok(End::InterfaceDeleted),
                Ok(NextTurn::Now) => Some(Duration::ZERO),
                Ok(NextTurn::Wait(at)) => at.map(|at| at.since(now.monotonic)),
                Ok(NextTurn::BusyPoll(at)) => {
                    if busy_poll(&mut self.traffic())? {
                        Some(Duration::ZERO)
                    } else {
                        at.map(|at| at.since(now.monotonic))
                    }
                }
                // The interface was deleted. Its descriptor says so before rtnetlink does.
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return Ok(End::InterfaceDeleted),
                Err(error) => return Err(error),
            };
            let woken = self.wait(timeout)?;
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
            ready = woken.ready;
        }
    }
}

/// Why a wait ended.
#[derive(Default)]
struct Woken {
    ready: Ready,
    /// Noticed while the port is closed. While it is open, reading from the interface fails.
    interface_deleted: bool,
    socket_touched: bool,
    signalled: bool,
}

impl Interface {
    /// The sources of packets and datagrams, to be polled: the interface and the port's sockets.
    fn traffic(&self) -> [PollFd<'_>; 3] {
        let port = self.engine.udp();
        let tun = self.engine.tun().packets();
        let [packets, v4, v6] = poll::traffic(Some(tun), port, self.signals.as_fd());
        // Without a port to send them from, packets stay in the kernel.
        [if port.is_some() { packets } else { deleted(tun) }, v4, v6]
    }

    /// Waits until there is something to do, but no longer than `timeout`; `None` means for ever.
    fn wait(&self, timeout: Option<Duration>) -> io::Result<Woken> {
        let [packets, v4, v6] = self.traffic();
        let wake_up = self.engine.wake_up().map(|wake_up| readable(wake_up.as_fd()));
        let routes = self.engine.udp().and_then(LinuxUdp::routes).map(readable);
        let fds = [
            packets,
            v4,
            v6,
            readable(self.engine.tun().events()),
            readable(self.inbox.as_fd()),
            readable(self.server.watch()),
            readable(self.signals.as_fd()),
            wake_up.unwrap_or(nothing(self.signals.as_fd())),
            routes.unwrap_or(nothing(self.signals.as_fd())),
        ];
        let [packets, v4, v6, events, _calls, socket, signals, _punts, routes] = poll::wait(fds, timeout)?;
        Ok(Woken {
            ready: Ready { packets, events, datagrams: v4 || v6 || routes },
            interface_deleted: packets && self.engine.udp().is_none(),
            socket_touched: socket,
            signalled: signals,
        })
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

/// Blocks the signals and returns a descriptor that they are read from, so poll(2) can wait for them.
fn block_signals() -> nix::Result<SignalFd> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGHUP]);
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}
