//! Gives the interface to the next process: carries out what [`Giver`] says, on the control thread.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use wireloom_proto::Instant as BootInstant;
use wireloom_types::LinkAddress;

use super::{Interface, clock};
use crate::{
    handover::{
        envelope::{Message, Reason, Role, Versions},
        giver::{Action, Event, Giver, Restraint, busy},
        memory::SecretFile,
        socket::{Arrival, Connection, Listener},
        state::{InterfaceState, Snapshot, VERSION},
    },
    tun::Tun as _,
    udp::LinuxUdp,
};

/// The versions of the state that this release knows.
pub(super) const VERSIONS: Versions = Versions { oldest: VERSION, newest: VERSION };

/// The pause after a taker could not be accepted. Without one, the control thread would do nothing else.
const PAUSE: Duration = Duration::from_millis(100);

/// How long the engine handles what its workers had punted when it stops. A multicast to thousands of peers takes as
/// long.
const STOP_MAX: Duration = Duration::from_millis(20);

/// The hand-over socket, and the attempt of a taker.
pub(super) struct Giving {
    /// `None` when it could not be opened: nobody can take over then.
    listener: Option<Listener>,
    attempt: Option<Attempt>,
    restraint: Restraint,
    /// Until when no taker is accepted, because there are no descriptors or no memory for one.
    paused: Option<Instant>,
}

struct Attempt {
    giver: Giver,
    connection: Connection,
    deadline: Option<Instant>,
    /// When the engine began to stop, in nanoseconds of `CLOCK_BOOTTIME`, if it has stopped.
    stopped_at: Option<u64>,
    /// What was copied.
    snapshot: Option<Snapshot>,
    /// [`Engine::port_changes`](crate::engine::Engine::port_changes) when the sockets were sent.
    port_changes: u64,
    /// The interface's link address then.
    link_address: Option<LinkAddress>,
    /// What was copied of the interface.
    interface: InterfaceState,
    /// The state on its way to the taker. It is wiped on drop, if the taker has not done so.
    on_the_way: Vec<SecretFile>,
}

impl Giving {
    /// Opens the socket. A device works without it, too.
    pub(super) fn open(path: PathBuf) -> Self {
        let shown = path.display().to_string();
        let listener = match Listener::open(path) {
            Ok(Some(listener)) => Some(listener),
            Ok(None) => {
                tracing::warn!("another process serves {shown}: nobody can take this interface over");
                None
            }
            Err(error) => {
                tracing::info!("nobody can take this interface over: cannot make {shown}: {error}");
                None
            }
        };
        Self { listener, attempt: None, restraint: Restraint::default(), paused: None }
    }

    /// Goes on with a socket that another process has made.
    pub(super) fn take_over(listener: Listener) -> Self {
        let restraint = Restraint::default();
        Self { listener: Some(listener), attempt: None, restraint, paused: None }
    }

    /// Removes the socket.
    pub(super) fn close(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.remove();
        }
    }

    /// The socket, whether takers are accepted or not.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// Readable when a taker has come that is accepted.
    pub(super) fn takers(&self) -> Option<BorrowedFd<'_>> {
        self.listener().filter(|_| !self.is_paused())
    }

    fn is_paused(&self) -> bool {
        self.paused.is_some_and(|until| until > Instant::now())
    }

    /// Readable when the taker has sent something.
    pub(super) fn taker(&self) -> Option<BorrowedFd<'_>> {
        self.attempt.as_ref().map(|attempt| attempt.connection.as_fd())
    }

    /// When to look again: when the taker's time is over, or takers are accepted again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let paused = self.paused.filter(|_| self.is_paused());
        self.attempt.as_ref().and_then(|attempt| attempt.deadline).into_iter().chain(paused).min()
    }
}

impl Interface {
    /// Serves takers. Returns true when one of them has the interface.
    ///
    /// # Errors
    /// When the engine cannot go on.
    pub(super) fn give(&mut self) -> io::Result<bool> {
        self.accept_takers()?;
        while let Some(mut attempt) = self.giving.attempt.take() {
            let is_as_before = attempt.port_changes == self.engine.port_changes()
                && attempt.link_address == self.engine.tun().link_address();
            let event = match is_as_before {
                true => attempt.next_event(),
                // The taker would have a port that is closed by now, or another address. It may try again.
                false => Some(attempt.refuse("the port or the interface has changed meanwhile")),
            };
            let Some(event) = event else {
                self.giving.attempt = Some(attempt);
                break;
            };
            let actions = attempt.giver.handle(event);
            self.carry_out(&mut attempt, actions.into())?;
            if attempt.giver.has_finished() {
                return Ok(true);
            }
            if !attempt.giver.is_over() {
                self.giving.attempt = Some(attempt);
            }
        }
        Ok(false)
    }

