//! The processes, what is between them, and every step that can come next.

use std::collections::VecDeque;

use crate::handover::{
    envelope::{Message, Role, Versions},
    giver::{self, Giver, busy},
    taker::{self, Taker},
};

/// A promise that was broken, and a shortest way there.
pub(super) struct Fault {
    pub(super) what: String,
    pub(super) way: Vec<String>,
}

/// A step that can come next.
pub(super) struct Next {
    pub(super) actor: u8,
    pub(super) what: &'static str,
    pub(super) world: World,
}

/// A step that is a fault: nobody may count on it.
pub(super) const DIES: &str = "dies";
/// The last step of a hand-over.
pub(super) const SERVES: &str = "takes: Serve";

/// How things stand in a state.
#[derive(Clone, Copy)]
pub(super) struct Standing {
    serves: Option<u8>,
    /// No process has the descriptors: whatever is started next may serve.
    free: bool,
    /// Bits of the processes that can still do something: they are alive and have not given the interface away.
    able: u8,
}

impl Standing {
    /// Whether somebody serves who does not hang, or anybody may.
    pub(super) fn somebody_serves(self, hung: Option<u8>) -> bool {
        self.free || self.serves.is_some_and(|serves| Some(serves) != hung)
    }

    /// Whether another one than this can do something.
    pub(super) fn somebody_can(self, hung: u8) -> bool {
        self.able & !(1 << hung) != 0
    }
}

/// Everything.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    processes: Vec<Process>,
    connections: Vec<Connection>,
    /// Whom the listening socket names as its server.
    named: u8,
    /// What happened with the sessions that were there at first: counters up to here were used, these packets accepted.
    used: u8,
    accepted: u8,
    /// How many messages are sent, and as many packets come in.
    packets: u8,
    /// How many processes may still die of themselves.
    deaths: u8,
    broken: Option<&'static str>,
}

/// A device process.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Process {
    versions: Versions,
    alive: bool,
    /// It has the descriptors.
    holds: bool,
    /// Its engine carries packets.
    serves: bool,
    sessions: Option<Sessions>,
    side: Side,
    todo: VecDeque<Action>,
    /// An action has failed.
    failed: bool,
    /// A deadline is set.
    timed: bool,
    /// It has resumed, and may refuse takers until it has accepted one.
    restrained: bool,
    /// What came with the last message.
    came: Option<Sessions>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Side {
    /// It may take over, or start afresh.
    Idle,
    Takes(Taker),
    /// `listens`: it is the one that the listening socket names.
    Serves {
        attempt: Option<Giver>,
        listens: bool,
    },
    /// It waits for its end.
    Finished,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Action {
    Give(giver::Action),
    Take(taker::Action),
}

/// The sessions' state: those of the beginning, or `fresh` ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Sessions {
    fresh: bool,
    next: u8,
    window: u8,
}

const FRESH: Sessions = Sessions { fresh: true, next: 0, window: 0 };

/// A connection that a taker has made.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Connection {
    taker: u8,
    /// Who was named as the server when it was made.
    named: u8,
    /// Who has accepted it.
    giver: Option<u8>,
    taker_open: bool,
    giver_open: bool,
    to_giver: VecDeque<Message>,
    to_taker: VecDeque<(Message, Option<Sessions>)>,
}

impl Connection {
    /// Whether nobody has accepted it.
    fn waits(&self) -> bool {
        self.giver.is_none() && self.giver_open
    }
}

impl World {
    /// Process 0 serves, and each knows these versions of the state. So many messages are sent, and as many packets
    /// come in; so many processes die of themselves.
    pub(super) fn new(versions: &[Versions], packets: u8, deaths: u8) -> Self {
        let mut processes: Vec<_> = versions.iter().map(|versions| Process::idle(*versions)).collect();
        processes[0].start(Sessions { fresh: false, next: 0, window: 0 });
        Self {
            processes,
            connections: Vec::new(),
            named: 0,
            used: 0,
            accepted: 0,
            packets,
            deaths,
            broken: None,
        }
    }

    pub(super) fn size(&self) -> u8 {
        self.processes.len() as u8
    }

    pub(super) fn standing(&self) -> Standing {
        let serves = self.processes.iter().position(|process| process.serves).map(|number| number as u8);
        let able = (0..).zip(&self.processes).filter(|(_, process)| process.is_able());
        Standing { serves, free: !self.is_held(), able: able.fold(0, |bits, (number, _)| bits | 1 << number) }
    }

