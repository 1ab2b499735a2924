//! When to write this node's own record, and what: pure, the time is an argument.
//!
//! The record as it is wanted is compared with the one that the collection shows. Where they differ, it is written: at
//! most once a second, and ever more rarely when somebody else changes it again and again.

use std::time::{Duration, Instant};

use wireloom_plan::cluster::Node;
use wireloom_types::PublicKey;

use crate::{
    backoff::Backoff,
    record::{self, Spelling},
    store::{Object, StoreError, StoreProblem},
};

/// The shortest time between two attempts.
const PACE: Duration = Duration::from_secs(1);

/// The longest wait while somebody else changes the record, too, and how long he must have stopped to be forgotten.
const LONGEST_FIGHT: Duration = Duration::from_secs(300);

/// The longest wait while the store is not there.
const LONGEST_OUTAGE: Duration = Duration::from_secs(30);

/// How often somebody else's record may take the place of ours before it is another machine's: an operator does it once
/// or twice.
const RIVALRY: u32 = 3;

/// How long the collection may take to show what was written, before it is written again.
const PATIENCE: Duration = Duration::from_secs(30);

/// This node's own record: as it is wanted, as it is shown, and what was tried.
#[derive(Debug)]
pub(crate) struct Publishing {
    spelling: Spelling,
    /// What readers are to make of the record; inside, `None`: there shall be none. `None` until somebody has said.
    wanted: Option<Option<Node>>,
    /// What was to be published last was refused, so `wanted` is what was wanted before.
    is_refused: bool,
    shown: Shown,
    /// It must be written even if it is as wanted.
    again: bool,
    /// It has been shown as it is wanted at this time, and ever since.
    settled: Option<Instant>,
    /// Whether the collection has shown something else since the last write was begun.
    is_news: bool,
    in_flight: bool,
    /// What is in flight is no longer what is wanted.
    is_outdated: bool,
    attempted: Option<Instant>,
    /// The last write succeeded at this time.
    succeeded: Option<Instant>,
    /// Not before this time, because of somebody else or a failure.
    wait: Option<Instant>,
    /// Not before this time, because the store said so.
    left_alone: Option<Instant>,
    fight: Backoff,
    failures: Backoff,
    /// How often a record with another key or other endpoints has taken the place of ours, and the last one.
    rivals: (u32, Option<Box<Node>>),
}

/// What the collection shows.
#[derive(Debug, PartialEq, Eq)]
enum Shown {
    /// It has not been listed yet.
    Unknown,
    Nothing,
    /// A record with this UID; `None` if it is not valid.
    Record(String, Option<Box<Node>>),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing, until something else happens.
    Rest,
    /// Ask again at this time.
    Wait(Instant),
    /// Write this, then say [`Publishing::done`].
    Put(String),
    /// Delete the record, then say [`Publishing::done`].
    Delete,
}

impl Publishing {
    pub(crate) fn new(spelling: Spelling, seed: u64) -> Self {
        Self {
            spelling,
            wanted: None,
            is_refused: false,
            shown: Shown::Unknown,
            again: false,
            settled: None,
            is_news: false,
            in_flight: false,
            is_outdated: false,
            attempted: None,
            succeeded: None,
            wait: None,
            left_alone: None,
            fight: Backoff::new(PACE, LONGEST_FIGHT, seed),
            failures: Backoff::new(PACE, LONGEST_OUTAGE, seed),
            rivals: (0, None),
        }
    }

    /// How the records of this store are spelled, which is known once there is a connection.
    pub(crate) fn spell(&mut self, spelling: Spelling) {
        self.spelling = spelling;
    }

    /// This is the record from now on; `None`: there shall be none. Of one that says that the node leaves, what no node
    /// would read is left out: the peers must hear of it.
    ///
    /// # Errors
    /// What is wrong with the record, in a sentence. No node would read it, and the one before stays; but then what is
    /// wanted is not published.
    pub(crate) fn want(&mut self, wanted: Option<&Node>) -> Result<(), String> {
        self.is_refused = true;
        let read = |node: &Node| record::read(&record::write(node, self.spelling));
        let read = wanted.map(|node| match read(node) {
            Err(_) if !node.encrypt => read(&record::readable(node)),
            read => read,
        });
        let read = read.transpose()?;
        self.is_refused = false;
        if self.wanted.as_ref() != Some(&read) {
            self.wanted = Some(read);
            self.settled = None;
            self.succeeded = None;
            self.is_outdated = self.in_flight;
            self.is_news = true;
            self.wait = None;
        }
        Ok(())
    }

    /// This is the record in the store now; `None`: there is none.
    pub(crate) fn show(&mut self, object: Option<&Object>) {
        let shown = match object {
            None => Shown::Nothing,
            Some(object) => Shown::Record(object.uid.clone(), record::read(&object.value).ok().map(Box::new)),
        };
        if let (Shown::Record(before, _), Shown::Record(now, _)) = (&self.shown, &shown)
            && before != now
        {
            // Somebody else made it anew. What is beside its content, such as its owner, may be another.
            self.again = true;
        }
        if self.shown != shown {
            if self.is_shown()
                && let (Some(Some(ours)), Shown::Record(_, Some(theirs))) = (&self.wanted, &shown)
                && is_of_another_machine(ours, theirs)
            {
                self.rivals = (self.rivals.0 + 1, Some(theirs.clone()));
            }
            self.shown = shown;
            self.is_news = true;
        }
    }

