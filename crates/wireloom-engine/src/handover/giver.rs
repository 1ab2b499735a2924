//! The side that gives the interface away, for one attempt of a taker.
//!
//! The driver accepts a connection, carries out [`Giver::begin`], then passes in what happens ([`Event`]) and carries
//! out what it is told ([`Action`]), in order, until [`Giver::is_over`]. Two actions are followed by an event at once,
//! and are always the last of their list: [`Action::Stop`] by [`Event::Stopped`], [`Action::Commit`] by [`Event::Sent`]
//! or [`Event::SendFailed`]. When another action fails, the driver carries out the rest of its list, then passes
//! [`Event::Gone`]. While an attempt lasts, another taker gets [`busy`]; after one that ended with [`Action::Resume`],
//! it gets what [`Restraint`] says.
//!
//! ```text
//! Greeting ─Hello─► Copying ─Prepared─► Stopping ─Stopped─► Stopped ─Ready─► Committing ─Sent─► Finished
//!     └──────────────┴─ Deadline, Gone ─► Over ◄─ resumes ─────┴──────────────────┘ SendFailed
//! ```
//!
//! It serves in Greeting, Copying and Over. From Stopping to Committing nobody does, and from Finished on it never does
//! again: *Commit* is in the taker's socket then.

use std::time::{Duration, Instant};

use super::envelope::{Message, Reason, Versions};

/// How long a taker may take for its *Hello*. It sends it at once.
const HELLO: Duration = Duration::from_secs(1);
/// How long it may build from the copy, while packets flow: 5,000 peers take it less than a second.
const PREPARE: Duration = Duration::from_secs(30);
/// The least and the most that it may take to apply the changes in a first attempt, while packets wait
/// ([`Restraint::ready_limit`]).
const READY_MIN: Duration = Duration::from_millis(50);
const READY_MAX: Duration = Duration::from_millis(500);
/// The most in the attempts after one that has failed: the limit doubles with each. A pause that ends in a hand-over is
/// better than another in vain.
const READY_MAX_AGAIN: Duration = Duration::from_secs(2);
/// How many times longer than the giver had for its part. In memory, a taker needs 1.4 times as long for 5,000 peers
/// that all had traffic since the copy; the rest is for a processor that it has to wait for.
const READY_FACTOR: u32 = 10;

/// The first and the longest time without takers after a failed attempt that stopped the engine, and how long after one
/// the next counts as the first again ([`Restraint`]).
const RESTRAINT_MIN: Duration = Duration::from_secs(1);
const RESTRAINT_MAX: Duration = Duration::from_secs(60);
const FORGIVEN: Duration = Duration::from_secs(3600);

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A message has come.
    Received(Message),
    /// The connection is of no more use: the taker has closed it or does not keep to the protocol, or an action other
    /// than [`Action::Commit`] could not be carried out.
    Gone,
    /// The engine has stopped: every packet that it had read is sent, and no job is left.
    Stopped,
    /// *Commit* was sent.
    Sent,
    /// *Commit* could not be sent.
    SendFailed,
    /// The time that the last [`Action::SetDeadline`] or [`Action::AwaitReady`] gave is over.
    Deadline,
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Send a message.
    Send(Message),
    /// Send duplicates of all descriptors.
    SendDescriptors,
    /// Send the state in this version, with [`Message::Copy`]. With version 0 there is none: its length is 0.
    SendCopy { version: u32 },
    /// Pass [`Event::Deadline`] after this time, unless this action comes again before.
    SetDeadline(Duration),
    /// Stop the engine, then pass [`Event::Stopped`].
    Stop,
    /// Send what has changed since the copy, with [`Message::Changes`]. With version 0 its length is 0.
    SendChanges { version: u32 },
    /// Send [`Message::Commit`], then pass [`Event::Sent`] or [`Event::SendFailed`].
    Commit,
    /// As [`Self::SetDeadline`], with the [`Restraint::ready_limit`] of what [`Self::Stop`] and [`Self::SendChanges`]
    /// took.
    AwaitReady,
    /// Let the engine go on as if nothing had been.
    Resume,
    /// Close the connection, forget its deadline, wipe what was made for the taker. This device serves on.
    Close,
    /// Wipe everything, close all descriptors, and touch nothing else: no file is unlinked, no packet sent. This device
    /// is done for good.
    Finish,
}

/// An attempt of a taker, seen by the giver.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Giver {
    versions: Versions,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Greeting,
    Copying { version: u32 },
    Stopping { version: u32 },
    Stopped,
    Committing,
    Over,
    Finished,
}

/// What a taker gets while another one's attempt lasts. It may try again.
pub(crate) fn busy() -> Message {
    Message::Refused(Reason::new("busy: another process is taking over"))
}

/// Keeps takers away for a while after failed attempts that stopped the engine. Each costs all users of the device a
/// pause, and a taker that is always too slow, or whose state is of no use, would try again for ever.
#[derive(Debug, Default)]
pub(crate) struct Restraint {
    /// How often one after the other.
    failures: u32,
    last: Option<Instant>,
}

