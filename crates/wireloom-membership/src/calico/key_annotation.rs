//! Keeps the key of this node's record among Felix's: in an annotation of its Node, whatever Felix does to it.
//!
//! Felix clears the annotation when it starts with its WireGuard off, and writes its own key within seconds with its
//! WireGuard on. Ours comes back at most once a second, and ever more rarely while somebody changes it again and again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use serde_json::json;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
    time::{Instant, sleep_until},
};
use wireloom_types::PublicKey;

use super::annotations::PUBLIC_KEY;
use crate::{
    backoff::Backoff,
    knowledge::{Handler, Knowledge},
    kubernetes::server::{ApiServer, Call},
    record,
    store::{Object, StoreError},
};

/// How long after the record the key follows. All Felixes encrypt with this node as soon as they have its key, and by
/// then its agent must have theirs: a handshake that nobody answers is repeated after 5 s only (section 6.4 of the
/// WireGuard paper).
const HEAD_START: Duration = Duration::from_secs(3);

/// The shortest time between two attempts.
const PACE: Duration = Duration::from_secs(1);

/// The longest wait while somebody else changes it, too, and how long he must have stopped to be forgotten.
const LONGEST_FIGHT: Duration = Duration::from_secs(300);

/// A wait without an end.
const DAY: Duration = Duration::from_secs(86_400);

/// What is known of the key, here and there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// This node's record has this key; `None`: it has none, or does not encrypt.
    Record(Option<PublicKey>),
    /// The annotation has this key; `None`: there is none.
    Annotation(Option<PublicKey>),
}

/// A handler of the records that tells of this node's own, too.
pub(super) struct RecordsWithKey {
    records: Box<dyn Handler>,
    news: UnboundedSender<News>,
}

impl RecordsWithKey {
    pub(super) fn new(records: Box<dyn Handler>, news: UnboundedSender<News>) -> Self {
        Self { records, news }
    }

    fn tell(&self, object: Option<&Object>) {
        let node = object.and_then(|object| record::read(&object.value).ok());
        let key = node.filter(|node| node.encrypt).and_then(|node| node.public_key);
        // Nobody listens when the source ends.
        let _ = self.news.send(News::Record(key));
    }
}

impl Handler for RecordsWithKey {
    fn whole(&mut self, objects: BTreeMap<String, Object>, knowledge: &mut Knowledge) {
        self.tell(objects.get(knowledge.node()));
        self.records.whole(objects, knowledge);
    }

    fn change(&mut self, name: &str, object: Option<&Object>, knowledge: &mut Knowledge) {
        if name == knowledge.node() {
            self.tell(object);
        }
        self.records.change(name, object, knowledge);
    }
}

/// Writes the annotation of this node's Node, until the source ends.
pub(super) async fn keep(server: Arc<ApiServer>, node: String, mut news: UnboundedReceiver<News>, seed: u64) {
    let mut annotation = Annotation::new(seed);
    let mut said = None;
    loop {
        let due = match annotation.step(Instant::now().into_std()) {
            Step::Rest => Instant::now() + DAY,
            Step::Wait(due) => Instant::from_std(due),
            Step::Write(key) => {
                let written = write(&server, &node, key).await;
                annotation.done(written.is_ok(), Instant::now().into_std());
                let error = written.err().map(|error| error.to_string());
                if let Some(error) = error.as_ref().filter(|_| error != said) {
                    tracing::warn!("{error}; Felix does not learn our key until this is fixed");
                }
                said = error;
                continue;
            }
        };
        tokio::select! {
            news = news.recv() => match news {
                Some(news) => annotation.learn(news, Instant::now().into_std()),
                None => return,
            },
            () = sleep_until(due) => {}
        }
    }
}

async fn write(server: &ApiServer, node: &str, key: Option<PublicKey>) -> Result<(), StoreError> {
    let patch = json!({ "metadata": { "annotations": { PUBLIC_KEY: key.map(|key| key.to_string()) } } });
    let what = format!("write the annotation {PUBLIC_KEY} of the Node {node}");
    server.ask("/api/v1/nodes", Call::Merge(node, &patch), &what).await.map(drop)
}

/// When to write the annotation, and what: pure, the time is an argument.
#[derive(Debug)]
pub(super) struct Annotation {
    /// The key of the record, once that is known.
    wanted: Option<Option<PublicKey>>,
    /// The key in the annotation, once that is known.
    shown: Option<Option<PublicKey>>,
    /// The keys that were ours: no other is cleared, for it is Felix's own.
    ours: BTreeSet<PublicKey>,
    /// It has been as wanted since then.
    settled: Option<StdInstant>,
    attempted: Option<StdInstant>,
    /// Not before this time.
    wait: Option<StdInstant>,
    fight: Backoff,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, until something else happens.
    Rest,
    /// Ask again at this time.
    Wait(StdInstant),
    /// Write this, or clear it; then say [`Annotation::done`].
    Write(Option<PublicKey>),
}

impl Annotation {
    pub(super) fn new(seed: u64) -> Self {
        let fight = Backoff::new(PACE, LONGEST_FIGHT, seed);
        Self {
            wanted: None,
            shown: None,
            ours: BTreeSet::new(),
            settled: None,
            attempted: None,
            wait: None,
            fight,
        }
    }

