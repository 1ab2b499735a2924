//! Takes an interface over from the process that has it: carries out what [`Taker`] says.

use std::{
    collections::VecDeque,
    fs::File,
    io, mem,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::sys::{
    signal::Signal,
    signalfd::SignalFd,
    socket::{getsockopt, sockopt},
};
use wireloom_proto::{Instant as BootInstant, Now};
use wireloom_types::{
    Mode,
    interface::{control_socket, handover_socket, holders_file},
};
use zeroize::Zeroizing;

use super::{
    Interface, block_signals, clock,
    giving::{Giving, VERSIONS},
    poll::{self, readable},
    privileges,
    store::{Inherited, ServiceManager},
    threads::Threads,
};
use crate::{
    batch::CryptoJob,
    control::{Inbox, Server},
    engine::Engine,
    handover::{
        envelope::{Message, Role},
        holders::Holders,
        memory::read_and_wipe,
        peer::Peer,
        socket::{Arrival, Connection, Listener},
        state::Prepared as PreparedState,
        taker::{Action, Event, Taker, Why},
    },
    kept_timestamp::{self, KeptTimestamp},
    runtime::crypto_pool::CryptoPool,
    tun::{LinuxQueue, LinuxTun},
    udp::{FollowedRoutes, LinuxNetwork, LinuxUdp},
};

/// How long a giver that was killed may take to end: milliseconds, unless it waits in the kernel. Beside it nothing may
/// be opened.
const DEATH: Duration = Duration::from_secs(10);
/// How long after its first failure it tries again, when the giver is busy with another taker, or has resumed because
/// this one was late. A silent taker keeps a giver busy for a second.
const PATIENCE: Duration = Duration::from_secs(5);
/// No attempt begins later than this after the start: a giver that hangs then is killed 8 s later (`BEFORE_STOP`), when
/// a supervisor still waits (`START_TIMEOUT`, 20 s).
const LAST_ATTEMPT: Duration = Duration::from_secs(10);
/// How much longer it tries when the giver is gone: a process that is started again in its place gives way to this one
/// after half a second.
const GIVING_WAY: Duration = Duration::from_secs(1);
/// The pause before that: an attempt takes milliseconds.
const PAUSE: Duration = Duration::from_millis(100);

/// Why an interface could not be taken over. The process that has it goes on.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// That process refuses. Another attempt may succeed.
    #[error("the process that has the interface does not hand it over: {0}")]
    Refused(String),
    /// It sent what cannot be used.
    #[error("what the process that has the interface handed over cannot be used")]
    Unusable,
    /// It does not answer, and cannot be killed.
    #[error(
        "the process that has the interface does not answer, and cannot be killed: end it, and start this again \
         (in a container, share the host's PID namespace)"
    )]
    NotKilled,
    /// A signal told this process to end first.
    #[error("told to end before it had the interface: the process that has it goes on")]
    Ended,
    /// The system refused something.
    #[error("cannot take the interface over: {0}")]
    System(#[from] io::Error),
}

/// What a taker has so far.
struct Taking<'a> {
    name: &'a str,
    mode: Mode,
    state: &'a Path,
    connection: Connection,
    peer: Option<Peer>,
    seed: Zeroizing<[u8; 32]>,
    /// Descriptors that came with the last message.
    arrived: Vec<OwnedFd>,
    descriptors: Vec<(Role, OwnedFd)>,
    prepared: Option<Prepared>,
    ready: Option<Ready>,
    /// When the giver began to stop, in nanoseconds of `CLOCK_BOOTTIME`.
    stopped_at: u64,
}

/// What was made from the copy.
struct Prepared {
    copied: Copied,
    server: Server,
    inbox: Inbox,
    threads: Threads,
    pool: Option<CryptoPool<CryptoJob>>,
    routes: FollowedRoutes,
}

enum Copied {
    State(Box<PreparedState>, LinuxTun, Vec<LinuxQueue>),
    /// Without a state, just the queues. What the kernel takes and gives is agreed on with it after *Commit*: the giver
    /// may know less.
    Nothing(Vec<File>),
}

/// What only waits for the giver's *Commit*.
struct Ready {
    next: Next,
    server: Server,
    inbox: Inbox,
    now: Now,
}

enum Next {
    Engine(Box<Engine<LinuxTun, LinuxNetwork>>),
    /// What an engine without sessions is made of.
    Afresh {
        queues: Vec<File>,
        sockets: Vec<LinuxUdp>,
        mark: u32,
        threads: Threads,
        pool: Option<CryptoPool<CryptoJob>>,
    },
}

