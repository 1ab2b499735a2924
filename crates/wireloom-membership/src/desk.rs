//! The desk of a source's thread: takes in news and requests, gives out events and what to write. It decides when the
//! mesh is whole, and when to deliver it.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use tokio::{
    sync::{mpsc::UnboundedSender, watch},
    time::Instant,
};
use wireloom_plan::cluster::Cluster;

use crate::{
    Complaint, Error, Event, Health, Local, Request, Start,
    follow::News,
    knowledge::{Handler, Knowledge},
    kubernetes::report::Report,
    mesh::Mesh,
    publishing::{Publishing, Step},
    record::{self, Spelling},
    store::{StoreError, StoreProblem},
};

/// How long the store may take before the recorded mesh is delivered.
const PATIENCE: Duration = Duration::from_secs(5);

/// Changes that come within this time are delivered together.
const BURST: Duration = Duration::from_millis(20);

/// The longest sleep.
const DAY: Duration = Duration::from_secs(86_400);

/// Where a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// There is no connection yet.
    Connection,
    /// The collection at this place.
    Collection(usize),
    /// What was to be published: no node would read it.
    Refused,
    /// This node's record in the store.
    OwnRecord,
}

/// What there is once there is a connection.
pub(crate) struct Connected {
    pub(crate) spelling: Spelling,
    /// The handlers of the collections, in their order.
    pub(crate) handlers: Vec<Box<dyn Handler>>,
    /// Takes the steps that write this node's record, if it is written here.
    pub(crate) steps: Option<UnboundedSender<Step>>,
    /// The addresses of the store's own machines.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Changes when everything is to be read again.
    pub(crate) reread: watch::Sender<u64>,
    pub(crate) reports: Option<UnboundedSender<Report>>,
}

pub(crate) struct Desk<D> {
    deliver: D,
    health: Arc<Health>,
    pub(crate) knowledge: Knowledge,
    connected: Option<Connected>,
    /// The collections that have been listed.
    listed: BTreeSet<usize>,
    /// The recorded mesh, until it or the store's is delivered; and when it is its turn.
    recorded: Option<(Cluster, Instant)>,
    /// A snapshot is due at this time.
    due: Option<Instant>,
    /// The snapshot is delivered even if it is the same again: it is the first one, or says that a problem is over.
    is_due_anyway: bool,
    is_whole: bool,
    complaints: BTreeSet<Complaint>,
    local: Option<Local>,
    /// What was told of the own record last.
    is_as_published: bool,
    /// Where something is wrong, and what. The last one is what has been said last.
    troubles: Vec<(Origin, StoreError)>,
    /// When the own record is to be looked at again.
    publish: Option<Instant>,
    /// The last report that came before there was a connection.
    report: Option<Report>,
}

impl<D: Fn(Event)> Desk<D> {
    pub(crate) fn new(start: Start, deliver: D, health: Arc<Health>, seed: u64, now: Instant) -> Self {
        let Start { node, recorded } = start;
        let mesh = Mesh::new(recorded.clone());
        let publishing = Publishing::new(Spelling::default(), seed);
        Self {
            deliver,
            health,
            knowledge: Knowledge::new(&node, mesh, publishing, now.into_std()),
            connected: None,
            listed: BTreeSet::new(),
            recorded: recorded.map(|mesh| (mesh, now + PATIENCE)),
            due: None,
            is_due_anyway: false,
            is_whole: false,
            complaints: BTreeSet::new(),
            local: None,
            is_as_published: false,
            troubles: Vec::new(),
            publish: None,
            report: None,
        }
    }

    /// There is a connection now.
    pub(crate) fn connected(&mut self, connected: Connected) {
        self.knowledge.publishing.spell(connected.spelling);
        self.knowledge.mesh.protect(connected.addresses.clone());
        if let (Some(reports), Some(report)) = (&connected.reports, self.report.take()) {
            let _ = reports.send(report);
        }
        self.connected = Some(connected);
        self.well(Origin::Connection);
    }

    /// A follower tells this of the collection at this place.
    pub(crate) fn told(&mut self, place: usize, news: News) {
        let Some(connected) = &mut self.connected else { return };
        self.knowledge.set_time(Instant::now().into_std());
        let handler = &mut connected.handlers[place];
        match news {
            News::Whole(objects) => {
                handler.whole(objects, &mut self.knowledge);
                self.listed.insert(place);
                let mut needed = connected.handlers.iter().enumerate().filter(|(_, it)| it.completes_mesh());
                if !self.is_whole && needed.all(|(place, _)| self.listed.contains(&place)) {
                    self.is_whole = true;
                    self.is_due_anyway = true;
                }
                self.changed();
            }
            News::Change(name, object) => {
                handler.change(&name, object.as_ref(), &mut self.knowledge);
                self.changed();
            }
            News::Trouble(error) => self.trouble(Origin::Collection(place), error),
            News::Well => self.well(Origin::Collection(place)),
        }
    }

