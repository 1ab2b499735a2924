//! What the supervisor decides: when a device is started, ended and started again, and who gets its descriptors.
//!
//! Pure: events come in with the time, actions go out. At most two devices run that are meant to: the *first*, which
//! carries packets or is to do so, and the *second*, which takes over from it. Once the second is ready it is the
//! first, and the one before is *superseded*: it ends by itself, and is ended if it does not.

use std::{fmt, time::Duration};

use wireloom_kernel::supervisor::{END_TIMEOUT, START_TIMEOUT, State};
use wireloom_types::exit_status;

use super::{backoff::Backoff, store::Store};

/// [`exit_status::HANDED_OVER`], as the kernel reports it.
pub(super) const HANDED_OVER: i32 = exit_status::HANDED_OVER as i32;

/// How long a superseded device may take to end by itself.
const SUPERSEDED_TIMEOUT: Duration = Duration::from_secs(2);

/// A device that was started, one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct DeviceId(pub(super) u64);

/// A request that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Call(pub(super) u64);

/// What happened. `D` is a descriptor.
#[derive(Debug)]
pub(super) enum Event<D> {
    /// [`wireloom_kernel::supervisor::Request::Run`].
    Run { call: Call, arguments: Vec<String>, take_over: bool },
    /// [`wireloom_kernel::supervisor::Request::Stop`].
    Stop(Call),
    /// [`wireloom_kernel::supervisor::Request::Release`].
    Release(Call),
    /// A device with these arguments ran when the supervisor before was killed, and these are its descriptors that
    /// systemd has kept.
    Found { arguments: Vec<String>, descriptors: Vec<(String, D)> },
    /// A signal asks the supervisor to end.
    Signalled,
    /// A device says that it is ready.
    Ready(DeviceId),
    /// A device stores a descriptor.
    Stored(DeviceId, String, D),
    /// A device asks to drop the descriptors of a name.
    Removed(DeviceId, String),
    /// A device has ended.
    Ended(DeviceId, End),
    /// Time has passed.
    Time,
}

/// How a device ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With an exit status, and the last line of its standard error.
    Exited(i32, Option<String>),
    /// By the signal of this name.
    Killed(&'static str),
    /// It could not be started.
    NotStarted(String),
}

impl End {
    /// Whether somebody asked for it: its interface or its control socket was removed, or it got SIGTERM.
    fn is_asked(&self) -> bool {
        matches!(self, Self::Exited(0, _))
    }

    /// Whether another process has the interface: the device has handed over to it, or has found it at its start.
    fn is_handed_over(&self) -> bool {
        matches!(self, Self::Exited(HANDED_OVER, _))
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(HANDED_OVER, _) => f.write_str("another device has the interface"),
            Self::Exited(0, _) => f.write_str("the device has ended because somebody asked for it"),
            Self::Exited(_, Some(said)) => f.write_str(said),
            Self::Exited(status, None) => write!(f, "the device has ended with status {status}"),
            Self::Killed(signal) => write!(f, "the device was killed by {signal}"),
            Self::NotStarted(why) => write!(f, "cannot start the device: {why}"),
        }
    }
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action<D> {
    /// Starts a device with these descriptors. If that is impossible, it has [`End::NotStarted`].
    Start { device: DeviceId, arguments: Vec<String>, take_over: bool, descriptors: Vec<(String, D)> },
    /// Sends it SIGTERM.
    Terminate(DeviceId),
    /// Sends it SIGKILL.
    Kill(DeviceId),
    /// Answers a call.
    Answer(Call, Answer),
    /// Ends the supervisor. No device is left.
    Exit,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Busy(&'static str),
    Failed(String),
}

/// A device that was started and has not ended.
#[derive(Debug)]
struct Device<D> {
    id: DeviceId,
    arguments: Vec<String>,
    started: Duration,
    is_ready: bool,
    store: Store<D>,
    due: Option<(Duration, Due)>,
    /// It was not ready in time.
    is_late: bool,
    /// The supervisor before had run it. It is tried once: if it ends before it is ready, it is not started again.
    was_found: bool,
}

/// What is done with a device when its time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Terminate,
    Kill,
}

