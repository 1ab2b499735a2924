//! The side that takes the interface over, for one attempt.
//!
//! The driver connects, carries out [`Taker::begin`], then passes in what happens ([`Event`]) and carries out what it
//! is told ([`Action`]), in order, until [`Action::Serve`] or [`Action::Wipe`]. Three actions are followed by an event
//! at once, and are always the last of their list: [`Action::Prepare`] by [`Event::Prepared`], [`Action::Apply`] by
//! [`Event::Built`], or both by [`Event::Failed`]; [`Action::Kill`] by [`Event::GiverDead`] or [`Event::KillFailed`].
//!
//! ```text
//! Greeting ─Hello─► Receiving ─Copy─► Preparing ─► Waiting ─Changes─► Applying ─► Ready ─Commit─► Serving
//!     └─────────────────┴────────────── Deadline ────┴──────────► Killing ◄─────────┘                ▲
//!                                                                    └─── Commit, if it was ready ───┘
//! ```
//!
//! When an action fails, the driver carries out the rest of its list, then passes what the giver had sent before, and
//! [`Event::Gone`]. It looks for messages before it looks at the deadline.
//!
//! A giver that does not answer is killed and seen dead. It may have committed before, so the driver goes on with what
//! is in the connection, up to [`Event::Gone`]. If the connection does not end, another process has it, or will have
//! it.

use std::time::Duration;

use super::envelope::{Message, Reason, Role, Versions};

/// How long a giver may take for each answer while it carries packets: its control thread may be at a request that
/// changes 50,000 peers, or wait for a disk. With the time for its death, a supervisor still waits for the taker.
const BEFORE_STOP: Duration = Duration::from_secs(8);
/// How long for each answer once it stops, while nobody carries packets. The longest is that for *Prepared*: 20 ms with
/// 5,000 peers. A busy machine may leave it without a processor for a hundred times as long.
const AFTER_STOP: Duration = Duration::from_secs(2);

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A message has come.
    Received(Message),
    /// The connection is at its end, or of no more use: a message could not be sent, or what came was none.
    Gone,
    /// Everything is built from the copy.
    Prepared,
    /// The changes are applied.
    Built,
    /// The state that came could not be used.
    Failed,
    /// The time that the last [`Action::SetDeadline`] gave is over.
    Deadline,
    /// The giver was killed, and has ended.
    GiverDead,
    /// The giver could not be killed.
    KillFailed,
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Send a message.
    Send(Message),
    /// Pass [`Event::Deadline`] after this time, unless this action comes again before. What comes meanwhile does not
    /// change it: some of what comes is ignored.
    SetDeadline(Duration),
    /// Keep the descriptors that came, which have these roles. They must not be used before [`Self::Serve`].
    Keep(Vec<Role>),
    /// Read the copy of `len` bytes that came, wipe it, build everything from it, then pass [`Event::Prepared`]. With
    /// version 0 there is no copy: sessions are made anew.
    Prepare { version: u32, len: u64 },
    /// Read the changes of `len` bytes that came, wipe and apply them, then pass [`Event::Built`]. The giver has
    /// stopped at `stopped_at`, in nanoseconds of `CLOCK_BOOTTIME`.
    Apply { len: u64, stopped_at: u64 },
    /// Kill whoever hangs, as [`Holders::kill`] does, then pass [`Event::GiverDead`].
    ///
    /// [`Holders::kill`]: super::holders::Holders::kill
    Kill,
    /// The interface is ours: carry its packets.
    Serve,
    /// Wipe what came, close its descriptors and the connection. The attempt is over.
    Wipe(Why),
}

/// Why an attempt has failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Why {
    /// The giver has refused it, and serves on. A later attempt may succeed.
    Refused(Reason),
    /// The connection has ended. The giver serves on, or has ended by itself: who connects again sees which.
    Gone,
    /// The giver does not keep to the protocol. It serves on.
    Protocol,
    /// The state that came could not be used. The giver serves on.
    Unusable,
    /// The giver did not answer, was killed and is dead, and has not committed. The interface may be opened, with new
    /// sessions.
    Killed,
    /// The process that was killed had handed over to another one meanwhile, or something keeps the listening socket
    /// for the next one. A later attempt reaches that.
    Moved,
    /// The giver does not answer, and cannot be killed. Nobody may open the interface.
    NotKilled,
}

/// An attempt to take over, seen by the taker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Taker {
    versions: Versions,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Greeting,
    Receiving {
        version: u32,
    },
    Preparing,
    Waiting,
    Applying,
    Ready,
    /// `ready`: the giver may have committed. `dead`, `gone`: it was seen dead, and the connection was read to its end.
    Killing {
        ready: bool,
        dead: bool,
        gone: bool,
    },
    Serving,
    Over,
}