    /// What another machine that publishes under this node's name says of itself, if there seems to be one.
    pub(crate) fn rival(&self) -> Option<String> {
        let rival = self.rivals.1.as_ref().filter(|_| self.rivals.0 > RIVALRY)?;
        let key =
            rival.public_key.map_or_else(|| "without a key".to_owned(), |key| format!("with the key {key}"));
        let name = rival.endpoint_name.as_ref().map(ToString::to_string);
        let address = rival.endpoint.iter().chain(&rival.other_endpoints).next().map(ToString::to_string);
        Some(match name.or(address) {
            Some(endpoint) => format!("{key} at {endpoint}"),
            None => key,
        })
    }

    /// The entry is gone that says that this key is ours. If the record that is shown has the key, it is written again,
    /// and the entry with it.
    pub(crate) fn claim_is_gone(&mut self, key: &PublicKey) {
        if matches!(&self.shown, Shown::Record(_, Some(node)) if node.public_key.as_ref() == Some(key)) {
            self.write_again();
        }
    }

    /// The key of the record that is shown.
    pub(crate) fn shown_key(&self) -> Option<PublicKey> {
        let Shown::Record(_, Some(node)) = &self.shown else { return None };
        node.public_key
    }

    /// It must be written again, whatever it is like.
    pub(crate) fn write_again(&mut self) {
        self.again = true;
        self.is_news = true;
    }

    /// Somebody wants it written now, even if others have changed it or the store has failed.
    pub(crate) fn hurry(&mut self) {
        self.wait = None;
    }

    /// Whether the store shows the record as it is wanted.
    pub(crate) fn is_published(&self) -> bool {
        !self.is_refused && self.is_shown()
    }

    /// Whether the store shows the record as it is wanted, and nothing is left to be written.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_published() && !self.again && !self.in_flight
    }

    /// Whether the store shows the last record that was not refused.
    fn is_shown(&self) -> bool {
        match (&self.wanted, &self.shown) {
            (Some(Some(wanted)), Shown::Record(_, Some(shown))) => {
                // A key that is another node's is left out of the announcement that we leave.
                let without_key = || Node { public_key: None, ..wanted.clone() };
                wanted == &**shown || (!wanted.encrypt && without_key() == **shown)
            }
            (Some(None), Shown::Nothing) => true,
            _ => false,
        }
    }

    /// What to do now.
    pub(crate) fn step(&mut self, now: Instant) -> Step {
        let Some(wanted) = self.wanted.as_ref().filter(|_| !self.in_flight && self.shown != Shown::Unknown)
        else {
            return Step::Rest;
        };
        let is_shown = self.is_shown();
        if is_shown && (!self.again || wanted.is_none()) {
            self.again = false;
            self.wait = None;
            let settled = *self.settled.get_or_insert(now);
            if now.saturating_duration_since(settled) >= LONGEST_FIGHT {
                self.fight.reset();
                self.rivals = (0, None);
            }
            return match self.rivals.0 {
                0 => Step::Rest,
                // Then they are forgotten, also if nothing happens until then.
                _ => Step::Wait(settled + LONGEST_FIGHT),
            };
        }
        // What we wrote, or saw as we want it, is another thing now.
        let was_ours = self.settled.is_some() || self.succeeded.is_some();
        if !is_shown && was_ours && self.is_news {
            if self.settled.is_some_and(|settled| now.saturating_duration_since(settled) >= LONGEST_FIGHT) {
                self.fight.reset();
            }
            self.wait = self.wait.max(Some(now + self.fight.next()));
            self.settled = None;
            self.succeeded = None;
        }
        self.is_news = false;
        let late = self.succeeded.filter(|_| !self.again).map(|succeeded| succeeded + PATIENCE);
        let paced = self.attempted.map(|attempted| attempted + PACE);
        match [late, paced, self.wait, self.left_alone].into_iter().flatten().max() {
            Some(due) if due > now => Step::Wait(due),
            _ => {
                self.attempted = Some(now);
                self.succeeded = None;
                self.wait = None;
                self.in_flight = true;
                self.again = false;
                match wanted {
                    Some(node) => Step::Put(record::write(node, self.spelling)),
                    None => Step::Delete,
                }
            }
        }
    }

    /// What became of the last step.
    pub(crate) fn done(&mut self, result: Result<(), &StoreError>, now: Instant) {
        self.in_flight = false;
        let is_outdated = std::mem::take(&mut self.is_outdated);
        let Err(error) = result else {
            self.failures.reset();
            self.succeeded = Some(now).filter(|_| !is_outdated);
            return;
        };
        self.again |= self.is_shown();
        let wait = match &error.problem {
            StoreProblem::Conflict { .. } => self.fight.next(),
            StoreProblem::Denied { .. } | StoreProblem::Nonsense { .. } => {
                self.failures.spread(LONGEST_OUTAGE)
            }
            StoreProblem::Unavailable { .. } | StoreProblem::Compacted => self.failures.next(),
        };
        self.wait = Some(now + wait).filter(|_| !is_outdated);
        if let StoreProblem::Unavailable { retry_after: Some(time), .. } = error.problem {
            self.left_alone = Some(now + time.min(LONGEST_FIGHT));
        }
    }
}

/// Whether a record under our name is not just an edited one of ours.
fn is_of_another_machine(ours: &Node, theirs: &Node) -> bool {
    let machine = |node: &Node| {
        (node.public_key, node.endpoint, node.endpoint_name.clone(), node.other_endpoints.clone())
    };
    machine(ours) != machine(theirs)
}

#[cfg(test)]
mod tests;