/// The supervisor's mind.
#[derive(Debug)]
pub(super) struct Machine<D> {
    started: u64,
    first: Option<Device<D>>,
    second: Option<Device<D>>,
    superseded: Vec<Device<D>>,
    /// The arguments of the last device that was ready, as long as it is started again when it ends. At first: of the
    /// one that was found.
    wanted: Option<Vec<String>>,
    /// What a device that has ended left for the next one. While a device with other arguments is to be the first: what
    /// the wanted one left.
    kept: Store<D>,
    backoff: Backoff,
    restart_at: Option<Duration>,
    restarts: u64,
    /// Who waits for a device to be ready.
    runner: Option<Call>,
    /// Who waits until no device is left.
    stoppers: Vec<Call>,
    is_released: bool,
    is_exiting: bool,
    last_end: Option<String>,
    actions: Vec<Action<D>>,
}

impl<D: Clone> Machine<D> {
    pub(super) fn new() -> Self {
        Self {
            started: 0,
            first: None,
            second: None,
            superseded: Vec::new(),
            wanted: None,
            kept: Store::default(),
            backoff: Backoff::default(),
            restart_at: None,
            restarts: 0,
            runner: None,
            stoppers: Vec::new(),
            is_released: false,
            is_exiting: false,
            last_end: None,
            actions: Vec::new(),
        }
    }

    /// Takes an event at a time of the monotonic clock, and says what to do, in this order.
    pub(super) fn handle(&mut self, now: Duration, event: Event<D>) -> Vec<Action<D>> {
        match event {
            Event::Run { call, arguments, take_over } => self.run(now, call, arguments, take_over),
            Event::Stop(call) => {
                self.stoppers.push(call);
                self.forget();
                self.end_all(now, "somebody stopped the device");
            }
            Event::Release(call) => self.release(call),
            Event::Found { arguments, descriptors } => self.resume(now, arguments, descriptors),
            Event::Signalled => {
                self.is_exiting = true;
                self.restart_at = None;
                self.end_all(now, "the supervisor ends");
            }
            Event::Ready(id) => self.ready(now, id),
            Event::Stored(id, name, descriptor) => {
                if let Some(device) = self.meant(id)
                    && !device.store.add(name, descriptor)
                {
                    tracing::warn!("the device stores too many descriptors; one is dropped");
                }
            }
            Event::Removed(id, name) => {
                if let Some(device) = self.meant(id) {
                    device.store.remove(&name);
                }
            }
            Event::Ended(id, end) => self.ended(now, id, &end),
            Event::Time => {}
        }
        self.pass_time(now);
        self.settle();
        std::mem::take(&mut self.actions)
    }

    /// When [`Event::Time`] is due; `None`: never.
    pub(super) fn next_time(&self) -> Option<Duration> {
        let devices = self.devices().filter_map(|device| device.due.map(|(at, _)| at));
        devices.chain(self.restart_at).min()
    }

    /// Whether the supervisor was asked to end.
    pub(super) fn is_exiting(&self) -> bool {
        self.is_exiting
    }

    /// The arguments of the device that a next supervisor is to start, if this one is killed or restarted.
    pub(super) fn wanted(&self) -> Option<&[String]> {
        self.wanted.as_deref().filter(|_| !self.is_released)
    }

    pub(super) fn state(&self) -> State {
        match &self.first {
            _ if self.is_ending() => State::Ending,
            Some(first) if first.is_ready => State::Running,
            Some(_) => State::Starting,
            None if self.second.is_some() => State::Starting,
            None if self.restart_at.is_some() => State::Waiting,
            None => State::Idle,
        }
    }

    /// The device that carries packets, or is to do so.
    pub(super) fn first(&self) -> Option<DeviceId> {
        self.first.as_ref().map(|device| device.id)
    }

    /// The arguments of the device that carries packets, or is to do so.
    pub(super) fn arguments(&self) -> Vec<String> {
        let running = self.first.as_ref().map(|device| &device.arguments);
        running.or(self.wanted.as_ref()).cloned().unwrap_or_default()
    }

    /// How many descriptors are kept.
    pub(super) fn descriptors(&self) -> usize {
        self.store().len()
    }

    /// The descriptors that a next supervisor is to have, if this one is killed or restarted: those of the device that
    /// is wanted. A first device with other arguments is not wanted yet.
    pub(super) fn wanted_descriptors(&self) -> Vec<(String, D)> {
        let is_other =
            |wanted: &&[String]| self.first.as_ref().is_some_and(|first| first.arguments != *wanted);
        self.wanted().filter(|wanted| !is_other(wanted)).map(|_| self.store().all()).unwrap_or_default()
    }

    /// Whether the device is not started again when it ends.
    pub(super) fn is_released(&self) -> bool {
        self.is_released
    }