impl Taker {
    /// An attempt that begins, of a taker that reads these versions of the state.
    pub(crate) fn new(versions: Versions) -> Self {
        Self { versions, phase: Phase::Greeting }
    }

    /// The first actions. `named_lives`: the process that the connection names has not ended. Otherwise a supervisor
    /// keeps the listening socket, or another taker is about to listen: nobody is busy.
    pub(crate) fn begin(&self, named_lives: bool) -> Vec<Action> {
        let limit = if named_lives { BEFORE_STOP } else { AFTER_STOP };
        vec![Action::Send(Message::TakerHello(self.versions)), Action::SetDeadline(limit)]
    }

    /// Whether the attempt is over: this process serves, or has to wipe what came.
    #[cfg(test)]
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Over)
    }

    /// What is to be done after an event.
    pub(crate) fn handle(&mut self, event: Event) -> Vec<Action> {
        match (self.phase, event) {
            (Phase::Serving | Phase::Over, _) => Vec::new(),
            // Of a later release; see `envelope`.
            (_, Event::Received(Message::Unknown { .. })) => Vec::new(),
            (Phase::Killing { ready, dead, gone }, event) => self.killing(ready, dead, gone, &event),

            (_, Event::Received(Message::Refused(reason))) => self.wipe(Why::Refused(reason)),
            (_, Event::Gone) => self.wipe(Why::Gone),
            (_, Event::Failed) => self.wipe(Why::Unusable),
            (
                phase @ (Phase::Greeting | Phase::Receiving { .. } | Phase::Waiting | Phase::Ready),
                Event::Deadline,
            ) => {
                self.phase = Phase::Killing { ready: phase == Phase::Ready, dead: false, gone: false };
                vec![Action::Kill]
            }

            (Phase::Greeting, Event::Received(Message::GiverHello { version }))
                if self.versions.allow(version) =>
            {
                self.phase = Phase::Receiving { version };
                vec![Action::SetDeadline(BEFORE_STOP)]
            }
            (Phase::Receiving { .. }, Event::Received(Message::Descriptors(roles))) => {
                vec![Action::Keep(roles), Action::SetDeadline(BEFORE_STOP)]
            }
            (Phase::Receiving { version }, Event::Received(Message::Copy { len })) => {
                self.phase = Phase::Preparing;
                vec![Action::Prepare { version, len }]
            }
            (Phase::Preparing, Event::Prepared) => {
                self.phase = Phase::Waiting;
                vec![Action::Send(Message::Prepared), Action::SetDeadline(AFTER_STOP)]
            }
            (Phase::Waiting, Event::Received(Message::Changes { len, stopped_at })) => {
                self.phase = Phase::Applying;
                vec![Action::Apply { len, stopped_at }]
            }
            (Phase::Applying, Event::Built) => {
                self.phase = Phase::Ready;
                vec![Action::Send(Message::Ready), Action::SetDeadline(AFTER_STOP)]
            }
            (Phase::Ready, Event::Received(Message::Commit)) => {
                self.phase = Phase::Serving;
                vec![Action::Serve]
            }
            (_, Event::Received(_)) => self.wipe(Why::Protocol),
            // An event that nobody waits for, such as a deadline that was forgotten.
            (_, _) => Vec::new(),
        }
    }

    /// While the giver is killed. What it sent before its end does not matter, but for *Commit*.
    fn killing(&mut self, ready: bool, dead: bool, gone: bool, event: &Event) -> Vec<Action> {
        let (dead, gone) = match event {
            Event::Received(Message::Commit) if ready => {
                self.phase = Phase::Serving;
                return vec![Action::Serve];
            }
            Event::KillFailed => return self.wipe(Why::NotKilled),
            // Its connection would be at its end.
            Event::Deadline if dead => return self.wipe(Why::Moved),
            Event::GiverDead => (true, gone),
            Event::Gone => (dead, true),
            _ => (dead, gone),
        };
        if dead && gone {
            return self.wipe(Why::Killed);
        }
        self.phase = Phase::Killing { ready, dead, gone };
        if *event == Event::GiverDead { vec![Action::SetDeadline(Duration::ZERO)] } else { Vec::new() }
    }

    fn wipe(&mut self, why: Why) -> Vec<Action> {
        self.phase = Phase::Over;
        vec![Action::Wipe(why)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSIONS: Versions = Versions { oldest: 1, newest: 2 };

    fn received(message: Message) -> Event {
        Event::Received(message)
    }

    /// What happens in a hand-over that succeeds, and what is done then.
    fn steps() -> Vec<(Event, Vec<Action>)> {
        let roles = vec![Role::TunQueue(0)];
        let [patient, wait] = [BEFORE_STOP, AFTER_STOP].map(Action::SetDeadline);
        vec![
            (received(Message::GiverHello { version: 2 }), vec![patient.clone()]),
            (received(Message::Descriptors(roles.clone())), vec![Action::Keep(roles), patient]),
            (received(Message::Copy { len: 7 }), vec![Action::Prepare { version: 2, len: 7 }]),
            (Event::Prepared, vec![Action::Send(Message::Prepared), wait.clone()]),
            (
                received(Message::Changes { len: 3, stopped_at: 9 }),
                vec![Action::Apply { len: 3, stopped_at: 9 }],
            ),
            (Event::Built, vec![Action::Send(Message::Ready), wait]),
            (received(Message::Commit), vec![Action::Serve]),
        ]
    }

    /// An attempt after the first `count` of these steps.
    fn after(count: usize) -> Taker {
        let mut taker = Taker::new(VERSIONS);
        for (event, actions) in steps().into_iter().take(count) {
            assert_eq!(taker.handle(event), actions);
        }
        taker
    }

    /// The steps after which it waits for the giver.
    const WAITS: [usize; 5] = [0, 1, 2, 4, 6];

    #[test]
    fn a_hand_over_goes_step_by_step() {
        for (named_lives, limit) in [(true, BEFORE_STOP), (false, AFTER_STOP)] {
            let hello = Action::Send(Message::TakerHello(VERSIONS));
            assert_eq!(Taker::new(VERSIONS).begin(named_lives), [hello, Action::SetDeadline(limit)]);
        }
        assert!(after(7).is_over());
    }

    #[test]
    fn what_came_is_wiped_when_the_giver_refuses_or_is_gone() {
        for count in 0..7 {
            let reason = Reason::new("too late");
            assert_eq!(
                after(count).handle(received(Message::Refused(reason.clone()))),
                [Action::Wipe(Why::Refused(reason))]
            );
            let mut taker = after(count);
            assert_eq!(taker.handle(Event::Gone), [Action::Wipe(Why::Gone)]);
            assert_eq!(taker.handle(received(Message::Commit)), [], "it is over");
        }
        assert_eq!(after(3).handle(Event::Failed), [Action::Wipe(Why::Unusable)]);
    }

    #[test]
    fn it_serves_only_after_it_was_ready() {
        for count in 0..6 {
            assert_eq!(after(count).handle(received(Message::Commit)), [Action::Wipe(Why::Protocol)]);
        }
        let unknown_version = received(Message::GiverHello { version: 3 });
        assert_eq!(after(0).handle(unknown_version), [Action::Wipe(Why::Protocol)]);
    }

    #[test]
    fn a_giver_that_does_not_answer_is_killed_before_anything_else() {
        for count in WAITS {
            let mut taker = after(count);
            assert_eq!(taker.handle(Event::Deadline), [Action::Kill]);
            // In either order.
            if count < 2 {
                assert_eq!(taker.handle(Event::GiverDead), [Action::SetDeadline(Duration::ZERO)]);
                assert_eq!(taker.handle(received(Message::Changes { len: 0, stopped_at: 0 })), []);
                assert_eq!(taker.handle(Event::Gone), [Action::Wipe(Why::Killed)]);
            } else {
                assert_eq!(taker.handle(Event::Gone), []);
                assert_eq!(taker.handle(Event::GiverDead), [Action::Wipe(Why::Killed)]);
            }
        }
        for (outcome, why) in [(Event::KillFailed, Why::NotKilled), (Event::Deadline, Why::Moved)] {
            let mut taker = after(6);
            taker.handle(Event::Deadline);
            if outcome == Event::Deadline {
                taker.handle(Event::GiverDead);
            }
            assert_eq!(taker.handle(outcome), [Action::Wipe(why)]);
        }
    }

    #[test]
    fn a_commit_counts_although_its_giver_was_killed() {
        let mut taker = after(6);
        taker.handle(Event::Deadline);
        taker.handle(Event::GiverDead);
        assert_eq!(taker.handle(received(Message::Commit)), [Action::Serve]);
    }

    #[test]
    fn messages_of_a_later_release_are_ignored() {
        for count in 0..7 {
            assert_eq!(after(count).handle(received(Message::Unknown { kind: 42 })), []);
        }
    }
}
