//! A userspace WireGuard interface as a process: `wireloom device`.

use std::{io, num::NonZero, os::fd::AsFd, time::Duration};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        time::TimeSpec,
    },
};
use wireloom_types::{Mode, PeerLookup, interface::control_socket};

use crate::{
    clock,
    control::{Inbox, OpenControlError, Server},
    crew::Crew,
    doze::doze,
    engine::Engine,
    privilege,
    threads::Threads,
    tun::{LinuxTun, OpenTunError},
    turn::{Ready, Rest},
    udp::{LinuxNetwork, LinuxUdp},
};

/// An interface that is ready: it exists, and its control socket accepts clients.
///
/// It lives until [`Self::run`] returns or it is dropped; then the interface and the socket are gone. The
/// interface of [`PeerLookup::Gateway`](crate::PeerLookup) stays after a signal, or whatever kills the
/// process, so that the routes over it outlive a restart; deleting it or the socket takes it away.
pub struct Interface {
    engine: Engine<LinuxTun, LinuxNetwork>,
    server: Server,
    inbox: Inbox,
    signals: SignalFd,
}

/// Why there is no interface. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The TUN interface cannot be made.
    #[error(transparent)]
    Tun(#[from] OpenTunError),
    /// The control socket cannot be made.
    #[error(transparent)]
    Control(#[from] OpenControlError),
    /// Anything else.
    #[error("cannot {operation}: {source}")]
    Failed {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
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
    /// Makes the interface `name`, down and without configuration, with its control socket. An interface
    /// that stayed is taken over as it is. So many `threads` carry its packets, or one those of an
    /// interface that stayed and can have no more.
    ///
    /// Call it before the process has other threads: it blocks the signals that [`Self::run`] handles
    /// (SIGINT, SIGTERM, SIGUSR1), and gives up the privileges that are not needed any more.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(name: &str, mode: Mode, threads: NonZero<usize>) -> Result<Self, OpenError> {
        let failed = |operation| move |source: io::Error| OpenError::Failed { operation, source };
        let signals = block_signals().map_err(|error| failed("block signals")(error.into()))?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| failed("draw randomness")(io::Error::other(error)))?;
        let (tun, queues) = LinuxTun::open(name, mode.peer_lookup(), threads)?;
        let server = Server::open(control_socket(name))?;
        tun.set_lasting(true).map_err(failed("let the interface stay"))?;
        privilege::drop_unneeded().map_err(failed("give up privileges"))?;
        let inbox = server.start().map_err(failed("serve the control socket"))?;
        let network = LinuxNetwork { discover_path_mtu: mode.peer_lookup() == PeerLookup::Gateway };
        let mut engine = Engine::new(seed, mode, tun, network);
        if !queues.is_empty() {
            // Now that the privileges are dropped and the signals blocked, which each thread does for itself.
            let others = queues.len();
            let crew = Crew::start(others, 1 + others).map_err(failed("start threads"))?;
            let threads = Threads::start(others).map_err(failed("start threads"))?;
            engine = engine.with_queues(queues, Box::new(threads), &crew).map_err(failed("make an event"))?;
        }
        Ok(Self { engine, server, inbox, signals })
    }

    /// Carries packets until something ends it.
    ///
    /// # Errors
    /// When the system fails so that going on is impossible.
    pub fn run(mut self) -> io::Result<End> {
        let mut ready = Ready::ALL;
        loop {
            let now = clock::now()?;
            while let Some(call) = self.inbox.poll() {
                call.reply.send(self.engine.handle(now, call.request));
            }
            let rest = match self.engine.turn(now, ready) {
                Ok(Rest::Forever) => return Ok(End::InterfaceDeleted),
                Ok(Rest::None) => Some(Duration::ZERO),
                Ok(Rest::Until(at)) => at.map(|at| at.since(now.monotonic)),
                Ok(Rest::Light(at)) => {
                    if doze(&mut self.traffic())? {
                        Some(Duration::ZERO)
                    } else {
                        at.map(|at| at.since(now.monotonic))
                    }
                }
                // The interface was deleted, which its descriptor tells before the link monitor does.
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return Ok(End::InterfaceDeleted),
                Err(error) => return Err(error),
            };
            let wake = self.wait(rest)?;
            if wake.socket_touched && !self.server.is_in_place() {
                self.engine.tun().set_lasting(false)?;
                return Ok(End::SocketRemoved);
            }
            if wake.signalled && self.was_told_to_end()? {
                return Ok(End::Signalled);
            }
            ready = wake.ready;
        }
    }
}

/// What ended a wait.
#[derive(Default)]
struct Wake {
    ready: Ready,
    socket_touched: bool,
    signalled: bool,
}

impl Interface {
    /// Where packets and datagrams come from, to be polled: the interface, and the port's sockets.
    fn traffic(&self) -> [PollFd<'_>; 3] {
        // Packets stay where they are while there is no port to send them from.
        let port = self.engine.udp();
        let packets = port.map(|_| self.engine.tun().packets());
        let mut sockets = port.into_iter().flat_map(LinuxUdp::sockets);
        [packets, sockets.next(), sockets.next()]
            .map(|fd| fd.map_or_else(|| self.nobody(), |fd| PollFd::new(fd, PollFlags::POLLIN)))
    }

    /// What fills a place where there is nothing to wait for.
    fn nobody(&self) -> PollFd<'_> {
        PollFd::new(self.signals.as_fd(), PollFlags::empty())
    }

    /// Waits until there is something to do, but no longer than `rest`; `None` is for ever.
    fn wait(&self, rest: Option<Duration>) -> io::Result<Wake> {
        let wanted = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let [packets, v4, v6] = self.traffic();
        let mut fds = [
            packets,
            wanted(self.engine.tun().events()),
            v4,
            v6,
            wanted(self.inbox.as_fd()),
            wanted(self.server.watch()),
            wanted(self.signals.as_fd()),
            self.engine.bell().map_or_else(|| self.nobody(), |bell| wanted(bell.as_fd())),
        ];
        match ppoll(&mut fds, rest.map(TimeSpec::from), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [packets, events, v4, v6, _calls, socket, signals, _punts] =
            fds.map(|fd| fd.any().unwrap_or_default());
        Ok(Wake {
            ready: Ready { packets, events, datagrams: v4 || v6 },
            socket_touched: socket,
            signalled: signals,
        })
    }

    /// Handles the signals that have come; true when one of them asks for the end.
    fn was_told_to_end(&self) -> io::Result<bool> {
        while let Some(signal) = self.signals.read_signal()? {
            if signal.ssi_signo != Signal::SIGUSR1 as u32 {
                return Ok(true);
            }
            tracing::info!("dropped so far: {}", self.engine.drops());
        }
        Ok(false)
    }
}

/// Makes signals something to wait for like everything else.
fn block_signals() -> nix::Result<SignalFd> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1]);
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}