    fn accept_takers(&mut self) -> io::Result<()> {
        while !self.giving.is_paused() {
            let taker = match self.giving.listener.as_ref().map(Listener::accept) {
                Some(Ok(Some(taker))) => taker,
                None | Some(Ok(None)) => return Ok(()),
                Some(Err(error)) => {
                    tracing::warn!("cannot accept a process that would take over: {error}");
                    self.giving.paused = Some(Instant::now() + PAUSE);
                    return Ok(());
                }
            };
            let is_busy = self.giving.attempt.is_some();
            let refusal = is_busy.then(busy).or_else(|| self.giving.restraint.refusal(Instant::now()));
            if let Some(refusal) = refusal {
                // It closes the connection, or finds it closed.
                let _ = taker.send(&refusal, &[]);
                continue;
            }
            let giver = Giver::new(VERSIONS);
            let actions = giver.begin();
            let mut attempt = Attempt {
                giver,
                connection: taker,
                deadline: None,
                stopped_at: None,
                snapshot: None,
                port_changes: self.engine.port_changes(),
                link_address: self.engine.tun().link_address(),
                interface: InterfaceState::default(),
                on_the_way: Vec::new(),
            };
            self.carry_out(&mut attempt, actions.into())?;
            self.giving.attempt = Some(attempt);
        }
        Ok(())
    }

    /// Carries out the actions, and those that follow from them.
    fn carry_out(&mut self, attempt: &mut Attempt, mut actions: VecDeque<Action>) -> io::Result<()> {
        let mut failed = None;
        loop {
            let Some(action) = actions.pop_front() else {
                match failed.take() {
                    Some(gone) => actions.extend(attempt.giver.handle(gone)),
                    None => return Ok(()),
                }
                continue;
            };
            let event = match action {
                Action::Send(message) => gone_unless(attempt.connection.send(&message, &[])),
                Action::SendDescriptors => gone_unless(self.send_descriptors(attempt)),
                Action::SendCopy { version } => gone_unless(self.send_copy(attempt, version)),
                Action::SetDeadline(after) => {
                    attempt.deadline = Some(Instant::now() + after);
                    None
                }
                Action::AwaitReady => {
                    let stopped_at = attempt.stopped_at.unwrap_or_default();
                    let took = clock::now()?.monotonic.since(BootInstant::from_nanos(stopped_at));
                    let now = Instant::now();
                    attempt.deadline = Some(now + self.giving.restraint.ready_limit(took, now));
                    None
                }
                Action::Stop => {
                    self.stop(attempt)?;
                    Some(Event::Stopped)
                }
                Action::SendChanges { version } => gone_unless(self.send_changes(attempt, version)),
                Action::Commit => Some(match attempt.connection.send(&Message::Commit, &[]) {
                    Ok(()) => Event::Sent,
                    Err(_) => Event::SendFailed,
                }),
                Action::Resume => {
                    self.resume(attempt);
                    None
                }
                Action::Close => {
                    if attempt.snapshot.is_some() {
                        tracing::warn!(
                            "an attempt to take the interface over has failed; this process goes on"
                        );
                    }
                    None
                }
                Action::Finish => {
                    tracing::info!("another process has taken the interface over");
                    None
                }
            };
            match event {
                None => {}
                Some(Event::Gone) => failed = Some(Event::Gone),
                Some(event) => actions.extend(attempt.giver.handle(event)),
            }
        }
    }

    fn send_descriptors(&mut self, attempt: &Attempt) -> io::Result<()> {
        let mut sockets: Vec<(Role, OwnedFd)> = Vec::new();
        for (queue, duplicates) in self.engine.sockets(LinuxUdp::duplicates)?.into_iter().enumerate() {
            let role = |v6| Role::Udp { queue: queue as u16, v6 };
            sockets.extend(duplicates.into_iter().map(|(socket, v6)| (role(v6), socket)));
        }
        let queues = self.engine.tun().queues().enumerate();
        let mut all: Vec<_> = queues.map(|(queue, file)| (Role::TunQueue(queue as u16), file)).collect();
        all.extend(sockets.iter().map(|(role, socket)| (*role, socket.as_fd())));
        all.push((Role::Control, self.server.as_fd()));
        all.extend(self.giving.listener().map(|listener| (Role::Handover, listener)));
        attempt.connection.send_descriptors(&all)
    }