impl Restraint {
    /// Notes that an attempt has ended with [`Action::Resume`].
    pub(crate) fn note_failure(&mut self, now: Instant) {
        self.failures = self.failures_that_count(now).saturating_add(1);
        self.last = Some(now);
    }

    fn failures_that_count(&self, now: Instant) -> u32 {
        let is_forgiven = self.last.is_none_or(|last| now.saturating_duration_since(last) >= FORGIVEN);
        if is_forgiven { 0 } else { self.failures }
    }

    /// How long the taker may take to apply the changes, when the giver took this long to stop and to make them: a slow
    /// machine is slow for both. Longer after attempts that failed: the machine may be slow for the taker alone.
    pub(crate) fn ready_limit(&self, took: Duration, now: Instant) -> Duration {
        let limit = took.saturating_mul(READY_FACTOR).clamp(READY_MIN, READY_MAX);
        limit.saturating_mul(1 << self.failures_that_count(now).min(16)).min(READY_MAX_AGAIN)
    }

    /// What a taker that comes at this time gets, if it is too soon. It may try again.
    pub(crate) fn refusal(&self, now: Instant) -> Option<Message> {
        let doublings = 1 << self.failures.saturating_sub(1).min(16);
        let pause = RESTRAINT_MIN.saturating_mul(doublings).min(RESTRAINT_MAX);
        let until = self.last? + pause;
        (now < until).then(|| {
            let left = (until - now).as_secs_f64().ceil();
            let reason = format!("the last attempt stopped the traffic and failed; try again in {left} s");
            Message::Refused(Reason::new(&reason))
        })
    }
}

impl Giver {
    /// An attempt that begins, of a giver that writes these versions of the state.
    pub(crate) fn new(versions: Versions) -> Self {
        Self { versions, phase: Phase::Greeting }
    }

    /// The first actions.
    pub(crate) fn begin(&self) -> Vec<Action> {
        vec![Action::SetDeadline(HELLO)]
    }

    /// Whether the attempt is over: nothing is to be done any more.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over | Phase::Finished)
    }

    /// Whether the interface is the taker's.
    pub(crate) fn has_finished(&self) -> bool {
        self.phase == Phase::Finished
    }

    /// What is to be done after an event.
    pub(crate) fn handle(&mut self, event: Event) -> Vec<Action> {
        match (self.phase, event) {
            // Of a later release; see `envelope`.
            (_, Event::Received(Message::Unknown { .. })) => Vec::new(),

            (Phase::Greeting, Event::Received(Message::TakerHello(theirs))) => {
                let version = self.versions.common(theirs);
                self.phase = Phase::Copying { version };
                vec![
                    Action::Send(Message::GiverHello { version }),
                    Action::SendDescriptors,
                    Action::SendCopy { version },
                    Action::SetDeadline(PREPARE),
                ]
            }
            (Phase::Copying { version }, Event::Received(Message::Prepared)) => {
                self.phase = Phase::Stopping { version };
                vec![Action::Stop]
            }
            (Phase::Greeting | Phase::Copying { .. }, event) => {
                self.phase = Phase::Over;
                close(&event)
            }

            (Phase::Stopping { version }, Event::Stopped) => {
                self.phase = Phase::Stopped;
                vec![Action::SendChanges { version }, Action::AwaitReady]
            }
            (Phase::Stopped, Event::Received(Message::Ready)) => {
                self.phase = Phase::Committing;
                vec![Action::Commit]
            }
            (Phase::Stopped, event) => self.resume(&event),

            (Phase::Committing, Event::Sent) => {
                self.phase = Phase::Finished;
                vec![Action::Finish]
            }
            (Phase::Committing, event @ Event::SendFailed) => self.resume(&event),

            // What else happens meanwhile does not matter: these two end by themselves, and the others have ended.
            (Phase::Stopping { .. } | Phase::Committing | Phase::Over | Phase::Finished, _) => Vec::new(),
        }
    }

    /// Serves again. The taker's time is over, whatever it still sends.
    fn resume(&mut self, event: &Event) -> Vec<Action> {
        self.phase = Phase::Over;
        let mut actions = vec![Action::Resume];
        actions.extend(close(event));
        actions
    }
}