    /// This came of the step that was given out last.
    pub(crate) fn written(&mut self, result: Result<(), StoreError>) {
        self.knowledge.publishing.done(result.as_ref().copied(), now());
        match result {
            Ok(()) => self.well(Origin::OwnRecord),
            Err(error) => {
                self.health.count_error();
                self.trouble(Origin::OwnRecord, error);
            }
        }
    }

    /// The agent asks this.
    pub(crate) fn asked(&mut self, request: Request) {
        match request {
            Request::Publish(wanted) => {
                let checked = record::check_name(self.knowledge.node());
                // Nobody has ever read a record with such a name, so that there is nothing to announce.
                let wanted = wanted.filter(|node| node.encrypt || checked.is_ok());
                let checked = wanted.as_ref().map_or(Ok(()), |_| checked);
                let accepted = checked.and_then(|()| self.knowledge.publishing.want(wanted.as_deref()));
                match accepted {
                    Ok(()) => self.well(Origin::Refused),
                    Err(why) => {
                        let operation = "publish this node's record".to_owned();
                        let problem = StoreProblem::Nonsense { why };
                        self.trouble(Origin::Refused, StoreError { operation, problem });
                    }
                }
            }
            Request::Report(report) => match &self.connected {
                Some(Connected { reports: Some(reports), .. }) => {
                    let _ = reports.send(*report);
                }
                Some(_) => {}
                None => self.report = Some(*report),
            },
            Request::Reread => {
                self.knowledge.publishing.hurry();
                if let Some(connected) = &self.connected {
                    connected.reread.send_modify(|times| *times += 1);
                }
            }
        }
    }

    /// Something is wrong. It is delivered once, until all is well there.
    pub(crate) fn trouble(&mut self, origin: Origin, error: StoreError) {
        // By its words: what a store says about when to try again differs each time.
        let words = error.to_string();
        let is_known =
            self.troubles.iter().any(|(other, known)| *other == origin && known.to_string() == words);
        if !is_known {
            self.troubles.push((origin, error.clone()));
        }
        self.note_troubles();
        if !is_known {
            (self.deliver)(Event::Problem(Error::Store(error)));
        }
    }

    /// Nothing is wrong there any more. If that was said last, something else that is still wrong is said again.
    fn well(&mut self, origin: Origin) {
        let Some((last, _)) = self.troubles.last() else { return };
        let was_said_last = *last == origin;
        self.troubles.retain(|(other, _)| *other != origin);
        self.note_troubles();
        match self.troubles.last() {
            None => {
                self.is_due_anyway = true;
                self.changed();
            }
            Some((_, error)) if was_said_last => (self.deliver)(Event::Problem(Error::Store(error.clone()))),
            Some(_) => {}
        }
    }

    fn note_troubles(&self) {
        let of_own_record = |origin| matches!(origin, Origin::OwnRecord | Origin::Refused);
        let unreadable = self.troubles.iter().any(|(origin, _)| !of_own_record(*origin));
        self.health.set_in_trouble(!self.troubles.is_empty(), unreadable);
    }

    fn changed(&mut self) {
        self.due.get_or_insert(Instant::now() + BURST);
    }

    /// When [`Desk::step`] has something to do, if nothing happens before.
    pub(crate) fn due(&self) -> Instant {
        let expires = self.knowledge.mesh.expires().filter(|_| self.is_whole).map(Instant::from_std);
        let recorded = self.recorded.as_ref().map(|(_, due)| *due);
        let due = self.due.filter(|_| self.is_whole);
        let first = [expires, recorded, due, self.publish].into_iter().flatten().min();
        first.unwrap_or_else(|| Instant::now() + DAY)
    }

    /// Delivers and writes what is due.
    pub(crate) fn step(&mut self) {
        if let Some(connected) = &mut self.connected {
            connected.handlers.iter_mut().for_each(|handler| handler.settle(&mut self.knowledge));
        }
        self.publish();
        self.deliver_local();
        if self.is_whole {
            self.deliver_mesh();
        } else if let Some((mesh, _)) = self.recorded.take_if(|(_, due)| *due <= Instant::now()) {
            (self.deliver)(Event::Snapshot(mesh));
        }
    }