    fn send_copy(&mut self, attempt: &mut Attempt, version: u32) -> io::Result<()> {
        if version == 0 {
            return attempt.connection.send(&Message::Copy { len: 0 }, &[]);
        }
        attempt.interface = self.engine.tun().state();
        let snapshot = self.engine.snapshot(attempt.interface);
        let file = SecretFile::new(&snapshot.copy())?;
        attempt.snapshot = Some(snapshot);
        attempt.connection.send(&Message::Copy { len: file.len() }, &[file.as_fd()])?;
        attempt.on_the_way.push(file);
        Ok(())
    }

    fn stop(&mut self, attempt: &mut Attempt) -> io::Result<()> {
        // Clients that connect from now on wait for whoever serves next.
        self.server.pause();
        let now = clock::now()?;
        attempt.stopped_at = Some(now.monotonic.as_nanos());
        let until = now.monotonic + STOP_MAX;
        self.engine.stop(now, || clock::now().is_ok_and(|now| now.monotonic >= until))
    }

    fn send_changes(&mut self, attempt: &mut Attempt, version: u32) -> io::Result<()> {
        let stopped_at = attempt.stopped_at.unwrap_or_default();
        let Some(snapshot) = attempt.snapshot.as_ref().filter(|_| version > 0) else {
            return attempt.connection.send(&Message::Changes { len: 0, stopped_at }, &[]);
        };
        let file = SecretFile::new(&self.engine.changes_since(snapshot, attempt.interface))?;
        attempt.connection.send(&Message::Changes { len: file.len(), stopped_at }, &[file.as_fd()])?;
        attempt.on_the_way.push(file);
        Ok(())
    }

    fn resume(&mut self, attempt: &mut Attempt) {
        attempt.stopped_at = None;
        self.giving.restraint.note_failure(Instant::now());
        self.engine.resume();
        self.server.resume();
    }

    /// A wait that ends in time for what is due here.
    pub(super) fn no_longer_than(&self, timeout: Option<Duration>) -> Option<Duration> {
        let due = self.giving.deadline().into_iter().chain(self.service_manager.port_due());
        let until = due.map(|at| at.saturating_duration_since(Instant::now()));
        timeout.into_iter().chain(until).min()
    }
}

impl Attempt {
    /// Tells the taker why it gets nothing, and ends the attempt.
    fn refuse(&self, reason: &str) -> Event {
        // It finds the connection closed otherwise.
        let _ = self.connection.send(&Message::Refused(Reason::new(reason)), &[]);
        Event::Gone
    }

    /// What has happened. While the engine has stopped, it waits for that; otherwise nothing may have.
    fn next_event(&self) -> Option<Event> {
        let late = self.deadline.is_some_and(|deadline| deadline <= Instant::now());
        let arrival = match self.deadline.filter(|_| self.stopped_at.is_some()) {
            Some(deadline) => self.connection.receive_until(deadline),
            None => self.connection.receive(),
        };
        match arrival {
            Ok(Arrival::Message(message, _)) => Some(Event::Received(message)),
            Ok(Arrival::Gone) => Some(Event::Gone),
            Ok(Arrival::Nothing) => (late || self.stopped_at.is_some()).then_some(Event::Deadline),
            Err(error) => {
                tracing::warn!("a process that would take over does not keep to the protocol: {error}");
                Some(Event::Gone)
            }
        }
    }
}

/// The event of an action that failed.
fn gone_unless(outcome: io::Result<()>) -> Option<Event> {
    outcome.err().map(|error| {
        tracing::warn!("cannot give the interface to another process: {error}");
        Event::Gone
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_goes_over_while_takers_are_not_accepted() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut giving = Giving::open(directory.path().join("wg0.handover"));
        assert!(giving.takers().is_some());
        giving.paused = Some(Instant::now() + PAUSE * 100);
        assert!(giving.takers().is_none() && giving.listener().is_some());
    }
}