    /// Which promise is broken.
    pub(super) fn broken(&self) -> Option<&'static str> {
        let serving = self.processes.iter().filter(|process| process.serves).count();
        self.broken.or((serving > 1).then_some("two processes serve"))
    }

    /// Whether a process has the descriptors.
    fn is_held(&self) -> bool {
        self.processes.iter().any(|process| process.holds)
    }

    /// All that can happen next.
    pub(super) fn steps(&self) -> Vec<Next> {
        let mut steps = Vec::new();
        for number in 0..self.size() {
            let process = &self.processes[number as usize];
            if !process.alive {
                continue;
            }
            let mut step = |what, change: &dyn Fn(&mut World)| {
                let mut world = self.clone();
                change(&mut world);
                world.act_unseen(number);
                world.settle();
                steps.push(Next { actor: number, what, world });
            };
            if self.deaths > 0 {
                step(DIES, &|world| {
                    world.deaths -= 1;
                    world.die(number);
                });
            }
            if let Some(sessions) = process.sessions.filter(|sessions| process.serves && !sessions.fresh) {
                if sessions.next < self.packets {
                    step("sends a packet", &|world| world.send_packet(number));
                }
                for packet in (0..self.packets).filter(|packet| sessions.window & (1 << packet) == 0) {
                    step("accepts a packet", &|world| world.accept_packet(number, packet));
                }
            }
            if let Some(action) = process.todo.front() {
                step(action.name(), &|world| world.act(number));
                continue;
            }
            match &process.side {
                Side::Idle if self.is_held() => step("connects", &|world| world.connect(number)),
                Side::Idle => step("starts afresh", &|world| world.start_afresh(number)),
                Side::Finished => {}
                Side::Serves { listens: false, .. } => step("listens", &|world| world.listen(number)),
                Side::Serves { attempt, .. } => {
                    if self.waiting().is_some() {
                        step("accepts a taker", &|world| world.accept(number));
                        if attempt.is_none() && process.restrained {
                            step("refuses a taker", &|world| world.refuse(number));
                        }
                    }
                    if attempt.is_some() {
                        self.each_event(number, step);
                    }
                }
                Side::Takes(_) => self.each_event(number, step),
            }
        }
        steps
    }

    /// What a process with a connection can meet.
    fn each_event(&self, number: u8, mut step: impl FnMut(&'static str, &dyn Fn(&mut World))) {
        if self.hears(number) {
            step("looks at its connection", &|world| world.hear(number));
        }
        if self.processes[number as usize].timed {
            step("is out of time", &|world| world.run_out(number));
        }
    }

    /// Carries out what no other process can see: it makes no difference when that happens.
    fn act_unseen(&mut self, number: u8) {
        while self.process(number).todo.front().is_some_and(Action::is_unseen) {
            self.act(number);
        }
    }

    /// What follows from a step by the kernel's work.
    fn settle(&mut self) {
        let held = self.is_held();
        for connection in &mut self.connections {
            // The listening socket is closed, and those who wait there with it.
            if connection.giver.is_none() && !held {
                connection.giver_open = false;
            }
            // Who has gone leaves what it sent, but reads nothing.
            if !connection.taker_open {
                connection.to_taker.clear();
            }
            if !connection.giver_open {
                connection.to_giver.clear();
            }
        }
        self.connections
            .retain(|connection| connection.taker_open || (connection.giver_open && !connection.waits()));
    }

    fn process(&mut self, number: u8) -> &mut Process {
        &mut self.processes[number as usize]
    }

    /// The first connection that nobody has accepted.
    fn waiting(&self) -> Option<usize> {
        self.connections.iter().position(Connection::waits)
    }

    /// The connection of a process, whichever end it has.
    fn connection(&mut self, number: u8) -> &mut Connection {
        let at = self.place(number).expect("it has a connection");
        &mut self.connections[at]
    }

    fn place(&self, number: u8) -> Option<usize> {
        let takes = matches!(self.processes[number as usize].side, Side::Takes(_));
        self.connections.iter().position(|connection| match takes {
            true => connection.taker == number && connection.taker_open,
            false => connection.giver == Some(number) && connection.giver_open,
        })
    }

    fn die(&mut self, number: u8) {
        let versions = self.process(number).versions;
        *self.process(number) = Process { alive: false, side: Side::Finished, ..Process::idle(versions) };
        for connection in &mut self.connections {
            connection.taker_open &= connection.taker != number;
            connection.giver_open &= connection.giver != Some(number);
        }
    }

    fn send_packet(&mut self, number: u8) {
        let used = self.used;
        let sessions = self.process(number).sessions.as_mut().expect("it serves");
        let reused = sessions.next < used;
        sessions.next += 1;
        self.used = sessions.next.max(used);
        if reused {
            self.broken = Some("a counter is used twice");
        }
    }

    fn accept_packet(&mut self, number: u8, packet: u8) {
        self.process(number).sessions.as_mut().expect("it serves").window |= 1 << packet;
        if self.accepted & (1 << packet) != 0 {
            self.broken = Some("a packet is accepted twice");
        }
        self.accepted |= 1 << packet;
    }

    fn connect(&mut self, number: u8) {
        let named = self.named;
        self.connections.push(Connection {
            taker: number,
            named,
            giver: None,
            taker_open: true,
            giver_open: true,
            to_giver: VecDeque::new(),
            to_taker: VecDeque::new(),
        });
        let process = self.process(number);
        let taker = Taker::new(process.versions);
        process.todo.extend(taker.begin(true).into_iter().map(Action::Take));
        process.side = Side::Takes(taker);
    }

    fn start_afresh(&mut self, number: u8) {
        self.named = number;
        self.process(number).start(FRESH);
    }

    fn listen(&mut self, number: u8) {
        self.named = number;
        self.process(number).side = Side::Serves { attempt: None, listens: true };
    }

    /// Says why, and closes the connection.
    fn refuse(&mut self, number: u8) {
        let at = self.waiting().expect("somebody waits");
        let connection = &mut self.connections[at];
        connection.giver = Some(number);
        connection.to_taker.push_back((busy(), None));
        connection.giver_open = false;
    }

    fn accept(&mut self, number: u8) {
        let process = &mut self.processes[number as usize];
        let Side::Serves { attempt, .. } = &mut process.side else { unreachable!("it listens") };
        if attempt.is_some() {
            return self.refuse(number);
        }
        let at = self.connections.iter().position(Connection::waits).expect("somebody waits");
        self.connections[at].giver = Some(number);
        process.restrained = false;
        let giver = Giver::new(process.versions);
        process.todo.extend(giver.begin().into_iter().map(Action::Give));
        *attempt = Some(giver);
    }

    /// Whether a process finds something when it looks at its connection.
    fn hears(&self, number: u8) -> bool {
        let process = &self.processes[number as usize];
        let connection = &self.connections[self.place(number).expect("it has a connection")];
        process.failed
            || match process.side {
                Side::Takes(_) => !connection.to_taker.is_empty() || !connection.giver_open,
                _ => !connection.to_giver.is_empty() || !connection.taker_open,
            }
    }

    fn hear(&mut self, number: u8) {
        let failed = std::mem::take(&mut self.process(number).failed);
        let takes = matches!(self.process(number).side, Side::Takes(_));
        let connection = self.connection(number);
        if takes {
            let message = connection.to_taker.pop_front();
            let event = message.map_or(taker::Event::Gone, |(message, came)| {
                self.process(number).came = came;
                taker::Event::Received(message)
            });
            self.process(number).take(event);
        } else {
            let message = if failed { None } else { connection.to_giver.pop_front() };
            self.process(number).give(message.map_or(giver::Event::Gone, giver::Event::Received));
        }
    }

    fn run_out(&mut self, number: u8) {
        let process = self.process(number);
        process.timed = false;
        match process.side {
            Side::Takes(_) => process.take(taker::Event::Deadline),
            _ => process.give(giver::Event::Deadline),
        }
    }

    /// Carries out the first thing that a process has to do.
    fn act(&mut self, number: u8) {
        match self.process(number).todo.pop_front().expect("it has something to do") {
            Action::Give(action) => self.act_as_giver(number, action),
            Action::Take(action) => self.act_as_taker(number, action),
        }
    }

    /// Whether it was sent.
    fn send_to_taker(&mut self, number: u8, message: Message, sessions: Option<Sessions>) -> bool {
        let connection = self.connection(number);
        if connection.taker_open {
            connection.to_taker.push_back((message, sessions));
        }
        connection.taker_open
    }

    fn act_as_giver(&mut self, number: u8, action: giver::Action) {
        use giver::{Action, Event};
        let sessions = |version| self.processes[number as usize].sessions.filter(|_| version > 0);
        let (message, sessions) = match action {
            Action::Send(message) => (message, None),
            Action::SendDescriptors => (Message::Descriptors(vec![Role::TunQueue(0)]), None),
            Action::SendCopy { version } => (Message::Copy { len: version.into() }, sessions(version)),
            Action::SendChanges { version } => {
                (Message::Changes { len: version.into(), stopped_at: 0 }, sessions(version))
            }
            Action::SetDeadline(_) | Action::AwaitReady => return self.process(number).timed = true,
            Action::Stop => {
                self.process(number).serves = false;
                return self.process(number).give(Event::Stopped);
            }
            Action::Commit => {
                let sent = self.send_to_taker(number, Message::Commit, None);
                return self.process(number).give(if sent { Event::Sent } else { Event::SendFailed });
            }
            Action::Resume => {
                let process = self.process(number);
                return (process.serves, process.restrained) = (true, true);
            }
            Action::Close => {
                self.connection(number).giver_open = false;
                let process = self.process(number);
                (process.timed, process.failed) = (false, false);
                process.side = Side::Serves { attempt: None, listens: true };
                return;
            }
            Action::Finish => {
                self.connection(number).giver_open = false;
                let process = self.process(number);
                (process.holds, process.sessions) = (false, None);
                (process.timed, process.failed) = (false, false);
                process.side = Side::Finished;
                return;
            }
        };
        if !self.send_to_taker(number, message, sessions) {
            self.process(number).failed = true;
        }
    }

    fn act_as_taker(&mut self, number: u8, action: taker::Action) {
        use taker::{Action, Event};
        match action {
            Action::Send(message) => {
                let connection = self.connection(number);
                // Otherwise it hears what the giver has sent before, then that it is gone.
                if connection.giver_open {
                    connection.to_giver.push_back(message);
                }
            }
            Action::SetDeadline(_) => self.process(number).timed = true,
            Action::Keep(_) => self.process(number).holds = true,
            Action::Prepare { .. } => {
                let process = self.process(number);
                process.timed = false;
                process.sessions = Some(process.came.take().unwrap_or(FRESH));
                process.take(Event::Prepared);
            }
            Action::Apply { .. } => {
                let process = self.process(number);
                process.timed = false;
                process.sessions = process.came.take().or(process.sessions);
                process.take(Event::Built);
            }
            Action::Kill => {
                self.process(number).timed = false;
                let named = self.connection(number).named;
                let is_holder = |other: &u8| *other != number && self.processes[*other as usize].is_holder();
                let another = (0..self.size()).find(is_holder).unwrap_or(named);
                let victim = if self.process(named).alive { named } else { another };
                self.die(victim);
                self.process(number).take(Event::GiverDead);
            }
            Action::Serve => {
                self.connection(number).taker_open = false;
                let process = self.process(number);
                assert!(process.holds, "it cannot serve without descriptors");
                (process.serves, process.timed, process.failed) = (true, false, false);
                process.side = Side::Serves { attempt: None, listens: false };
            }
            Action::Wipe(_) => {
                self.connection(number).taker_open = false;
                let process = self.process(number);
                (process.holds, process.sessions, process.came) = (false, None, None);
                (process.timed, process.failed) = (false, false);
                process.side = Side::Idle;
            }
        }
    }
}

