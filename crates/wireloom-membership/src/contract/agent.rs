//! An agent that follows a store and remembers what it was told.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use wireloom_plan::cluster::{Cluster, Node};

use super::LIMIT;
use crate::{
    Event, Health, Local, Request, Start,
    source::{self, Connect, Source},
};

pub(crate) struct Agent {
    /// The last snapshot.
    pub(crate) mesh: Option<Cluster>,
    /// How many snapshots there have been.
    pub(crate) snapshots: u32,
    /// All problems, in order.
    pub(crate) problems: Vec<String>,
    /// What is left out now.
    pub(crate) complaints: Vec<String>,
    pub(crate) local: Option<Local>,
    pub(crate) health: Arc<Health>,
    events: mpsc::UnboundedReceiver<Event>,
    requests: mpsc::UnboundedSender<Request>,
    task: JoinHandle<()>,
}

impl Agent {
    /// Follows the store in a task.
    pub(crate) fn start(node: &str, connect: Box<dyn Connect + Send>, recorded: Option<Cluster>) -> Self {
        let (tell, events) = mpsc::unbounded_channel();
        let (requests, asked) = mpsc::unbounded_channel();
        let health: Arc<Health> = Arc::default();
        let start = Start { node: node.to_owned(), recorded };
        let source = Source { start, requests: asked, health: Arc::clone(&health), seed: 7 };
        let deliver = move |event| {
            let _ = tell.send(event);
        };
        let task = tokio::spawn(source::run(source, deliver, connect));
        Self {
            mesh: None,
            snapshots: 0,
            problems: Vec::new(),
            complaints: Vec::new(),
            local: None,
            health,
            events,
            requests,
            task,
        }
    }

    pub(crate) fn publish(&self, record: Option<Node>) {
        self.requests.send(Request::Publish(record.map(Box::new))).unwrap();
    }

    pub(crate) fn reread(&self) {
        self.requests.send(Request::Reread).unwrap();
    }

    /// The nodes of the last snapshot.
    pub(crate) fn nodes(&self) -> BTreeMap<String, Node> {
        self.mesh.as_ref().map(|mesh| mesh.nodes.clone()).unwrap_or_default()
    }

    /// Waits until this is so.
    pub(crate) async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let limit = Instant::now() + LIMIT;
        self.hear();
        while !is_so(self) {
            match timeout_at(limit, self.events.recv()).await {
                Ok(Some(event)) => self.take(event),
                Ok(None) => panic!("the source has ended, while waiting for {what}"),
                Err(_) => panic!(
                    "not told in time of {what}: {:?}, left out {:?}, problems {:?}",
                    self.mesh, self.complaints, self.problems
                ),
            }
        }
    }

    /// Takes in what has been delivered so far.
    pub(crate) fn hear(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            self.take(event);
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Snapshot(mesh) => {
                self.mesh = Some(mesh);
                self.snapshots += 1;
            }
            Event::Problem(error) => self.problems.push(error.to_string()),
            Event::LeftOut(complaints) => {
                self.complaints = complaints.iter().map(ToString::to_string).collect();
            }
            Event::Local(local) => self.local = Some(local),
            Event::OwnRecord { .. } => {}
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}
