//! The thread that follows a store: its collections, this node's record, and what the agent asks.
//!
//! ```text
//!  Stores ─┬─ Collection ─ Follower (task) ──News──▶ Handler ─┐
//!          ├─ Collection ─ Follower (task) ──News──▶ Handler ─┼─▶ Knowledge ─▶ Event ─▶ agent
//!          └─ OwnRecord ── writer (task) ◀──Step── Publishing ┘      ▲
//!                                                                  Request ◀─ agent
//! ```
//!
//! A kind of store is plugged in with a function that connects to it. It is called inside the runtime, again and again
//! until it succeeds; what it returns does its own reconnecting from then on:
//!
//! ```ignore
//! pub(crate) fn follow(settings: &Settings, start: Start, deliver: impl Fn(Event) + Send + 'static) ->
//! io::Result<Following> {
//!     let settings = settings.clone();
//!     source::follow(start, deliver, move |node| {
//!         let (settings, node) = (settings.clone(), node.to_owned());
//!         async move {
//!             let client = Client::connect(&settings).await?;
//!             Ok(Stores {
//!                 spelling: Spelling::Camel,
//!                 followed: vec![
//!                     Followed::new(client.records(), Records::default()),
//!                     Followed::new(client.own_node(&node), OwnNode::new()), // each with a handler of its own
//!                 ],
//!                 own_record: Some(Box::new(client.own_record(&node))),
//!                 addresses: store_address::of_urls(&settings.endpoints).await,
//!                 reports: None,
//!             })
//!         }
//!         .boxed()
//!     })
//! }
//! ```

use std::{
    collections::BTreeSet,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    net::IpAddr,
    sync::Arc,
    thread,
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    runtime,
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use wireloom_plan::cluster::Cluster;

use crate::{
    Error, Event, Following, Health, Request, Start,
    backoff::Backoff,
    desk::{Connected, Desk, Origin},
    follow::Follower,
    knowledge::{Handler, Knowledge},
    kubernetes::report::Report,
    mesh::Mesh,
    publishing::{Publishing, Step},
    record::Spelling,
    store::{Collection, OwnRecord, StoreError, StoreProblem},
};

/// How much news of the followers may wait.
const NEWS: usize = 256;

/// A connected store: what is followed there, and what is written.
pub(crate) struct Stores {
    /// How the fields of records are spelled there.
    pub(crate) spelling: Spelling,
    pub(crate) followed: Vec<Followed>,
    /// Where this node's record is; `None`: it is not published here.
    pub(crate) own_record: Option<Box<dyn OwnRecord>>,
    /// The addresses of the store's own machines: no node's workloads hold them.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Where state for people goes. Who listens decides what to do with it and when; failures are his.
    pub(crate) reports: Option<mpsc::UnboundedSender<Report>>,
}

/// A collection and what its objects mean.
pub(crate) struct Followed {
    pub(crate) collection: Box<dyn Collection>,
    pub(crate) handler: Box<dyn Handler>,
}

impl Followed {
    pub(crate) fn new(collection: impl Collection + 'static, handler: impl Handler + 'static) -> Self {
        Self { collection: Box::new(collection), handler: Box::new(handler) }
    }
}

/// Connects to a store; the argument is the name of this node. One attempt, which ends within a bound of its own.
pub(crate) trait Connect: FnMut(&str) -> BoxFuture<'static, Result<Stores, StoreError>> {}

impl<F: FnMut(&str) -> BoxFuture<'static, Result<Stores, StoreError>>> Connect for F {}

/// Starts the thread that follows a store, for as long as the process lives.
///
/// # Errors
/// The operating system's, when the thread or its runtime cannot be started.
pub(crate) fn follow(
    start: Start,
    deliver: impl Fn(Event) + Send + 'static,
    connect: impl Connect + Send + 'static,
) -> io::Result<Following> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let (requests, asked) = mpsc::unbounded_channel();
    let health: Arc<Health> = Arc::default();
    let source = Source { start, requests: asked, health: Arc::clone(&health), seed: seed() };
    thread::Builder::new()
        .name("mesh".into())
        .spawn(move || runtime.block_on(run(source, deliver, connect)))?;
    Ok(Following { requests: Some(requests), health })
}

