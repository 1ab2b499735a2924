//! Descriptors that this process's supervisor keeps for the next one, in case this one dies: systemd, or `wireloom
//! engine`, which speak the same protocol (sd_notify(3), sd_listen_fds(3)). Sessions are not kept: a process that died
//! cannot say which nonces it has used.

use std::{
    env,
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use sd_notify::NotifyState;

use crate::handover::envelope::Role;

/// When to try again after the sockets of the port could not be duplicated.
const PORT_PAUSE: Duration = Duration::from_secs(1);

/// The sockets of a queue, and whether each is for IPv6.
type Sockets = Vec<(OwnedFd, bool)>;

/// Whether this process has taken what it was given.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// What the last process has left.
#[derive(Default)]
pub(super) struct Inherited {
    descriptors: Vec<(String, OwnedFd)>,
    /// The names of what is of no use to this process.
    refused: Vec<String>,
}

impl Inherited {
    /// Whether [`Self::receive`] would return something: as long as it does, that is open and nobody uses it.
    pub(super) fn waits() -> bool {
        let is =
            |name, wanted: &dyn Fn(u32) -> bool| env::var(name).is_ok_and(|it| it.parse().is_ok_and(wanted));
        let given = is("LISTEN_PID", &|process| process == std::process::id())
            && is("LISTEN_FDS", &|count| count > 0);
        given && !TAKEN.load(Ordering::Relaxed)
    }

    /// What the supervisor gave to this process; nothing from the second time on.
    pub(super) fn receive() -> Self {
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Self::default();
        }
        let given = sd_notify::listen_fds_with_names();
        let given = given.inspect_err(|error| tracing::warn!("cannot use the stored descriptors: {error}"));
        let own = given.into_iter().flatten().filter_map(|(number, name)| {
            #[expect(unsafe_code, reason = "a supervisor passes descriptors by their numbers")]
            // SAFETY: the supervisor has left them to this process (`LISTEN_PID` is its number), nothing else in it
            // knows of them, and this runs once.
            let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
            fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
            Some((name, descriptor))
        });
        Self { descriptors: own.collect(), refused: Vec::new() }
    }

    /// Closes it.
    fn refuse(&mut self) {
        self.refused.extend(self.descriptors.drain(..).map(|(name, _)| name));
    }

    /// Closes all but the listening sockets. Those who connect reach them as long as the supervisor has them: a process
    /// that did not adopt them would take them for another one's.
    pub(super) fn refuse_traffic(&mut self) {
        let listeners = [Role::Control, Role::Handover].map(Role::stored_name);
        let is_listener = |(name, _): &(String, OwnedFd)| listeners.contains(name);
        let (listeners, traffic) = self.descriptors.drain(..).partition(is_listener);
        self.descriptors = listeners;
        let traffic: Vec<(String, OwnedFd)> = traffic;
        self.refused.extend(traffic.into_iter().map(|(name, _)| name));
    }

    /// Refuses the interface's queues that it has given, so many.
    pub(super) fn refuse_queues(&mut self, count: usize) {
        self.refused.extend((0..count as u16).map(|queue| Role::TunQueue(queue).stored_name()));
    }

    /// The interface's queues, in their order.
    pub(super) fn queues(&mut self) -> Vec<File> {
        (0..).map_while(|queue| self.take(Role::TunQueue(queue))).map(File::from).collect()
    }

    /// The sockets of each queue, IPv4 and IPv6; at most of as many.
    pub(super) fn sockets(&mut self, queues: usize) -> Vec<(OwnedFd, Option<OwnedFd>)> {
        let of = |queue| {
            let v4 = self.take(Role::Udp { queue, v6: false })?;
            Some((v4, self.take(Role::Udp { queue, v6: true })))
        };
        (0..queues as u16).map_while(of).collect()
    }

    /// The descriptor with a role, once.
    pub(super) fn take(&mut self, role: Role) -> Option<OwnedFd> {
        let name = role.stored_name();
        let position = self.descriptors.iter().position(|(stored, _)| *stored == name)?;
        Some(self.descriptors.swap_remove(position).1)
    }
}

/// The supervisor, which is told on a thread of its own: one that hangs holds up nothing else.
pub(super) struct ServiceManager {
    /// `None` without a supervisor.
    notes: Option<Sender<Note>>,
    /// How often the port had changed when its sockets were stored.
    port: Option<u64>,
    /// When to try again to store the sockets, if that failed.
    port_due: Option<Instant>,
}

/// What becomes of the stored descriptor of this name.
enum Note {
    /// The device is ready.
    Ready,
    Keep(String, OwnedFd),
    Forget(String),
}

impl ServiceManager {
    /// Reaches the supervisor, if there is one.
    pub(super) fn start() -> Self {
        if env::var_os("NOTIFY_SOCKET").is_none() {
            return Self::telling(None);
        }
        let (notes, waiting) = channel();
        let told =
            thread::Builder::new().name("supervisor".into()).spawn(move || waiting.iter().for_each(tell));
        Self::telling(told.is_ok().then_some(notes))
    }

    fn telling(notes: Option<Sender<Note>>) -> Self {
        Self { notes, port: None, port_due: None }
    }