impl Process {
    fn idle(versions: Versions) -> Self {
        Self {
            versions,
            alive: true,
            holds: false,
            serves: false,
            sessions: None,
            side: Side::Idle,
            todo: VecDeque::new(),
            failed: false,
            timed: false,
            restrained: false,
            came: None,
        }
    }

    /// Whether it can still do something.
    fn is_able(&self) -> bool {
        let gives_away =
            matches!(self.todo.front(), Some(Action::Give(giver::Action::Commit | giver::Action::Finish)));
        self.alive && self.side != Side::Finished && !gives_away
    }

    /// Whether it is among the holders: it is so before it gets descriptors.
    fn is_holder(&self) -> bool {
        self.holds || matches!(self.side, Side::Takes(_))
    }

    /// Serves from its start.
    fn start(&mut self, sessions: Sessions) {
        (self.holds, self.serves, self.sessions) = (true, true, Some(sessions));
        self.side = Side::Serves { attempt: None, listens: true };
    }

    fn give(&mut self, event: giver::Event) {
        let Side::Serves { attempt: Some(giver), .. } = &mut self.side else { unreachable!("it gives") };
        self.todo.extend(giver.handle(event).into_iter().map(Action::Give));
    }

    fn take(&mut self, event: taker::Event) {
        let Side::Takes(taker) = &mut self.side else { unreachable!("it takes") };
        self.todo.extend(taker.handle(event).into_iter().map(Action::Take));
    }
}

impl Action {
    fn name(&self) -> &'static str {
        match self {
            Self::Give(giver::Action::Stop) => "gives: Stop",
            Self::Give(giver::Action::Commit) => "gives: Commit",
            Self::Give(giver::Action::Resume) => "gives: Resume",
            Self::Give(giver::Action::Close) => "gives: Close",
            Self::Give(giver::Action::Finish) => "gives: Finish",
            Self::Give(_) => "gives: sends",
            Self::Take(taker::Action::Kill) => "takes: Kill",
            Self::Take(taker::Action::Serve) => SERVES,
            Self::Take(taker::Action::Wipe(_)) => "takes: Wipe",
            Self::Take(taker::Action::Keep(_)) => "takes: Keep",
            Self::Take(_) => "takes: sends",
        }
    }

    fn is_unseen(&self) -> bool {
        use taker::Action::{Apply, Prepare, SetDeadline};
        matches!(
            self,
            Self::Give(giver::Action::SetDeadline(_) | giver::Action::AwaitReady)
                | Self::Take(SetDeadline(_) | Prepare { .. } | Apply { .. })
        )
    }
}