/// Reads the mesh once. Everything that completes it is listed; the name of this node is not known.
///
/// # Errors
/// The store cannot be read.
pub(crate) fn read(mut connect: impl Connect) -> Result<Cluster, Error> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| StoreError {
        operation: "start the runtime of the store's client".into(),
        problem: StoreProblem::Unavailable { why: error.to_string(), retry_after: None },
    })?;
    runtime.block_on(async {
        let stores = connect("").await?;
        let now = Instant::now().into_std();
        let mut knowledge = Knowledge::new("", Mesh::new(None), Publishing::new(stores.spelling, 0), now);
        knowledge.mesh.protect(stores.addresses);
        for mut followed in stores.followed.into_iter().filter(|it| it.handler.completes_mesh()) {
            let listed = followed.collection.list().await?;
            followed.handler.whole(listed.objects, &mut knowledge);
        }
        knowledge.mesh.deliver(now);
        Ok(knowledge.mesh.delivered().clone())
    })
}

/// What the thread is started with.
pub(crate) struct Source {
    pub(crate) start: Start,
    pub(crate) requests: mpsc::UnboundedReceiver<Request>,
    pub(crate) health: Arc<Health>,
    /// Spreads the waits of the agents of a fleet.
    pub(crate) seed: u64,
}

/// Follows a store; never returns.
pub(crate) async fn run(source: Source, deliver: impl Fn(Event), mut connect: impl Connect) {
    let Source { start, mut requests, health, seed } = source;
    let begun = Instant::now();
    let mut desk = Desk::new(start, deliver, Arc::clone(&health), seed, begun);
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30), seed);
    let stores = loop {
        let mut attempt = connect(desk.knowledge.node());
        let result = loop {
            tokio::select! {
                result = &mut attempt => break result,
                Some(request) = requests.recv() => desk.asked(request),
                () = sleep_until(desk.due()) => {}
            }
            desk.step();
        };
        match result {
            Ok(stores) => break stores,
            Err(error) => {
                health.count_error();
                desk.trouble(Origin::Connection, error);
                let wait = sleep(backoff.next());
                tokio::pin!(wait);
                loop {
                    tokio::select! {
                        () = &mut wait => break,
                        Some(request) = requests.recv() => {
                            let is_reread = matches!(request, Request::Reread);
                            desk.asked(request);
                            if is_reread {
                                break;
                            }
                        }
                        () = sleep_until(desk.due()) => {}
                    }
                    desk.step();
                }
            }
        }
    };
    let (tell, mut news) = mpsc::channel(NEWS);
    let (reread, rereads) = watch::channel(0);
    let mut handlers = Vec::new();
    for (place, Followed { collection, handler }) in stores.followed.into_iter().enumerate() {
        let seed = seed.wrapping_add(place as u64 + 1);
        let health = Arc::clone(&health);
        let follower = Follower::new(collection, place, tell.clone(), rereads.clone(), health, seed);
        tokio::spawn(follower.run());
        handlers.push(handler);
    }
    let (steps, mut written) = writer(stores.own_record);
    desk.connected(Connected {
        spelling: stores.spelling,
        handlers,
        steps,
        addresses: stores.addresses,
        reread,
        reports: stores.reports,
    });
    loop {
        desk.step();
        tokio::select! {
            Some((place, told)) = news.recv() => {
                desk.told(place, told);
                // What waits already is handled before anything is delivered.
                while let Ok((place, told)) = news.try_recv() {
                    desk.told(place, told);
                }
            }
            Some(result) = written.recv() => desk.written(result),
            Some(request) = requests.recv() => desk.asked(request),
            () = sleep_until(desk.due()) => {}
        }
    }
}

/// Starts the task that writes this node's record, one step after the other.
fn writer(
    own_record: Option<Box<dyn OwnRecord>>,
) -> (Option<mpsc::UnboundedSender<Step>>, mpsc::UnboundedReceiver<Result<(), StoreError>>) {
    let (done, results) = mpsc::unbounded_channel();
    let Some(mut own_record) = own_record else { return (None, results) };
    let (steps, mut asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(step) = asked.recv().await {
            let result = match step {
                Step::Put(value) => own_record.put(value).await,
                Step::Delete => own_record.delete().await,
                Step::Rest | Step::Wait(_) => continue,
            };
            if done.send(result).is_err() {
                return;
            }
        }
    });
    (Some(steps), results)
}

/// A number that differs between the agents of a fleet.
pub(crate) fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