impl Interface {
    /// Takes the interface `name` over from the process that has it, with its sessions: neither its peers nor the
    /// programs that use it notice. `None` when there is no such process, or it has ended without answering; then
    /// [`Self::open`] may open the interface. The mode is that of the other process, or this one if it is so much newer
    /// or older that no state can be transferred; then there are no keys and peers, until somebody configures them.
    /// `state` is as for [`Self::open`], and so is what to do before.
    ///
    /// # Errors
    /// [`TakeOverError`].
    pub fn take_over(name: &str, mode: Mode, state: &Path) -> Result<Option<Self>, TakeOverError> {
        let signals = block_signals().map_err(io::Error::from)?;
        // Keys are on their way to this process.
        privileges::forbid_core_dumps()?;
        let holders = Holders::open(&holders_file(name))?;
        holders.enter()?;
        let last = Instant::now() + LAST_ATTEMPT;
        let mut deadline = None;
        loop {
            if asks_for_end(&signals)? {
                return Err(TakeOverError::Ended);
            }
            let Some(taking) = Taking::begin(name, mode, state, &holders)? else { return Ok(None) };
            let (error, longer) = match taking.run(&holders, &signals)? {
                Ok((taking, ready)) => return Ok(taking.serve(ready, signals)),
                Err(Why::Killed) => return Ok(None),
                // A supervisor keeps the listening socket, and nobody has the interface.
                Err(Why::Moved | Why::Gone) if holders.another()?.is_none() => return Ok(None),
                Err(Why::NotKilled) => return Err(TakeOverError::NotKilled),
                Err(Why::Protocol | Why::Unusable) => return Err(TakeOverError::Unusable),
                Err(Why::Refused(reason)) => (reason.to_string(), Duration::ZERO),
                Err(Why::Moved) => ("another process has it by now".into(), GIVING_WAY),
                Err(Why::Gone) => ("it has closed the connection".into(), GIVING_WAY),
            };
            let error = TakeOverError::Refused(error);
            let now = Instant::now();
            if now >= *deadline.get_or_insert(last.min(now + PATIENCE)) + longer {
                return Err(error);
            }
            tracing::info!("{error}; trying again");
            thread::sleep(PAUSE);
        }
    }
}

