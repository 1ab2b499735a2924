//! Following one collection of a store: list it, watch it from there, and notice when the store is not what it was.
//!
//! ```text
//!        ┌──────────────── compacted, gone back, another store ───────────────┐
//!        ▼                                                                    │
//!      list ──▶ whole ──▶ watch ──▶ changes ──▶ cut, or silent ──▶ position ──┴─ as before: watch on from there
//! ```
//!
//! What was told stays in force until something newer is known: a failure tells no more than that it failed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use tokio::{
    sync::{mpsc::Sender, watch},
    time::{Instant, sleep, timeout},
};

use crate::{
    Health,
    backoff::Backoff,
    store::{Change, Collection, Listed, Object, Position, StoreError, StoreProblem, Version},
};

/// The shortest and the longest wait between attempts while the store is not there.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The longest that a store may ask to be left alone.
const LONGEST_REQUESTED: Duration = Duration::from_secs(300);

/// How long a watch may say nothing before the store is asked. Kubernetes sends a bookmark every minute.
pub(crate) const SILENCE: Duration = Duration::from_secs(90);

/// After this long without an answer everything is listed again. Kubernetes keeps the changes of 5 minutes (etcd's
/// compaction interval), and a store that went back in time may be past its old version again by then.
const LONGEST_ABSENCE: Duration = Duration::from_secs(300);

/// A watch that lived this long was not cut at once.
const LIVED: Duration = Duration::from_secs(10);

/// What a follower tells.
#[derive(Debug)]
pub(crate) enum News {
    /// All objects. What is missing is gone.
    Whole(BTreeMap<String, Object>),
    /// An object is new or another one; `None`: it is gone.
    Change(String, Option<Object>),
    /// This is wrong now. It is told once, and not at each attempt.
    Trouble(StoreError),
    /// Nothing is wrong any more.
    Well,
}

/// The follower of one collection.
pub(crate) struct Follower {
    collection: Box<dyn Collection>,
    /// Its place among the collections of the source, which goes with all that it tells.
    place: usize,
    tell: Sender<(usize, News)>,
    /// Changes when everything is to be read again.
    reread: watch::Receiver<u64>,
    health: Arc<Health>,
    backoff: Backoff,
    /// What was told last is true of this point.
    seen: Option<Position>,
    /// When the store answered last.
    answered: Instant,
    /// What has been told to be wrong since it was last well.
    troubles: BTreeSet<String>,
}

/// What to do after a watch.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Watch,
    List,
}

impl Follower {
    pub(crate) fn new(
        collection: Box<dyn Collection>,
        place: usize,
        tell: Sender<(usize, News)>,
        reread: watch::Receiver<u64>,
        health: Arc<Health>,
        seed: u64,
    ) -> Self {
        let backoff = Backoff::new(WAITS.0, WAITS.1, seed);
        let (answered, troubles) = (Instant::now(), BTreeSet::new());
        Self { collection, place, tell, reread, health, backoff, seen: None, answered, troubles }
    }

    /// Follows the collection until nobody listens any more.
    pub(crate) async fn run(mut self) {
        while !self.tell.is_closed() {
            self.list().await;
            while self.watch().await == Next::Watch {}
        }
    }

    /// Lists the collection, as often as it takes.
    async fn list(&mut self) {
        loop {
            self.reread.mark_unchanged();
            let listed = match self.collection.list().await {
                Ok(listed) => self.believe(listed).await,
                Err(error) => Err(error),
            };
            match listed {
                Ok(Listed { position, objects }) => {
                    self.seen = Some(position);
                    self.tell(News::Whole(objects)).await;
                    self.is_well().await;
                    return;
                }
                Err(error) => self.failed(error).await,
            }
            if self.tell.is_closed() {
                return;
            }
        }
    }

    /// A list that is older than what was seen is either a stale replica's, or the store went back in time. The store
    /// itself knows.
    async fn believe(&mut self, listed: Listed) -> Result<Listed, StoreError> {
        let Some(seen) = &self.seen else { return Ok(listed) };
        if !is_other(seen, &listed.position) {
            return Ok(listed);
        }
        let seen = seen.clone();
        let now = self.collection.position().await?;
        let operation = format!("go on with {}", self.collection.name());
        if !is_other(&seen, &now) || now.store != listed.position.store {
            let why = format!(
                "an answer of version {} came after one of version {}; it is a stale replica's, and is not believed",
                listed.position.version.0, seen.version.0
            );
            let problem = StoreProblem::Unavailable { why, retry_after: None };
            return Err(StoreError { operation, problem });
        }
        let what = match now.store == seen.store {
            true => format!("went back in time, from version {} to {}", seen.version.0, now.version.0),
            false => "is another one than before".to_owned(),
        };
        let why = format!(
            "the store {what}; nodes whose records it lost stay in force for 10 minutes: see that it is the right \
             one, and \
             that the agents publish their records again"
        );
        self.report(StoreError { operation, problem: StoreProblem::Nonsense { why } }).await;
        Ok(listed)
    }

