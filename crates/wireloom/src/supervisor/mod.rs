//! The supervisor, `wireloom engine`: a small process that runs `wireloom device`, and keeps its descriptors.
//!
//! One thread waits for everything: signals, requests, what devices say and store, and time. What follows from it, the
//! [`state_machine`] decides.

mod backoff;
mod descriptor;
mod device;
mod notifications;
mod record;
mod server;
mod state_machine;
mod store;
mod systemd;

use std::{
    collections::VecDeque,
    env, io,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        stat::{Mode, umask},
        time::TimeSpec,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use wireloom_kernel::supervisor::{Reply, Request, Status, socket_path};

use self::{
    descriptor::Descriptor,
    device::Device,
    notifications::{Message, Notifications},
    record::{Record, Wanted},
    server::Server,
    state_machine::{Action, Answer, Call, DeviceId, End, Event, Machine},
    systemd::Systemd,
};

pub(crate) use self::device::become_device;
use crate::log_output;

/// How long an answer waits for systemd. It reads within milliseconds, unless it reads all its units again.
const SETTLING_MAX: Duration = Duration::from_secs(2);

/// Supervises until a signal ends it.
pub(crate) fn run() -> anyhow::Result<()> {
    // First of all, because they are known by their numbers.
    let kept = systemd::kept_descriptors().context("cannot close what systemd has kept")?;
    // Before there are any: children whose parents end become ours, and are not left behind.
    prctl::set_child_subreaper(true).context("cannot adopt orphans")?;
    // Its sockets are its user's.
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    let signals = block_signals().context("cannot block signals")?;
    let path = socket_path();
    let server = Server::open(&path).with_context(|| format!("cannot serve {}", path.display()))?;
    let notifications = path.with_extension("notify");
    let notifications = Notifications::open(&notifications)
        .with_context(|| format!("cannot receive on {}", notifications.display()))?;
    let systemd = Systemd::connect(&kept).context("cannot connect to systemd")?;
    let (record, found) = Record::open(path.with_extension("json"));
    // One that was asked to end may have been stopped. If it is restarted, systemd has its descriptors.
    let found = found.filter(|wanted| !wanted.is_ended || !kept.is_empty());
    // Without arguments, nobody can say whose the descriptors are: they are closed, by systemd too.
    let found = found.map(|wanted| Event::Found { arguments: wanted.arguments, descriptors: kept });
    let program = env::current_exe().context("cannot find this program's own file")?;
    let mut supervisor = Supervisor {
        machine: Machine::new(),
        begun: Instant::now(),
        program,
        signals,
        server,
        notifications,
        devices: Vec::new(),
        record,
        systemd,
        events: found.into_iter().collect(),
        words: Vec::new(),
        speaks_by: None,
        is_over: false,
    };
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).context("cannot tell systemd that it is ready")?;
    tracing::info!("ready on {}", path.display());
    supervisor.turn()?;
    while !supervisor.is_over {
        supervisor.wait().context("cannot wait for events")?;
        supervisor.turn()?;
    }
    Ok(())
}

struct Supervisor {
    machine: Machine<Rc<Descriptor>>,
    begun: Instant,
    /// Where the program's file was when the supervisor started. A newer one may be there now.
    program: PathBuf,
    signals: SignalFd,
    server: Server,
    notifications: Notifications,
    /// Those that have not ended.
    devices: Vec<Device>,
    /// What the next supervisor is to know.
    record: Record,
    /// What the next supervisor is to have.
    systemd: Systemd,
    events: VecDeque<Event<Rc<Descriptor>>>,
    /// Answers, and that this process ends, which wait for systemd.
    words: Vec<Action<Rc<Descriptor>>>,
    /// Until when they wait at most, by the machine's clock; `None` when there are none.
    speaks_by: Option<Duration>,
    is_over: bool,
}