impl<'a> Taking<'a> {
    /// Connects to the process that has the interface, if there is one.
    fn begin(name: &'a str, mode: Mode, state: &'a Path, holders: &Holders) -> io::Result<Option<Self>> {
        let Some(connection) = Connection::connect(&handover_socket(name))? else { return Ok(None) };
        let peer = connection.peer(holders)?;
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).map_err(io::Error::other)?;
        Ok(Some(Self {
            name,
            mode,
            state,
            connection,
            peer,
            seed,
            arrived: Vec::new(),
            descriptors: Vec::new(),
            prepared: None,
            ready: None,
            stopped_at: 0,
        }))
    }

    /// Goes through the attempt. Returns why it has failed, if it has. A signal that asks for the end ends it until
    /// *Ready*, or until the giver is killed: from then on nobody else may have the interface.
    fn run(
        mut self,
        holders: &Holders,
        signals: &SignalFd,
    ) -> Result<Result<(Self, Ready), Why>, TakeOverError> {
        let mut taker = Taker::new(VERSIONS);
        let mut deadline = None;
        let named_lives = self.peer.as_ref().is_some_and(|peer| !peer.has_ended().unwrap_or(true));
        let mut actions = VecDeque::from(taker.begin(named_lives));
        let (mut failed, mut must_go_on) = (false, false);
        loop {
            if !must_go_on && asks_for_end(signals)? {
                return Err(TakeOverError::Ended);
            }
            let event = match actions.pop_front() {
                None if failed => self.last_event(),
                None if !must_go_on && !self.wait(deadline, signals)? => continue,
                None => self.next_event(deadline),
                Some(Action::Send(message)) => {
                    must_go_on |= message == Message::Ready;
                    failed |= self.connection.send(&message, &[]).is_err();
                    continue;
                }
                Some(Action::SetDeadline(after)) => {
                    deadline = Some(Instant::now() + after);
                    continue;
                }
                Some(Action::Keep(roles)) => {
                    self.descriptors.extend(roles.into_iter().zip(mem::take(&mut self.arrived)));
                    continue;
                }
                Some(Action::Prepare { version, len }) => {
                    deadline = None;
                    self.built(Event::Prepared, |taking| taking.prepare(version, len))
                }
                Some(Action::Apply { len, stopped_at }) => {
                    (deadline, self.stopped_at) = (None, stopped_at);
                    self.built(Event::Built, |taking| taking.apply(len))
                }
                Some(Action::Kill) => {
                    (deadline, must_go_on) = (None, true);
                    self.kill(holders)
                }
                Some(Action::Serve) => {
                    let ready = self.ready.take().expect("it was built before it was said to be ready");
                    return Ok(Ok((self, ready)));
                }
                Some(Action::Wipe(why)) => return Ok(Err(why)),
            };
            actions.extend(taker.handle(event));
        }
    }

    /// Waits until the giver has said something or the time is over. False when a signal came first.
    fn wait(&self, deadline: Option<Instant>, signals: &SignalFd) -> io::Result<bool> {
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now())).unwrap_or_default();
            let awaited = [readable(self.connection.as_fd()), readable(signals.as_fd())];
            match poll::wait(awaited, Some(left))? {
                [false, true] => return Ok(false),
                [false, false] if !left.is_zero() => {}
                _ => return Ok(true),
            }
        }
    }

    fn next_event(&mut self, deadline: Option<Instant>) -> Event {
        match self.connection.receive_until(deadline.unwrap_or_else(Instant::now)) {
            Ok(Arrival::Message(message, descriptors)) => {
                self.arrived = descriptors;
                Event::Received(message)
            }
            Ok(Arrival::Gone) => Event::Gone,
            Ok(Arrival::Nothing) => Event::Deadline,
            Err(error) => {
                tracing::warn!("the process that has the interface does not keep to the protocol: {error}");
                Event::Gone
            }
        }
    }

    /// What the giver said before it closed the connection, such as why it refuses.
    fn last_event(&mut self) -> Event {
        match self.next_event(None) {
            Event::Deadline => Event::Gone,
            event => event,
        }
    }

    /// Kills whoever has the interface, and sees it dead.
    fn kill(&self, holders: &Holders) -> Event {
        tracing::warn!("the process that has the interface does not answer: it is killed");
        match holders.kill(self.peer.as_ref(), DEATH) {
            Ok(()) => Event::GiverDead,
            Err(error) => {
                tracing::error!("cannot kill the process that has the interface: {error}");
                Event::KillFailed
            }
        }
    }

    /// Passes `done` when the step succeeds.
    fn built(&mut self, done: Event, step: impl FnOnce(&mut Self) -> io::Result<()>) -> Event {
        match step(self) {
            Ok(()) => done,
            Err(error) => {
                tracing::warn!("cannot use what the process that has the interface hands over: {error}");
                Event::Failed
            }
        }
    }

    /// Builds everything from the copy of `len` bytes.
    fn prepare(&mut self, version: u32, len: u64) -> io::Result<()> {
        let state = match version {
            0 => None,
            _ => {
                let copy = self.arrived.pop().ok_or_else(missing)?;
                let copy = read_and_wipe(copy, len)?;
                Some(PreparedState::new(&self.seed, &copy).map_err(io::Error::other)?)
            }
        };
        let queues = self.take_queues();
        let count = queues.len();
        let copied = match state {
            Some(state) => {
                let engine = state.engine();
                let (mtu, interface) = (engine.mtu as usize, &engine.interface);
                let (tun, queues) = LinuxTun::take_over(queues, engine.peer_lookup, interface, mtu)?;
                Copied::State(Box::new(state), tun, queues)
            }
            None if queues.is_empty() => return Err(missing()),
            None => Copied::Nothing(queues),
        };
        let listener = self.take(|role| role == Role::Control).ok_or_else(missing)?;
        let mut server = Server::take_over(&control_socket(self.name), listener)?;
        privileges::drop_unneeded()?;
        // Threads inherit the dropped privileges and the blocked signals, so they start only now.
        let inbox = server.prepare()?;
        let threads = Threads::start(count)?;
        let pool = match count {
            1 => None,
            count => Some(CryptoPool::start(count - 1, count)?),
        };
        let routes = FollowedRoutes::open();
        self.prepared = Some(Prepared { copied, server, inbox, threads, pool, routes });
        Ok(())
    }

    /// Applies the changes of `len` bytes.
    fn apply(&mut self, len: u64) -> io::Result<()> {
        let Prepared { copied, server, inbox, threads, pool, routes } =
            self.prepared.take().ok_or_else(missing)?;
        let now = clock::now()?;
        let next = match copied {
            Copied::State(state, tun, queues) => {
                let changes = read_and_wipe(self.arrived.pop().ok_or_else(missing)?, len)?;
                let received = state.with_changes(&changes).map_err(io::Error::other)?;
                let sockets = self.take_sockets(queues.len(), received.shared.engine.fwmark, routes)?;
                let (interface, runner) = ((tun, queues), Box::new(threads));
                let pool = pool.as_ref();
                let engine =
                    Engine::take_over(now, received, interface, LinuxNetwork, sockets, runner, pool)?;
                Next::Engine(Box::new(engine))
            }
            Copied::Nothing(queues) => {
                let mark = self.mark();
                let sockets = self.take_sockets(queues.len(), mark, routes)?;
                Next::Afresh { queues, sockets, mark, threads, pool }
            }
        };
        self.ready = Some(Ready { next, server, inbox, now });
        Ok(())
    }

    /// An engine that knows nothing, on what has come.
    fn engine_afresh(
        &self,
        now: Now,
        queues: Vec<File>,
        (sockets, mark): (Vec<LinuxUdp>, u32),
        threads: Threads,
        pool: Option<&CryptoPool<CryptoJob>>,
    ) -> io::Result<Engine<LinuxTun, LinuxNetwork>> {
        let interface = LinuxTun::take_over_unknown(queues, self.mode.peer_lookup())?;
        let runner = Box::new(threads);
        let mut engine = Engine::new(&self.seed, self.mode, interface, LinuxNetwork, runner, pool)?;
        engine.adopt_unknown(now, sockets, mark)?;
        Ok(engine)
    }

    /// The mark of the sockets that have come.
    fn mark(&self) -> u32 {
        let socket = self.descriptors.iter().find(|(role, _)| matches!(role, Role::Udp { .. }));
        socket.and_then(|(_, socket)| getsockopt(socket, sockopt::Mark).ok()).unwrap_or_default()
    }

    /// Takes the descriptor with a role out of those that have come.
    fn take(&mut self, is_it: impl Fn(Role) -> bool) -> Option<OwnedFd> {
        let position = self.descriptors.iter().position(|(role, _)| is_it(*role))?;
        Some(self.descriptors.swap_remove(position).1)
    }

    /// The interface's queues, in their order.
    fn take_queues(&mut self) -> Vec<File> {
        (0..).map_while(|queue| self.take(|role| role == Role::TunQueue(queue))).map(File::from).collect()
    }

    /// The sockets of the queues; none when the port is closed.
    fn take_sockets(
        &mut self,
        queues: usize,
        mark: u32,
        routes: FollowedRoutes,
    ) -> io::Result<Vec<LinuxUdp>> {
        let mut sockets = Vec::new();
        for queue in 0..queues as u16 {
            let Some(v4) = self.take(|role| role == Role::Udp { queue, v6: false }) else { break };
            sockets.push((v4, self.take(|role| role == Role::Udp { queue, v6: true })));
        }
        if !sockets.is_empty() && sockets.len() < queues {
            return Err(missing());
        }
        LinuxUdp::take_over(sockets, mark, routes)
    }

    /// Goes on where the giver has stopped: the interface is ours. With sessions nothing may fail any more, for nobody
    /// else has them. `None` when it fails without: the interface may be opened afresh.
    fn serve(mut self, ready: Ready, signals: SignalFd) -> Option<Interface> {
        let Ready { next, mut server, inbox, now } = ready;
        let now = clock::now().unwrap_or(now);
        let made = match next {
            Next::Engine(engine) => Ok(*engine),
            Next::Afresh { queues, sockets, mark, threads, pool } => {
                self.engine_afresh(now, queues, (sockets, mark), threads, pool.as_ref())
            }
        };
        let failed = |error: &io::Error| tracing::warn!("cannot go on with the interface: {error}");
        let mut engine = made.inspect_err(failed).ok()?;
        engine.resume();
        engine.note_stopped(BootInstant::from_nanos(self.stopped_at));
        if !engine.note_reading(now.monotonic) {
            tracing::info!(
                "took over from another process; sessions are made anew, and packets wait for that"
            );
        }
        // They are for the case that the giver has died. Open, they would keep a port taken that is closed here.
        drop(Inherited::receive());
        server.serve();
        let listener = self.take(|role| role == Role::Handover);
        let listener = listener.map(|socket| Listener::from_fd(socket, handover_socket(self.name)));
        let giving = match listener {
            Some(Ok(listener)) => Giving::take_over(listener),
            _ => Giving::open(handover_socket(self.name)),
        };
        match KeptTimestamp::open(self.state, self.name) {
            Ok(file) => engine = engine.with_kept_timestamp(file, now),
            Err(error) => tracing::info!("{}", kept_timestamp::complaint(self.state, &error)),
        }
        let service_manager = ServiceManager::start();
        let mut interface = Interface { engine, server, inbox, signals, giving, service_manager };
        interface.keep_all();
        Some(interface)
    }
}

/// Whether a signal has come that asks for the end. The others are for a device that serves, and are forgotten.
fn asks_for_end(signals: &SignalFd) -> io::Result<bool> {
    while let Some(signal) = signals.read_signal()? {
        if [Signal::SIGINT, Signal::SIGTERM].map(|asks| asks as u32).contains(&signal.ssi_signo) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn missing() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a descriptor that is needed has not come")
}