    /// Watches the collection until that ends.
    async fn watch(&mut self) -> Next {
        let Some(seen) = self.seen.clone() else { return Next::List };
        let begun = Instant::now();
        let mut stream = match self.collection.watch(seen.version).await {
            Ok(stream) => stream,
            Err(error) => return self.broken(Some(error), begun).await,
        };
        self.is_well().await;
        loop {
            let next = tokio::select! {
                // An error: the source is gone.
                _ = self.reread.changed() => return Next::List,
                next = timeout(SILENCE, stream.next()) => next,
            };
            match next {
                Ok(Some(Ok(change))) if version(&change) >= self.seen_version() => self.apply(change).await,
                // From before what was seen: not the watch that was asked for.
                Ok(Some(Ok(_)) | None) => return self.broken(None, begun).await,
                Ok(Some(Err(error))) => return self.broken(Some(error), begun).await,
                Err(_) => match self.collection.position().await {
                    Ok(now) if is_other(&seen, &now) || now.version < self.seen_version() => {
                        return Next::List;
                    }
                    // It has not said that nothing happened, so something may have: a new watch loses nothing.
                    Ok(now) if now.version > self.seen_version() => return Next::Watch,
                    Ok(_) => self.is_well().await,
                    Err(error) => return self.broken(Some(error), begun).await,
                },
            }
        }
    }

    async fn apply(&mut self, change: Change) {
        if let Some(seen) = &mut self.seen {
            seen.version = version(&change);
        }
        match change {
            Change::Put(name, object, _) => self.tell(News::Change(name, Some(object))).await,
            Change::Gone(name, _) => self.tell(News::Change(name, None)).await,
            Change::Progress(_) => {}
        }
        self.is_well().await;
    }

    /// After a watch has ended: waits until the store answers, and sees whether it is the one that it was.
    async fn broken(&mut self, error: Option<StoreError>, begun: Instant) -> Next {
        if begun.elapsed() >= LIVED {
            self.backoff.reset();
        }
        match error {
            Some(StoreError { problem: StoreProblem::Compacted, .. }) => {
                self.pause(begun).await;
                return Next::List;
            }
            // What only an operator changes is told. Whether the store is there is seen below.
            Some(error) if !matches!(error.problem, StoreProblem::Unavailable { retry_after: None, .. }) => {
                self.failed(error).await;
            }
            Some(error) => {
                self.health.count_error();
                tracing::debug!("{error}");
                self.pause(begun).await;
            }
            None => self.pause(begun).await,
        }
        loop {
            if self.reread.has_changed().unwrap_or(true) || self.tell.is_closed() {
                return Next::List;
            }
            match self.collection.position().await {
                Ok(now) => {
                    let is_other = self.seen.as_ref().is_none_or(|seen| is_other(seen, &now));
                    let was_away = self.answered.elapsed() > LONGEST_ABSENCE;
                    return if is_other || was_away { Next::List } else { Next::Watch };
                }
                Err(error) => self.failed(error).await,
            }
        }
    }

    /// Waits a little if the watch was cut at once.
    async fn pause(&mut self, begun: Instant) {
        if begun.elapsed() < LIVED {
            let wait = self.backoff.next();
            self.wait(wait).await;
        }
    }

    async fn failed(&mut self, error: StoreError) {
        self.health.count_error();
        let wait = match &error.problem {
            StoreProblem::Denied { .. } | StoreProblem::Nonsense { .. } => self.backoff.spread(WAITS.1),
            StoreProblem::Unavailable { retry_after: Some(time), .. } => {
                self.backoff.next().max((*time).min(LONGEST_REQUESTED))
            }
            _ => self.backoff.next(),
        };
        self.report(error).await;
        self.wait(wait).await;
    }

    /// Waits, unless everything is to be read again now.
    async fn wait(&mut self, time: Duration) {
        tokio::select! {
            _ = self.reread.changed() => {}
            () = sleep(time) => {}
        }
    }

    async fn report(&mut self, error: StoreError) {
        if self.troubles.insert(error.to_string()) {
            self.tell(News::Trouble(error)).await;
        }
    }

    async fn is_well(&mut self) {
        self.answered = Instant::now();
        self.health.set_heard(self.answered.into_std());
        if !std::mem::take(&mut self.troubles).is_empty() {
            self.tell(News::Well).await;
        }
    }

    fn seen_version(&self) -> Version {
        self.seen.as_ref().map(|seen| seen.version).unwrap_or_default()
    }

    async fn tell(&mut self, news: News) {
        // Nobody listens when the source ends.
        let _ = self.tell.send((self.place, news)).await;
    }
}

/// Whether a store that stands here now is not the one that was there, or not all that it was.
fn is_other(seen: &Position, now: &Position) -> bool {
    seen.store != now.store || now.version < seen.version
}

fn version(change: &Change) -> Version {
    match change {
        Change::Put(_, _, version) | Change::Gone(_, version) | Change::Progress(version) => *version,
    }
}