    pub(super) fn learn(&mut self, news: News, now: StdInstant) {
        match news {
            News::Record(key) => {
                self.ours.extend(key);
                if self.wanted != Some(key) {
                    self.wanted = Some(key);
                    self.settled = None;
                    self.wait = key.map(|_| now + HEAD_START);
                }
            }
            News::Annotation(key) => {
                self.shown = Some(key);
                let is_as_wanted = self.is_as_wanted();
                if let Some(settled) = self.settled.take_if(|_| !is_as_wanted) {
                    // Somebody changed it.
                    if now.saturating_duration_since(settled) >= LONGEST_FIGHT {
                        self.fight.reset();
                    }
                    self.wait = self.wait.max(Some(now + self.fight.next()));
                }
            }
        }
    }

    pub(super) fn step(&mut self, now: StdInstant) -> Step {
        if self.is_as_wanted() {
            if self.wanted.is_some() && self.shown.is_some() {
                self.settled.get_or_insert(now);
            }
            return Step::Rest;
        }
        let Some(wanted) = self.wanted else { return Step::Rest };
        let paced = self.attempted.map(|attempted| attempted + PACE);
        match self.wait.max(paced) {
            Some(due) if due > now => Step::Wait(due),
            _ => {
                self.attempted = Some(now);
                self.wait = None;
                Step::Write(wanted)
            }
        }
    }

    /// What became of the last write.
    pub(super) fn done(&mut self, is_written: bool, now: StdInstant) {
        if is_written {
            self.shown = Some(self.wanted.flatten());
        } else {
            self.wait = Some(now + self.fight.next());
        }
    }

    /// Whether there is nothing to write, as far as is known.
    fn is_as_wanted(&self) -> bool {
        match (self.wanted, self.shown) {
            (Some(Some(wanted)), Some(shown)) => shown == Some(wanted),
            (Some(None), Some(Some(shown))) => !self.ours.contains(&shown),
            (Some(None), Some(None)) | (None, _) | (_, None) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes([byte; 32])
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_key_is_written_once_both_sides_are_known_and_restored_when_felix_clears_it() {
        let start = StdInstant::now();
        let mut annotation = Annotation::new(1);
        assert_eq!(annotation.step(start), Step::Rest);
        annotation.learn(News::Record(Some(key(1))), start);
        assert_eq!(annotation.step(start), Step::Rest, "the annotation is not known yet");
        annotation.learn(News::Annotation(None), start);
        assert_eq!(annotation.step(start), Step::Wait(start + HEAD_START));
        let start = start + HEAD_START;
        assert_eq!(annotation.step(start), Step::Write(Some(key(1))));
        annotation.done(true, start);
        assert_eq!(annotation.step(start), Step::Rest);
        annotation.learn(News::Annotation(Some(key(1))), start);

        let later = start + seconds(3600);
        annotation.learn(News::Annotation(None), later);
        let Step::Wait(due) = annotation.step(later) else { panic!("at once") };
        assert!(due <= later + seconds(2), "{:?}", due - later);
        assert_eq!(annotation.step(due), Step::Write(Some(key(1))));
    }

    #[test]
    fn a_felix_that_writes_its_own_key_is_answered_ever_more_rarely() {
        let mut now = StdInstant::now();
        let mut annotation = Annotation::new(1);
        annotation.learn(News::Record(Some(key(1))), now);
        let (mut writes, end) = (0, now + seconds(3600));
        while now < end {
            annotation.learn(News::Annotation(Some(key(2))), now);
            match annotation.step(now) {
                Step::Wait(due) => now = due,
                Step::Write(written) => {
                    assert_eq!(written, Some(key(1)));
                    annotation.done(true, now);
                    assert_eq!(annotation.step(now), Step::Rest);
                    writes += 1;
                    // Within seconds it is there again.
                    now += seconds(3);
                }
                Step::Rest => panic!("gave up"),
            }
        }
        assert!((10..40).contains(&writes), "{writes} writes in an hour");
    }

    #[test]
    fn a_key_of_felix_stays_when_we_leave_and_ours_goes() {
        let start = StdInstant::now();
        let mut annotation = Annotation::new(1);
        annotation.learn(News::Record(None), start);
        annotation.learn(News::Annotation(Some(key(2))), start);
        assert_eq!(annotation.step(start), Step::Rest);
        annotation.learn(News::Record(Some(key(1))), start);
        annotation.learn(News::Annotation(Some(key(1))), start);
        assert_eq!(annotation.step(start), Step::Rest);
        annotation.learn(News::Record(None), start + seconds(9));
        assert_eq!(annotation.step(start + seconds(9)), Step::Write(None));
    }

    #[test]
    fn what_fails_is_tried_again_later() {
        let start = StdInstant::now();
        let mut annotation = Annotation::new(1);
        annotation.learn(News::Record(Some(key(1))), start);
        annotation.learn(News::Annotation(None), start);
        let start = start + HEAD_START;
        assert_eq!(annotation.step(start), Step::Write(Some(key(1))));
        annotation.done(false, start);
        let Step::Wait(due) = annotation.step(start) else { panic!("at once") };
        assert_eq!(annotation.step(due), Step::Write(Some(key(1))));
    }
}