/// Ends an attempt. The taker is told why, unless it is gone.
fn close(event: &Event) -> Vec<Action> {
    let reason = match event {
        Event::Gone | Event::SendFailed => return vec![Action::Close],
        Event::Deadline => "too late: the taker did not answer in time",
        _ => "the taker does not keep to the protocol",
    };
    vec![Action::Send(Message::Refused(Reason::new(reason))), Action::Close]
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSIONS: Versions = Versions { oldest: 1, newest: 2 };

    fn received(message: Message) -> Event {
        Event::Received(message)
    }

    fn hello(oldest: u32, newest: u32) -> Event {
        received(Message::TakerHello(Versions { oldest, newest }))
    }

    /// An attempt after these events.
    fn after(events: impl IntoIterator<Item = Event>) -> Giver {
        let mut giver = Giver::new(VERSIONS);
        for event in events {
            giver.handle(event);
        }
        giver
    }

    fn stopped() -> [Event; 3] {
        [hello(1, 2), received(Message::Prepared), Event::Stopped]
    }

    #[test]
    fn a_hand_over_goes_step_by_step() {
        let mut giver = Giver::new(VERSIONS);
        assert_eq!(
            giver.handle(hello(1, 9)),
            [
                Action::Send(Message::GiverHello { version: 2 }),
                Action::SendDescriptors,
                Action::SendCopy { version: 2 },
                Action::SetDeadline(PREPARE),
            ]
        );
        assert_eq!(giver.handle(received(Message::Prepared)), [Action::Stop]);
        assert_eq!(giver.handle(Event::Stopped), [Action::SendChanges { version: 2 }, Action::AwaitReady]);
        assert_eq!(giver.handle(received(Message::Ready)), [Action::Commit]);
        assert!(!giver.is_over());
        assert_eq!(giver.handle(Event::Sent), [Action::Finish]);
        assert!(giver.has_finished());
        for late in [Event::Gone, Event::Deadline, Event::SendFailed, received(Message::Ready)] {
            assert_eq!(giver.handle(late), [], "it never does anything again");
        }
    }

    #[test]
    fn without_a_common_version_only_descriptors_go_over() {
        let mut giver = Giver::new(VERSIONS);
        let actions = giver.handle(hello(7, 9));
        assert!(actions.contains(&Action::Send(Message::GiverHello { version: 0 })));
        assert!(actions.contains(&Action::SendCopy { version: 0 }));
    }

    #[test]
    fn a_taker_that_is_late_or_gone_finds_the_giver_serving() {
        let refused =
            |actions: &[Action]| matches!(actions, [.., Action::Send(Message::Refused(_)), Action::Close]);
        for event in [Event::Deadline, received(Message::Prepared), hello(1, 2)] {
            let mut giver = after(stopped());
            let actions = giver.handle(event);
            assert_eq!(actions[0], Action::Resume);
            assert!(refused(&actions) && giver.is_over() && !giver.has_finished());
            assert_eq!(giver.handle(received(Message::Ready)), [], "it is too late");
        }
        assert_eq!(after(stopped()).handle(Event::Gone), [Action::Resume, Action::Close]);

        let mut giver = after(stopped());
        giver.handle(received(Message::Ready));
        assert_eq!(giver.handle(Event::SendFailed), [Action::Resume, Action::Close]);

        for events in [vec![], vec![hello(1, 2)]] {
            assert!(refused(&after(events.clone()).handle(Event::Deadline)));
            assert!(refused(&after(events.clone()).handle(received(Message::Ready))));
            assert_eq!(after(events).handle(Event::Gone), [Action::Close]);
        }
    }

    #[test]
    fn a_taker_has_as_much_more_time_as_the_machine_is_slow_and_twice_that_after_each_failure() {
        let now = Instant::now();
        let mut restraint = Restraint::default();
        for limits in
            [[50, 50, 200, 500], [100, 100, 400, 1000], [200, 200, 800, 2000], [400, 400, 1600, 2000]]
        {
            for (took, limit) in [0, 5, 20, 80].into_iter().zip(limits) {
                let limit = Duration::from_millis(limit);
                assert_eq!(restraint.ready_limit(Duration::from_millis(took), now), limit);
            }
            restraint.note_failure(now);
        }
        for _ in 0..100 {
            restraint.note_failure(now);
        }
        assert_eq!(restraint.ready_limit(Duration::ZERO, now), READY_MAX_AGAIN);
        assert_eq!(restraint.ready_limit(Duration::ZERO, now + FORGIVEN), READY_MIN);
    }

    #[test]
    fn after_attempts_in_vain_takers_are_refused_for_longer_and_longer() {
        let begun = Instant::now();
        let mut restraint = Restraint::default();
        assert_eq!(restraint.refusal(begun), None);
        let mut now = begun;
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            restraint.note_failure(now);
            let pause = Duration::from_secs(seconds);
            let refused = restraint.refusal(now + pause - Duration::from_millis(1));
            assert!(matches!(refused, Some(Message::Refused(_))), "for {seconds} s");
            now += pause;
            assert_eq!(restraint.refusal(now), None);
        }
        restraint.note_failure(now + FORGIVEN);
        assert_eq!(restraint.refusal(now + FORGIVEN + RESTRAINT_MIN), None, "that one is the first again");
    }

    #[test]
    fn messages_of_a_later_release_are_ignored() {
        let mut giver = after(stopped());
        assert_eq!(giver.handle(received(Message::Unknown { kind: 42 })), []);
        assert_eq!(giver.handle(received(Message::Ready)), [Action::Commit]);
    }
}