impl Supervisor {
    /// The machine's clock.
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Waits until there is something to do.
    fn wait(&self) -> io::Result<()> {
        let until_due = self.machine.next_time().map(|at| at.saturating_sub(self.now()));
        let others = [self.server.until_late(), self.systemd.until_retry(), self.record.until_retry()];
        let until_spoken = self.speaks_by.map(|by| by.saturating_sub(self.now()));
        let timeout = until_due.into_iter().chain(until_spoken).chain(others.into_iter().flatten()).min();
        let fixed = [self.signals.as_fd(), self.notifications.as_fd()];
        let words = self.devices.iter().filter_map(Device::words);
        let mut fds: Vec<_> =
            fixed.into_iter().chain(words).chain(self.server.awaited()).map(readable).collect();
        fds.extend(self.systemd.awaited().map(|fd| PollFd::new(fd, PollFlags::POLLOUT)));
        fds.extend(self.systemd.barrier().map(readable));
        match ppoll(&mut fds, timeout.map(TimeSpec::from), None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn turn(&mut self) -> anyhow::Result<()> {
        log_output::report_lost();
        self.read_signals().context("cannot read signals")?;
        for (call, request) in self.server.requests() {
            self.ask(call, request);
        }
        for device in &mut self.devices {
            device.forward();
        }
        let ended = reap();
        // After that: what a device has said before its end has come then.
        self.hear().context("cannot receive from the device")?;
        for (pid, end) in ended {
            self.note_end(pid, end);
        }
        self.events.push_back(Event::Time);
        while let Some(event) = self.events.pop_front() {
            for action in self.machine.handle(self.now(), event) {
                match action {
                    Action::Answer(..) | Action::Exit => {
                        self.speaks_by.get_or_insert(self.begun.elapsed() + SETTLING_MAX);
                        self.words.push(action);
                    }
                    deed => self.perform(deed),
                }
            }
        }
        self.keep();
        self.speak();
        Ok(())
    }

    /// Says what is to be said, but not before systemd has read what it is to close: then whoever hears that a device
    /// was stopped finds port and interface free.
    fn speak(&mut self) {
        // Each time, because the barrier is waited for until this sees that it is hung up.
        let is_settled = self.systemd.is_settled();
        if self.speaks_by.is_some_and(|by| is_settled || self.now() >= by) {
            self.speaks_by = None;
            for action in std::mem::take(&mut self.words) {
                self.perform(action);
            }
        }
    }

    /// Says what the next supervisor is to know and to have.
    fn keep(&mut self) {
        let is_ended = self.machine.is_exiting();
        let wanted = self.machine.wanted().filter(|_| !is_ended || self.systemd.is_there());
        self.record.keep(wanted.map(|arguments| Wanted { arguments: arguments.to_vec(), is_ended }));
        self.systemd.keep(&self.machine.wanted_descriptors());
    }

    fn read_signals(&mut self) -> nix::Result<()> {
        while let Some(signal) = self.signals.read_signal()? {
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                self.events.push_back(Event::Signalled);
            }
        }
        Ok(())
    }

    fn ask(&mut self, call: Call, request: Request) {
        match request {
            Request::Status {} => self.answer(call, Answer::Done),
            Request::Stop {} => self.events.push_back(Event::Stop(call)),
            Request::Release {} => self.events.push_back(Event::Release(call)),
            Request::Run { arguments, .. } if arguments.iter().any(|word| word == "--take-over") => {
                let why = "--take-over is no argument here: say \"take_over\": true";
                self.answer(call, Answer::Failed(why.into()));
            }
            Request::Run { arguments, take_over } => {
                self.events.push_back(Event::Run { call, arguments, take_over });
            }
        }
    }

    /// Hears what devices say. Messages of other processes are ignored.
    fn hear(&mut self) -> io::Result<()> {
        while let Some((sender, messages)) = self.notifications.receive()? {
            let Some(device) = self.devices.iter().find(|device| device.pid() == sender) else {
                tracing::warn!(
                    "process {sender}, which is no device of ours, sent a notification; it is ignored"
                );
                continue;
            };
            let id = device.id;
            self.events.extend(messages.into_iter().map(|message| match message {
                Message::Ready => Event::Ready(id),
                Message::Store(name, descriptor) => Event::Stored(id, name, Rc::new(descriptor)),
                Message::Remove(name) => Event::Removed(id, name),
            }));
        }
        Ok(())
    }

    /// Notes the end of a process: of a device, or of an orphan, which is of no interest.
    fn note_end(&mut self, pid: Pid, end: WaitStatus) {
        let Some(index) = self.devices.iter().position(|device| device.pid() == pid) else { return };
        let mut device = self.devices.swap_remove(index);
        device.forward();
        let end = match end {
            WaitStatus::Signaled(_, signal, _) => End::Killed(signal.as_str()),
            WaitStatus::Exited(_, status) => End::Exited(status, device.reason()),
            _ => End::Exited(-1, None),
        };
        tracing::info!("process {pid} has ended: {end}");
        self.events.push_back(Event::Ended(device.id, end));
    }

    fn perform(&mut self, action: Action<Rc<Descriptor>>) {
        match action {
            Action::Start { device, arguments, take_over, descriptors } => {
                let notify = self.notifications.path();
                match Device::start(device, &self.program, &arguments, take_over, &descriptors, notify) {
                    Ok(started) => {
                        let with = descriptors.len();
                        tracing::info!(
                            "process {} is `wireloom device {}`, with {with} kept descriptors",
                            started.pid(),
                            arguments.join(" ")
                        );
                        self.devices.push(started);
                    }
                    Err(error) => {
                        tracing::error!("cannot start the device: {error}");
                        self.events.push_back(Event::Ended(device, End::NotStarted(error.to_string())));
                    }
                }
            }
            Action::Terminate(device) => self.signal(device, Signal::SIGTERM),
            Action::Kill(device) => self.signal(device, Signal::SIGKILL),
            Action::Answer(call, answer) => self.answer(call, answer),
            Action::Exit => self.is_over = true,
        }
    }

    fn signal(&self, id: DeviceId, signal: Signal) {
        // It has not been waited for, so the number is still its own.
        if let Some(pid) = self.pid(id)
            && let Err(error) = kill(pid, signal)
        {
            tracing::error!("cannot send {signal} to process {pid}: {error}");
        }
    }

    fn pid(&self, id: DeviceId) -> Option<Pid> {
        self.devices.iter().find(|device| device.id == id).map(Device::pid)
    }

    fn answer(&mut self, call: Call, answer: Answer) {
        let reply = match answer {
            Answer::Done => Reply::Ok(self.status()),
            Answer::Busy(why) => Reply::Busy(why.into()),
            Answer::Failed(why) => Reply::Error(why),
        };
        self.server.answer(call, &reply);
    }

    fn status(&self) -> Status {
        let pid = self.machine.first().and_then(|id| self.pid(id));
        Status {
            state: self.machine.state(),
            process: pid.and_then(|pid| u32::try_from(pid.as_raw()).ok()),
            arguments: self.machine.arguments(),
            descriptors: self.machine.descriptors(),
            released: self.machine.is_released(),
            restarts: self.machine.restarts(),
            last_end: self.machine.last_end().map(str::to_owned),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// An entry that waits until a descriptor is readable.
fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

/// Takes note of all children that have ended, orphans that became ours included.
fn reap() -> Vec<(Pid, WaitStatus)> {
    let mut ended = Vec::new();
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG))
        && let Some(pid) = status.pid()
    {
        ended.push((pid, status));
    }
    ended
}

/// Blocks the signals and returns a descriptor that they are read from. Devices unblock them ([`become_device`]).
fn block_signals() -> nix::Result<SignalFd> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGCHLD]);
    signals.thread_block()?;
    // A process whose terminal is gone, or that is told to read its files again, goes on.
    SigSet::from_iter([Signal::SIGHUP]).thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}