    pub(super) fn restarts(&self) -> u64 {
        self.restarts
    }

    pub(super) fn last_end(&self) -> Option<&str> {
        self.last_end.as_deref()
    }

    fn run(&mut self, now: Duration, call: Call, arguments: Vec<String>, take_over: bool) {
        let mut answer = |answer| self.actions.push(Action::Answer(call, answer));
        if self.is_exiting {
            return answer(Answer::Failed("the supervisor ends".into()));
        }
        if !self.stoppers.is_empty() {
            return answer(Answer::Busy("a device is being ended"));
        }
        if self.second.is_some() || self.first.as_ref().is_some_and(|first| !first.is_ready) {
            return answer(Answer::Busy("a device is being started"));
        }
        self.is_released = false;
        self.runner = Some(call);
        self.restart_at = None;
        match &self.first {
            Some(first) => {
                let descriptors = first.store.all();
                self.second = Some(self.start(now, arguments, true, descriptors));
            }
            None => self.start_with_kept(now, arguments, take_over),
        }
    }

    /// Starts a device, once: if it fails, another instance may have its interface. A supervisor that ends before the
    /// device is ready leaves it to the next one.
    fn resume(&mut self, now: Duration, arguments: Vec<String>, descriptors: Vec<(String, D)>) {
        if self.devices().next().is_none() && self.restart_at.is_none() && !self.is_exiting {
            self.restarts += 1;
            self.kept = Store::from_iter(descriptors);
            self.wanted = Some(arguments.clone());
            self.start_with_kept(now, arguments, false);
            self.first.iter_mut().for_each(|first| first.was_found = true);
        }
    }

    /// Starts the first device, with what the one before has left.
    fn start_with_kept(&mut self, now: Duration, arguments: Vec<String>, take_over: bool) {
        let store = std::mem::take(&mut self.kept).inherited();
        if self.wanted.as_ref().is_some_and(|wanted| *wanted != arguments) {
            // If it fails, the wanted one is started again, with what it had.
            self.kept = Store::from_iter(store.all());
        }
        let mut device = self.start(now, arguments, take_over, store.all());
        device.store = store;
        self.first = Some(device);
    }

    fn start(
        &mut self,
        now: Duration,
        arguments: Vec<String>,
        take_over: bool,
        descriptors: Vec<(String, D)>,
    ) -> Device<D> {
        self.started += 1;
        let id = DeviceId(self.started);
        self.actions.push(Action::Start { device: id, arguments: arguments.clone(), take_over, descriptors });
        Device {
            id,
            arguments,
            started: now,
            is_ready: false,
            store: Store::default(),
            due: Some((now + START_TIMEOUT, Due::Terminate)),
            is_late: false,
            was_found: false,
        }
    }

    fn release(&mut self, call: Call) {
        self.is_released = true;
        if self.first.is_none() && self.second.is_none() {
            self.forget();
        }
        self.actions.push(Action::Answer(call, Answer::Done));
    }

    /// No device is wanted any more.
    fn forget(&mut self) {
        self.wanted = None;
        self.restart_at = None;
        self.kept = Store::default();
    }

    fn end_all(&mut self, now: Duration, why: &str) {
        if let Some(call) = self.runner.take() {
            self.actions.push(Action::Answer(call, Answer::Failed(why.into())));
        }
        let devices = self.first.iter_mut().chain(&mut self.second).chain(&mut self.superseded);
        for device in devices.filter(|device| !matches!(device.due, Some((_, Due::Kill)))) {
            device.due = Some((now + END_TIMEOUT, Due::Kill));
            self.actions.push(Action::Terminate(device.id));
        }
    }

    fn ready(&mut self, now: Duration, id: DeviceId) {
        if self.is_ending() {
            return;
        }
        if self.second.as_ref().is_some_and(|second| second.id == id && !second.is_late)
            && let Some(mut second) = self.second.take()
        {
            let mut before = std::mem::take(&mut self.kept);
            if let Some(mut first) = self.first.take() {
                before = std::mem::take(&mut first.store);
                first.due = Some((now + SUPERSEDED_TIMEOUT, Due::Terminate));
                self.superseded.push(first);
            }
            second.store = before.succeeded_by(second.store);
            self.first = Some(second);
        }
        let Some(first) = self.first.as_mut().filter(|first| first.id == id && !first.is_late) else {
            return;
        };
        if first.is_ready {
            return;
        }
        first.is_ready = true;
        first.due = None;
        self.kept = Store::default();
        self.wanted = Some(first.arguments.clone());
        if let Some(call) = self.runner.take() {
            self.backoff.reset();
            self.actions.push(Action::Answer(call, Answer::Done));
        }
    }

