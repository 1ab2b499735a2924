//! A store in memory, with the faults of real ones: outages, cut and silent watches, compaction, stale replicas, going
//! back in time, being another one. For tests; the time is the runtime's.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::store::{
    Change, Changes, Collection, Listed, Object, OwnRecord, Position, StoreError, StoreProblem, Version,
};

/// A store with one collection. Clones are the same store.
#[derive(Debug, Clone)]
pub(crate) struct Memory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Sent to after each change of the state.
    news: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    content: Content,
    faults: Faults,
    /// Watches that began under another number end.
    generation: u64,
    /// Watches that began under another number say nothing any more, as when the network in between is gone.
    muted: u64,
    counts: Counts,
    /// When own records were written.
    writes: Vec<Instant>,
}

/// What the store has: can be kept, and put back.
#[derive(Debug, Clone, Default)]
pub(crate) struct Content {
    pub(crate) id: String,
    pub(crate) version: u64,
    pub(crate) objects: BTreeMap<String, Object>,
    /// The changes after the version `compacted`, oldest first.
    log: Vec<(u64, String, Option<Object>)>,
    compacted: u64,
}

/// What goes wrong.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// Nobody answers.
    pub(crate) down: bool,
    /// The store answers that it may not be asked.
    pub(crate) denied: bool,
    /// Each answer takes this long.
    pub(crate) delay: Duration,
    /// Lists are answered from this, as by a replica that lags behind.
    pub(crate) stale: Option<Content>,
}

/// How often the store was asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) lists: u32,
    pub(crate) watches: u32,
    pub(crate) positions: u32,
}

impl Memory {
    pub(crate) fn new() -> Self {
        let content = Content { id: "first".into(), version: 100, ..Content::default() };
        let state = Mutex::new(State { content, ..State::default() });
        Self(Arc::new(Shared { state, news: watch::channel(()).0 }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.0.news.send_replace(());
        result
    }

    /// Writes an object, as another client would.
    pub(crate) fn put(&self, name: &str, value: &str) {
        self.change(|state| state.content.put(name, value));
    }

    /// Deletes an object.
    pub(crate) fn delete(&self, name: &str) {
        self.change(|state| state.content.delete(name));
    }

    pub(crate) fn content(&self) -> Content {
        self.state().content.clone()
    }

    /// Puts a content in place of what is there, as restoring a backup does, and cuts all watches.
    pub(crate) fn restore(&self, content: Content) {
        self.change(|state| {
            state.content = content;
            state.generation += 1;
        });
    }

    /// Cuts all watches.
    pub(crate) fn cut(&self) {
        self.change(|state| state.generation += 1);
    }

    /// Lets all watches say nothing any more, and not end.
    pub(crate) fn mute(&self) {
        self.change(|state| state.muted += 1);
    }

    /// Forgets all changes, and cuts all watches.
    pub(crate) fn compact(&self) {
        self.change(|state| {
            state.content.compacted = state.content.version;
            state.content.log.clear();
            state.generation += 1;
        });
    }

    pub(crate) fn fail(&self, faults: impl FnOnce(&mut Faults)) {
        self.change(|state| {
            faults(&mut state.faults);
            if state.faults.down {
                state.generation += 1;
            }
        });
    }

    pub(crate) fn counts(&self) -> Counts {
        self.state().counts
    }

    /// When own records were written.
    pub(crate) fn writes(&self) -> Vec<Instant> {
        self.state().writes.clone()
    }

    /// The collection; the operation of its errors names it.
    pub(crate) fn collection(&self) -> MemoryCollection {
        MemoryCollection(self.clone())
    }

    /// The place of a node's own record.
    pub(crate) fn own_record(&self, node: &str) -> MemoryRecord {
        MemoryRecord { memory: self.clone(), node: node.to_owned() }
    }

    /// Waits as long as an answer takes, and fails if there is none.
    async fn answer(&self, operation: &str) -> Result<(), StoreError> {
        let delay = self.state().faults.delay;
        sleep(delay).await;
        let faults = &self.state().faults;
        let problem = match (faults.down, faults.denied) {
            (true, _) => StoreProblem::Unavailable { why: "connection refused".into(), retry_after: None },
            (_, true) => StoreProblem::Denied { why: "not allowed; change the role".into() },
            _ => return Ok(()),
        };
        Err(StoreError { operation: operation.into(), problem })
    }
}

impl Content {
    fn put(&mut self, name: &str, value: &str) {
        self.version += 1;
        let new = || (self.version, format!("uid-{}", self.version));
        let before = self.objects.get(name);
        let (born, uid) = before.map_or_else(new, |object| (object.born, object.uid.clone()));
        let object = Object { value: value.to_owned(), born, uid };
        self.log.push((self.version, name.to_owned(), Some(object.clone())));
        self.objects.insert(name.to_owned(), object);
    }

    pub(crate) fn delete(&mut self, name: &str) {
        if self.objects.remove(name).is_some() {
            self.version += 1;
            self.log.push((self.version, name.to_owned(), None));
        }
    }

    fn position(&self) -> Position {
        Position { store: Some(self.id.clone()), version: Version(self.version) }
    }
}

#[derive(Debug)]
pub(crate) struct MemoryCollection(Memory);

impl Collection for MemoryCollection {
    fn name(&self) -> String {
        "the records".into()
    }

    fn list(&mut self) -> BoxFuture<'_, Result<Listed, StoreError>> {
        async {
            self.0.change(|state| state.counts.lists += 1);
            self.0.answer("list the records").await?;
            let state = self.0.state();
            let content = state.faults.stale.as_ref().unwrap_or(&state.content);
            Ok(Listed { position: content.position(), objects: content.objects.clone() })
        }
        .boxed()
    }

    fn watch(&mut self, after: Version) -> BoxFuture<'_, Result<Changes, StoreError>> {
        async move {
            self.0.change(|state| state.counts.watches += 1);
            self.0.answer("watch the records").await?;
            let state = self.0.state();
            if after.0 < state.content.compacted {
                return Err(StoreError {
                    operation: "watch the records".into(),
                    problem: StoreProblem::Compacted,
                });
            }
            let watch = Watch {
                memory: self.0.clone(),
                news: self.0.0.news.subscribe(),
                generation: state.generation,
                muted: state.muted,
                after: after.0,
            };
            Ok(stream::unfold(watch, Watch::next).boxed())
        }
        .boxed()
    }