    fn publish(&mut self) {
        self.publish = None;
        let Some(Connected { steps: Some(steps), .. }) = &self.connected else { return };
        let had_rival = self.knowledge.publishing.rival().is_some();
        match self.knowledge.publishing.step(now()) {
            Step::Rest => {}
            Step::Wait(due) => self.publish = Some(Instant::from_std(due)),
            step => {
                let _ = steps.send(step);
            }
        }
        let is_rid_of_rival = had_rival && self.knowledge.publishing.rival().is_none();
        self.tell_of_own_record();
        // A write may have reached the store although no answer came back.
        if self.knowledge.publishing.is_settled() {
            self.well(Origin::OwnRecord);
        }
        if is_rid_of_rival {
            // The complaint about it goes with it.
            self.changed();
        }
    }

    /// Tells whether the store has the own record, before the mesh that follows from it.
    fn tell_of_own_record(&mut self) {
        let is_as_published = self.knowledge.publishing.is_published();
        self.health.set_published(is_as_published);
        if is_as_published != self.is_as_published {
            self.is_as_published = is_as_published;
            (self.deliver)(Event::OwnRecord { is_as_published });
            if is_as_published {
                // The agent has taken its own word for what this node is. What the others make of its record counts
                // now.
                self.is_due_anyway = true;
                self.changed();
            }
        }
    }

    fn deliver_local(&mut self) {
        if self.local.as_ref() != self.knowledge.known_local()
            && let Some(local) = self.knowledge.known_local()
        {
            self.local = Some(local.clone());
            (self.deliver)(Event::Local(local.clone()));
        }
    }

    fn deliver_mesh(&mut self) {
        let is_first = self.recorded.take().is_some() || self.is_due_anyway;
        let is_due = self.due.is_some_and(|due| due <= Instant::now());
        let expires = self.knowledge.mesh.expires().is_some_and(|expires| expires <= now());
        if !is_first && !is_due && !expires {
            return;
        }
        self.due = None;
        let is_due_anyway = std::mem::take(&mut self.is_due_anyway);
        let is_another = self.knowledge.mesh.deliver(now()).is_some();
        if is_another || is_due_anyway {
            (self.deliver)(Event::Snapshot(self.knowledge.mesh.delivered().clone()));
        }
        let complaints = self.knowledge.shown_complaints();
        if complaints != self.complaints {
            self.complaints = complaints;
            (self.deliver)(Event::LeftOut(self.complaints.clone()));
        }
    }
}