    fn ended(&mut self, now: Duration, id: DeviceId, end: &End) {
        let is = |device: &Option<Device<D>>| device.as_ref().is_some_and(|device| device.id == id);
        let why = |device: &Device<D>| match device.is_late {
            true => format!("the device was not ready within {} s", START_TIMEOUT.as_secs()),
            false => end.to_string(),
        };
        if is(&self.second)
            && let Some(second) = self.second.take()
        {
            self.last_end = Some(why(&second));
            self.fail(&why(&second));
            // The first may have ended meanwhile. It may even have handed over to this one.
            if self.first.is_none() && !self.is_ending() {
                self.start_again(now, now.saturating_sub(second.started));
            }
        } else if is(&self.first)
            && let Some(first) = self.first.take()
        {
            self.last_end = Some(why(&first));
            let is_wanted = self.wanted.as_ref() == Some(&first.arguments);
            if self.is_ending() {
                // Whether this supervisor is restarted or stopped only systemd knows.
                if is_wanted {
                    self.kept = first.store;
                }
                return;
            }
            let gives_up = if first.is_ready { end.is_asked() } else { first.was_found };
            let is_over = is_wanted && (gives_up || end.is_handed_over());
            let life = now.saturating_sub(first.started);
            if self.second.is_some() {
                // It gets everything. If it fails, this one is started again.
                self.kept = first.store;
                if end.is_asked() || self.is_released {
                    self.wanted = None;
                }
            } else {
                self.fail(&why(&first));
                if is_wanted {
                    self.kept = first.store;
                }
                if is_over || self.is_released {
                    self.forget();
                }
                self.start_again(now, life);
            }
        } else {
            self.superseded.retain(|device| device.id != id);
        }
    }

    /// Answers who waits for a device to be ready.
    fn fail(&mut self, why: &str) {
        if let Some(call) = self.runner.take() {
            self.actions.push(Action::Answer(call, Answer::Failed(why.into())));
        }
    }

    /// Starts the wanted device after a pause, if there is one.
    fn start_again(&mut self, now: Duration, life: Duration) {
        if self.wanted.is_some() {
            self.restart_at = Some(now + self.backoff.pause(life));
        } else {
            self.forget();
        }
    }

    fn pass_time(&mut self, now: Duration) {
        if self.restart_at.is_some_and(|at| at <= now) {
            self.restart_at = None;
            if let Some(arguments) = self.wanted.clone() {
                self.restarts += 1;
                // It never takes over: who has the interface then got it from the one before.
                self.start_with_kept(now, arguments, false);
            }
        }
        for device in self.first.iter_mut().chain(&mut self.second).chain(&mut self.superseded) {
            match device.due {
                Some((at, Due::Terminate)) if at <= now => {
                    device.is_late = !device.is_ready;
                    device.due = Some((now + END_TIMEOUT, Due::Kill));
                    self.actions.push(Action::Terminate(device.id));
                }
                Some((at, Due::Kill)) if at <= now => {
                    device.due = None;
                    self.actions.push(Action::Kill(device.id));
                }
                _ => {}
            }
        }
    }

    /// Answers who waits until no device is left.
    fn settle(&mut self) {
        if self.devices().next().is_some() {
            return;
        }
        for call in self.stoppers.drain(..) {
            self.actions.push(Action::Answer(call, Answer::Done));
        }
        if self.is_exiting {
            self.actions.push(Action::Exit);
        }
    }

    /// Whether all devices are being ended.
    fn is_ending(&self) -> bool {
        self.is_exiting || !self.stoppers.is_empty()
    }

    /// The descriptors of the device that carries packets, or of the next one to do so.
    fn store(&self) -> &Store<D> {
        self.first.as_ref().map_or(&self.kept, |device| &device.store)
    }

    fn devices(&self) -> impl Iterator<Item = &Device<D>> {
        self.first.iter().chain(&self.second).chain(&self.superseded)
    }

    /// A device that is not superseded.
    fn meant(&mut self, id: DeviceId) -> Option<&mut Device<D>> {
        self.first.iter_mut().chain(&mut self.second).find(|device| device.id == id)
    }
}

#[cfg(test)]
mod tests;