    fn position(&mut self) -> BoxFuture<'_, Result<Position, StoreError>> {
        async {
            self.0.change(|state| state.counts.positions += 1);
            self.0.answer("ask where the store stands").await?;
            Ok(self.0.state().content.position())
        }
        .boxed()
    }
}

struct Watch {
    memory: Memory,
    news: watch::Receiver<()>,
    generation: u64,
    muted: u64,
    after: u64,
}

impl Watch {
    async fn next(mut self) -> Option<(Result<Change, StoreError>, Self)> {
        loop {
            self.news.mark_unchanged();
            if self.memory.state().muted != self.muted {
                return std::future::pending().await;
            }
            let found = {
                let state = self.memory.state();
                if state.generation != self.generation {
                    return None;
                }
                let is_next = |(version, ..): &&(u64, String, Option<Object>)| *version > self.after;
                state.content.log.iter().find(is_next).cloned()
            };
            let Some((version, name, object)) = found else {
                self.news.changed().await.ok()?;
                continue;
            };
            let delay = self.memory.state().faults.delay;
            sleep(delay).await;
            self.after = version;
            let version = Version(version);
            let change = match object {
                Some(object) => Change::Put(name, object, version),
                None => Change::Gone(name, version),
            };
            return Some((Ok(change), self));
        }
    }
}

#[derive(Debug)]
pub(crate) struct MemoryRecord {
    memory: Memory,
    node: String,
}

impl OwnRecord for MemoryRecord {
    fn put(&mut self, value: String) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.memory.answer("write the record").await?;
            self.memory.change(|state| {
                state.writes.push(Instant::now());
                state.content.put(&self.node, &value);
            });
            Ok(())
        }
        .boxed()
    }

    fn delete(&mut self) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.memory.answer("delete the record").await?;
            self.memory.change(|state| {
                state.writes.push(Instant::now());
                state.content.delete(&self.node);
            });
            Ok(())
        }
        .boxed()
    }
}
