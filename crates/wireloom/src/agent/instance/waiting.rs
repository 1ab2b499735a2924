//! What an instance does while another one serves: pure, with the time as an argument.

use std::time::Duration;

#[cfg(test)]
mod interleavings;

/// How long nobody must have had the lock until a passive instance takes it. An arriving one tries the lock that it was
/// promised every 5 ms, and so comes first, also on a loaded machine. A longer time would leave a node whose new agent
/// has died without one for longer.
pub(super) const NOBODY: Duration = Duration::from_secs(2);

/// How often the lock is looked at: often enough for the wait to be over in time, and seldom enough to cost nothing,
/// because a passive instance may wait for long.
const LOOK: Duration = Duration::from_millis(100);

/// How far apart two looks may be: five times as far as meant, for a loaded machine. What was seen before a longer
/// pause, in which somebody may have served, does not count.
const GAP: Duration = Duration::from_millis(500);

/// How often a lock is tried that was promised, because nobody serves until then, and for how long before it is asked
/// for again. It is free once the other process has started its program anew, which takes milliseconds.
const PROMISED: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(5));

/// How long after an answer that was no promise it is asked again: one that refuses or does not answer may be ended at
/// any time.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// An instance that does not serve. Times are since it began to wait.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Waiting {
    manner: Manner,
    /// When the next step is due.
    due: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Manner {
    Arriving {
        /// Somebody has the lock who has not promised it.
        asks: bool,
        /// When it is to be asked for next.
        ask_at: Duration,
        /// Until when the lock is awaited that was promised.
        promised: Option<Duration>,
        /// What has been said of why it was not promised.
        said: Option<String>,
    },
    /// It has given the lock away.
    Passive {
        /// Since when nobody has had it, and when that was seen last.
        free: Option<(Duration, Duration)>,
    },
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing until then.
    Sleep(Duration),
    /// Look whether somebody has the lock, and say so to [`Waiting::looked`].
    Look,
    /// Take the lock and serve; if somebody has it, say so to [`Waiting::failed`].
    Take,
    /// Ask for the lock, and say what came back to [`Waiting::answered`].
    Ask,
}

/// What the instance that serves has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// The lock is free in a moment.
    Promise,
    /// It does not know the question, or nobody listens.
    Nobody,
    /// It keeps the lock; in words.
    Refusal(String),
    /// Nothing in time, or an error; in words.
    Silence(String),
}

impl Waiting {
    /// An instance that has just started, and wants the lock.
    pub(super) fn arriving() -> Self {
        let asking = Manner::Arriving { asks: false, ask_at: Duration::ZERO, promised: None, said: None };
        Self { manner: asking, due: Duration::ZERO }
    }

    /// An instance that has given the lock away. It never asks.
    pub(super) fn passive() -> Self {
        Self { manner: Manner::Passive { free: None }, due: Duration::ZERO }
    }

    /// What is to be done now.
    pub(super) fn next(&self, now: Duration) -> Step {
        match &self.manner {
            _ if now < self.due => Step::Sleep(self.due),
            Manner::Arriving { asks: true, .. } => Step::Ask,
            Manner::Arriving { .. } => Step::Take,
            Manner::Passive { free: Some((since, seen)) } if now >= *since + NOBODY && now <= *seen + GAP => {
                Step::Take
            }
            Manner::Passive { .. } => Step::Look,
        }
    }

    /// Takes whether somebody has the lock.
    pub(super) fn looked(&mut self, is_locked: bool, now: Duration) {
        self.due = now + LOOK;
        if let Manner::Passive { free } = &mut self.manner {
            let before = free.filter(|(_, seen)| now <= *seen + GAP);
            *free = if is_locked { None } else { Some((before.map_or(now, |(since, _)| since), now)) };
        }
    }

    /// Takes that somebody has the lock.
    pub(super) fn failed(&mut self, now: Duration) {
        self.due = now + LOOK;
        match &mut self.manner {
            Manner::Arriving { promised: Some(until), .. } if now < *until => self.due = now + PROMISED.0,
            Manner::Arriving { asks, ask_at, promised, .. } => {
                *promised = None;
                *asks = now >= *ask_at;
                if *asks {
                    self.due = now;
                }
            }
            Manner::Passive { free } => *free = None,
        }
    }

    /// Takes what the instance that serves has answered. Returns why this one stands by, when that is news.
    pub(super) fn answered(&mut self, answer: Answer, now: Duration) -> Option<String> {
        let Manner::Arriving { asks, ask_at, promised, said } = &mut self.manner else { return None };
        *asks = false;
        *ask_at = now + ASK_AGAIN;
        self.due = now;
        let why = match answer {
            Answer::Promise => {
                *promised = Some(now + PROMISED.1);
                return None;
            }
            Answer::Nobody => {
                "the agent that serves this node is of a version that cannot be asked for it".to_owned()
            }
            Answer::Refusal(why) => format!("the agent that serves this node keeps it: {why}"),
            Answer::Silence(why) => format!("the agent that serves this node does not answer: {why}"),
        };
        (said.as_ref() != Some(&why)).then(|| said.insert(why).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_promised_lock_is_taken_within_milliseconds() {
        let mut waiting = Waiting::arriving();
        assert_eq!(waiting.next(ms(0)), Step::Take);
        waiting.failed(ms(0));
        assert_eq!(waiting.next(ms(0)), Step::Ask);
        assert_eq!(waiting.answered(Answer::Promise, ms(40)), None);
        assert_eq!(waiting.next(ms(40)), Step::Take);
        waiting.failed(ms(40));
        assert_eq!(waiting.next(ms(41)), Step::Sleep(ms(45)));
        assert_eq!(waiting.next(ms(45)), Step::Take);
        // A promise that is not kept is no promise.
        waiting.failed(ms(5_040));
        assert_eq!(waiting.next(ms(5_040)), Step::Ask);
    }

    #[test]
    fn beside_one_that_cannot_be_asked_it_stands_by_and_says_so_once() {
        let mut waiting = Waiting::arriving();
        waiting.failed(ms(0));
        assert!(waiting.answered(Answer::Nobody, ms(0)).unwrap().contains("of a version"));
        assert_eq!(waiting.next(ms(0)), Step::Take);
        waiting.failed(ms(0));
        assert_eq!(waiting.next(ms(99)), Step::Sleep(ms(100)));
        waiting.failed(ms(1_000));
        assert_eq!(waiting.next(ms(1_000)), Step::Ask);
        assert_eq!(waiting.answered(Answer::Nobody, ms(1_000)), None);
        waiting.failed(ms(2_000));
        assert!(waiting.answered(Answer::Silence("timed out".into()), ms(2_000)).is_some());
    }

    #[test]
    fn a_passive_instance_takes_a_lock_that_nobody_had_for_two_seconds() {
        let mut waiting = Waiting::passive();
        let looks = |from: u64, to: u64| (from..=to).step_by(100).map(|at| (at, false));
        // It did not run for a while after the second.
        for (at, is_locked) in
            looks(0, 1_800).chain([(1_900, true)]).chain(looks(2_000, 3_900)).chain(looks(5_000, 6_900))
        {
            assert_eq!(waiting.next(ms(at)), Step::Look, "{at}");
            waiting.looked(is_locked, ms(at));
        }
        assert_eq!(waiting.next(ms(7_000)), Step::Take);
        assert_eq!(waiting.next(ms(7_500)), Step::Look, "it did not run");
        waiting.failed(ms(7_000));
        assert_eq!(waiting.next(ms(7_100)), Step::Look);
    }
}