/// The time by the runtime's clock, which tests can set.
fn now() -> StdInstant {
    Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
    use wireloom_plan::cluster::Node;

    use super::*;
    use crate::store::Object;

    /// A desk that has a connection and the whole of its collections, and what it has written.
    fn whole<D: Fn(Event)>(deliver: D) -> (Desk<D>, UnboundedReceiver<Step>) {
        let start = Start { node: "a".into(), recorded: None };
        let mut desk = Desk::new(start, deliver, Arc::default(), 1, Instant::now());
        let (steps, taken) = unbounded_channel();
        desk.connected(Connected {
            spelling: Spelling::default(),
            handlers: Vec::new(),
            steps: Some(steps),
            addresses: BTreeSet::new(),
            reread: watch::channel(0).0,
            reports: None,
        });
        desk.is_whole = true;
        (desk, taken)
    }

    async fn until_nothing_is_due(desk: &mut Desk<impl Fn(Event)>, limit: Duration) {
        let end = Instant::now() + limit;
        while desk.due() <= end {
            tokio::time::sleep_until(desk.due()).await;
            desk.step();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn before_each_snapshot_it_is_known_whether_the_own_record_is_as_published() {
        let events = Rc::new(RefCell::new(Vec::new()));
        let seen = Rc::clone(&events);
        let deliver = move |event| match event {
            Event::OwnRecord { is_as_published } => seen.borrow_mut().push(format!("{is_as_published}")),
            Event::Snapshot(mesh) => seen.borrow_mut().push(format!("mesh of {}", mesh.nodes.len())),
            _ => {}
        };
        let (mut desk, _taken) = whole(deliver);
        let node = |number| Node { endpoint: Some(([192, 0, 2, number], 7).into()), ..Node::default() };
        let shows = |desk: &mut Desk<_>, number| {
            let value = record::write(&node(number), Spelling::default());
            desk.knowledge.record("a", Some(&Object { value, born: 1, uid: String::new() }));
            desk.changed();
        };
        let second = Duration::from_secs(1);
        // The record is there before the agent has said anything, as after a restart.
        shows(&mut desk, 1);
        until_nothing_is_due(&mut desk, second).await;
        desk.asked(Request::Publish(Some(Box::new(node(1)))));
        desk.step();
        until_nothing_is_due(&mut desk, second).await;
        assert_eq!(
            *events.borrow(),
            ["mesh of 1", "true", "mesh of 1"],
            "once more, although nothing changed"
        );
        events.borrow_mut().clear();
        shows(&mut desk, 2);
        until_nothing_is_due(&mut desk, second).await;
        shows(&mut desk, 1);
        until_nothing_is_due(&mut desk, second).await;
        assert_eq!(*events.borrow(), ["false", "mesh of 1", "true", "mesh of 1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_still_wrong_is_said_after_what_is_over() {
        let said = Rc::new(RefCell::new(Vec::new()));
        let seen = Rc::clone(&said);
        let deliver = move |event| {
            if let Event::Problem(error) = event {
                seen.borrow_mut().push(error.to_string());
            }
        };
        let health: Arc<Health> = Arc::default();
        let start = Start { node: "a".into(), recorded: None };
        let mut desk = Desk::new(start, deliver, Arc::clone(&health), 1, Instant::now());
        let wide = Node { workloads: ["10.0.0.0/7".parse().unwrap()].into(), ..Node::default() };
        desk.asked(Request::Publish(Some(Box::new(wide))));
        let outage = || StoreError {
            operation: "write".into(),
            problem: StoreProblem::Unavailable { why: "connection refused".into(), retry_after: None },
        };
        desk.trouble(Origin::Collection(0), outage());
        desk.written(Err(outage()));
        desk.well(Origin::Collection(0));
        assert_eq!(said.borrow().len(), 3, "the last one is still true");
        desk.written(Ok(()));
        let said: Vec<String> = said.borrow().clone();
        assert_eq!((said.len(), &said[3]), (4, &said[0]), "the record is still refused");
        desk.well(Origin::OwnRecord);
        assert!(health.is_in_trouble());
        desk.asked(Request::Publish(Some(Box::default())));
        assert!(!health.is_in_trouble());
    }

    #[tokio::test(start_paused = true)]
    async fn the_complaint_about_a_rival_goes_by_itself() {
        let shown = Rc::new(RefCell::new(BTreeSet::new()));
        let seen = Rc::clone(&shown);
        let deliver = move |event| {
            if let Event::LeftOut(complaints) = event {
                *seen.borrow_mut() = complaints;
            }
        };
        let (mut desk, _taken) = whole(deliver);
        let of = |number| Node { endpoint: Some(([192, 0, 2, number], 7).into()), ..Node::default() };
        desk.asked(Request::Publish(Some(Box::new(of(1)))));
        for number in [1, 2].repeat(4).into_iter().chain([1]) {
            let value = record::write(&of(number), Spelling::default());
            desk.knowledge.record("a", Some(&Object { value, born: 1, uid: String::new() }));
        }
        desk.changed();
        desk.step();
        until_nothing_is_due(&mut desk, Duration::from_secs(60)).await;
        assert_eq!(shown.borrow().len(), 1);
        until_nothing_is_due(&mut desk, Duration::from_secs(3600)).await;
        assert!(shown.borrow().is_empty(), "nothing else happened");
    }

    #[tokio::test(start_paused = true)]
    async fn the_recorded_mesh_does_not_say_that_the_store_is_well() {
        let events = Rc::new(RefCell::new(Vec::new()));
        let seen = Rc::clone(&events);
        let start = Start { node: "a".into(), recorded: Some(Cluster::default()) };
        let health: Arc<Health> = Arc::default();
        let deliver = move |event| seen.borrow_mut().push(event);
        let mut desk = Desk::new(start, deliver, Arc::clone(&health), 1, Instant::now());
        let why = "connection refused".into();
        let problem = StoreProblem::Unavailable { why, retry_after: None };
        desk.trouble(Origin::Connection, StoreError { operation: "connect".into(), problem });
        tokio::time::advance(PATIENCE).await;
        desk.step();
        assert!(matches!(events.borrow()[..], [Event::Problem(_), Event::Snapshot(_)]));
        assert!(health.is_in_trouble());
        desk.well(Origin::Collection(0));
        assert!(health.is_in_trouble(), "something else is well");
        desk.well(Origin::Connection);
        assert!(!health.is_in_trouble());
    }
}