    /// Asks to close everything that this process did not take, or has refused. Open, it would keep a port taken, or
    /// packets in a queue that nobody reads.
    pub(super) fn forget_rest(&self, mut inherited: Inherited) {
        inherited.refuse();
        inherited.refused.into_iter().for_each(|name| self.send(Note::Forget(name)));
    }

    /// Says that the device is ready, once what was to be stored before is stored.
    pub(super) fn say_ready(&self) {
        self.send(Note::Ready);
    }

    /// Stores a descriptor, in place of an earlier one with that role.
    pub(super) fn keep(&self, role: Role, descriptor: BorrowedFd<'_>) {
        match descriptor.try_clone_to_owned() {
            Ok(descriptor) => self.send(Note::Keep(role.stored_name(), descriptor)),
            Err(error) => tracing::warn!("cannot store a descriptor for the next process: {error}"),
        }
    }

    /// Whether the sockets of the port, which has changed so often, are to be stored.
    pub(super) fn lacks_port(&self, changes: u64) -> bool {
        let may_try = self.port_due.is_none_or(|at| at <= Instant::now());
        self.notes.is_some() && self.port != Some(changes) && may_try
    }

    /// When to look again at [`Self::lacks_port`], although the port is the same.
    pub(super) fn port_due(&self) -> Option<Instant> {
        self.port_due
    }

    /// Stores the sockets of so many queues, of each family at most one, in place of those of the port before.
    /// Without them, that one stays stored, and this is to be repeated.
    pub(super) fn keep_port(&mut self, changes: u64, queues: usize, sockets: io::Result<Vec<Sockets>>) {
        let mut sockets = match sockets {
            Ok(sockets) => sockets.into_iter(),
            Err(error) => {
                tracing::warn!("cannot store the port for the next process: {error}");
                self.port_due = Some(Instant::now() + PORT_PAUSE);
                return;
            }
        };
        for queue in 0..queues as u16 {
            let mut of_queue = sockets.next().unwrap_or_default();
            for v6 in [false, true] {
                let name = Role::Udp { queue, v6 }.stored_name();
                let position = of_queue.iter().position(|(_, is_v6)| *is_v6 == v6);
                self.send(match position.map(|position| of_queue.swap_remove(position)) {
                    Some((socket, _)) => Note::Keep(name, socket),
                    None => Note::Forget(name),
                });
            }
        }
        (self.port, self.port_due) = (Some(changes), None);
    }

    fn send(&self, note: Note) {
        if let Some(notes) = &self.notes {
            // It fails when the thread has panicked.
            let _ = notes.send(note);
        }
    }
}

fn tell(note: Note) {
    let forget = |name: &str| sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    let outcome = match note {
        Note::Ready => sd_notify::notify(&[NotifyState::Ready]),
        Note::Forget(name) => forget(&name),
        Note::Keep(name, descriptor) => forget(&name).and_then(|()| {
            // Unless it says FDPOLL=0, systemd drops a socket that has an error to report, such as an ICMP message.
            let states = [NotifyState::FdStore, NotifyState::FdName(&name), NotifyState::Custom("FDPOLL=0")];
            sd_notify::notify_with_fds(&states, &[descriptor.as_fd()])
        }),
    };
    if let Err(error) = outcome {
        tracing::warn!("cannot tell the supervisor: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::mpsc::Receiver};

    use super::*;

    fn socket() -> OwnedFd {
        File::open("/dev/null").expect("it is there").into()
    }

    /// What is said of each name, and whether it is to be stored.
    fn said(waiting: &Receiver<Note>) -> BTreeMap<String, bool> {
        let notes = waiting.try_iter().map(|note| match note {
            Note::Keep(name, _) => (name, true),
            Note::Forget(name) => (name, false),
            Note::Ready => ("ready".to_owned(), true),
        });
        notes.collect()
    }

    #[test]
    fn the_port_before_stays_stored_until_there_are_duplicates_of_the_next_one() {
        let (notes, waiting) = channel();
        let mut manager = ServiceManager::telling(Some(notes));
        assert!(manager.lacks_port(1));
        manager.keep_port(1, 2, Ok(vec![vec![(socket(), false), (socket(), true)], vec![(socket(), false)]]));
        let stored = [("udp4-0", true), ("udp6-0", true), ("udp4-1", true), ("udp6-1", false)];
        assert_eq!(said(&waiting), stored.map(|(name, stays)| (name.to_owned(), stays)).into());
        assert!(!manager.lacks_port(1) && manager.lacks_port(2));

        manager.keep_port(2, 2, Err(io::ErrorKind::OutOfMemory.into()));
        assert_eq!(said(&waiting), BTreeMap::new());
        assert!(!manager.lacks_port(2), "not at once again");
        let due = manager.port_due().expect("it is tried again");
        assert!(due <= Instant::now() + PORT_PAUSE);
        manager.port_due = Some(Instant::now());
        assert!(manager.lacks_port(2));
        manager.keep_port(2, 2, Ok(Vec::new()));
        assert!(said(&waiting).values().all(|stays| !stays), "it was closed");
        assert!(!manager.lacks_port(2) && manager.port_due().is_none());
    }
}
