//! Joins this node's own record into the agent's loop, where the membership source can be written: composes it,
//! publishes it whenever it changes, and takes it back when the operator has this node leave the mesh.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use wireloom_kernel::state::{Identity, Left, StateDir};
use wireloom_membership::{Complaint, Following, Local, Source};
use wireloom_plan::{
    cluster::{Cluster, Node},
    leaving::{Leaving, Phase},
    own_member::assert_own,
    own_record::{Found, NoWorkloads, Steady, compose},
    settings::UnprovenPeers,
    warning::Warning,
};

use super::{Agent, log_error};
use crate::run_file::{Complained, unix_time};

/// How often the addresses of the machine are read. A change is usually announced, and read at once then.
const INTERVAL: Duration = Duration::from_secs(30);

/// The least time between two readings: the default routes of a router are among a million others.
const LEAST: Duration = Duration::from_secs(5);

/// How often the state directory is asked whether this node is to be in the mesh. `wireloom leave` cannot signal an
/// agent in another container.
const ASK: Duration = Duration::from_secs(1);

/// How long the store may take to show a record that was published.
const LATE: Duration = Duration::from_secs(10);

/// How many records that are left out are logged one by one.
const LOGGED: usize = 20;

/// What is published and what it is made of.
pub(super) struct Publishing {
    following: Following,
    pub(super) found: Found,
    /// The source has said what it knows of this node.
    is_told: bool,
    /// The snapshots that come now were made of this node's record as it was published.
    pub(super) is_as_published: bool,
    steady: Steady,
    /// When the addresses of the machine were read last.
    read: Option<Instant>,
    /// They may have changed since.
    is_news: bool,
    /// What was published last; inside, `None` for no record.
    published: Option<Option<Node>>,
    /// The store has had what was published last.
    shown: bool,
    /// When it was handed over.
    handed_over: Option<Instant>,
    /// The last record that there was to publish.
    record: Option<Node>,
    leaving: Leaving,
    /// When the state directory was last asked whether this node is to leave.
    asked: Option<Instant>,
}

impl Publishing {
    /// Starts with what an earlier agent recorded.
    pub(super) fn new(following: Following, state: &StateDir) -> anyhow::Result<Self> {
        let phase = match state.left()? {
            None => Phase::Member,
            Some(Left { gone: false }) => Phase::Announcing,
            Some(Left { gone: true }) => Phase::Out,
        };
        Ok(Self {
            following,
            found: Found::default(),
            is_told: false,
            is_as_published: false,
            steady: Steady::default(),
            read: None,
            is_news: false,
            published: None,
            shown: false,
            handed_over: None,
            record: None,
            leaving: Leaving::new(phase),
            asked: None,
        })
    }

    /// Whether this node's record is published.
    pub(super) fn is_on(&self) -> bool {
        self.following.publishes()
    }

    /// Whether this node is leaving the mesh and its peers have gone direct, or it has left.
    pub(super) fn is_going(&self) -> bool {
        matches!(self.leaving.phase(), Phase::Removing | Phase::Out)
    }

    /// Whether there has been a record to publish, or one to remove. A node that nobody has given workloads has none.
    pub(super) fn has_begun(&self) -> bool {
        self.record.is_some() || self.published.is_some()
    }

    /// The source that is followed.
    pub(super) fn following(&self) -> &Following {
        &self.following
    }

    /// The addresses of the machine may have changed.
    pub(super) fn note_change(&mut self) {
        self.is_news = true;
    }

    /// When the state directory is to be asked again. Before the first mesh nothing is asked, and nothing is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.asked.filter(|_| self.is_on()).map(|asked| asked + ASK)
    }
}

impl Agent {
    /// Takes what the source knows of this node.
    pub(super) fn take_local(&mut self, local: Local) {
        let found = &mut self.publishing.found;
        found.workloads = local.workloads;
        found.reached_at = local.addresses;
        found.tunnel_addresses = local.tunnel_addresses;
        self.publishing.is_told = true;
    }

    /// Composes this node's record, and publishes it if it is another one.
    pub(super) fn publish(&mut self) {
        // Before the first mesh its pools are not known, and with them which addresses matter.
        if !self.publishing.is_on() || self.proving.cluster().is_none() {
            return;
        }
        self.read_addresses();
        self.read_left();
        self.go_on_leaving();
        let phase = self.publishing.leaving.phase();
        let Publishing { found, .. } = &mut self.publishing;
        if let Some(mesh) = self.proving.cluster()
            && mesh.pools != found.pools
        {
            found.pools.clone_from(&mesh.pools);
        }
        self.note_missing_pools();
        // Without the pools, the first record would lack what is borrowed, and take it from where it is.
        if self.proving.cluster().is_none() && phase == Phase::Member {
            return;
        }
        self.read_borrowed();
        let found = &self.publishing.found;
        let public_key = self.reconciler.public_key();
        let port = self.config.settings.listen_port;
        let encrypts = phase == Phase::Member;
        let composed = compose(&self.config.declared, found, public_key, port, encrypts);
        self.report.lacks_workloads = self.lacks_workloads(&composed);
        let record = match composed {
            Ok(record) => record,
            // What it had stays with it: the source knows this node no more, and may do so again.
            Err(NoWorkloads) => match self.publishing.record.take() {
                Some(record) => Node { public_key: Some(public_key), encrypt: encrypts, ..record },
                None if phase == Phase::Member || !self.publishing.is_told => return,
                None => return self.hand_over(None),
            },
        };
        self.publishing.record = Some(record.clone());
        match phase {
            Phase::Member | Phase::Announcing => self.hand_over(Some(record)),
            Phase::Removing | Phase::Out => self.hand_over(None),
        }
    }

    /// Notes, and logs when that begins, that Kubernetes has no pools for `"reject"`.
    fn note_missing_pools(&mut self) {
        let rejects = self.config.settings.unproven_peers == UnprovenPeers::Reject;
        let of_kubernetes = matches!(self.config.membership, Source::Kubernetes(_));
        let lacks = rejects && of_kubernetes && self.publishing.found.pools.is_empty();
        if lacks && !self.report.rejects_without_pools {
            tracing::warn!("{}", Warning::RejectWithoutPools);
        }
        self.report.rejects_without_pools = lacks;
    }

    /// Whether nobody has given this node workloads although the source has spoken. Logs when that begins.
    fn lacks_workloads(&self, composed: &Result<Node, NoWorkloads>) -> bool {
        let lacks = composed.is_err() && self.publishing.is_told;
        if lacks && !self.report.lacks_workloads {
            tracing::warn!("{}", Warning::NoOwnWorkloads);
        }
        lacks
    }

    fn hand_over(&mut self, record: Option<Node>) {
        if self.publishing.published.as_ref() == Some(&record) {
            return;
        }
        if let Some(public_key) = record.as_ref().and_then(|record| record.public_key) {
            let node = self.config.settings.node.clone();
            let identity = Identity { node, public_key };
            // A key of which nobody would know its name is not published.
            if let Err(error) = self.state.set_identity(&identity) {
                let text =
                    format!("cannot record this node's name in {}: {error}", self.state.path().display());
                if self.report.membership_error.as_ref().is_none_or(|told| !told.starts_with(&text)) {
                    let text = log_error(&text, "its record is not published");
                    self.report.membership_error = Some(text);
                }
                return;
            }
        }
        match &record {
            Some(record) => tracing::info!(
                "publishing this node's record: {} workloads, endpoint {}",
                record.workloads.len(),
                match (&record.endpoint, &record.endpoint_name) {
                    (_, Some(name)) => name.to_string(),
                    (Some(address), None) => address.to_string(),
                    (None, None) => "none".to_owned(),
                }
            ),
            None => tracing::info!("this node's record is to be removed"),
        }
        self.publishing.following.publish(record.clone());
        self.publishing.published = Some(record);
        self.publishing.shown = false;
        self.publishing.handed_over = Some(Instant::now());
    }

    /// Reads the addresses of the machine if it is time to.
    fn read_addresses(&mut self) {
        let Publishing { read, is_news, .. } = &self.publishing;
        let rested = read.is_none_or(|read| read.elapsed() >= if *is_news { LEAST } else { INTERVAL });
        if !rested {
            return;
        }
        let now = Instant::now();
        self.publishing.read = Some(now);
        self.publishing.is_news = false;
        match self.reconciler.kernel_mut().host_addresses() {
            Ok(found) => self.publishing.found.host = self.publishing.steady.look(found, now - self.started),
            Err(error) => tracing::warn!("{error}; the addresses in this node's record stay as they are"),
        }
    }

    /// Reads whether the operator wants this node out of the mesh, if it is time to.
    fn read_left(&mut self) {
        if self.publishing.asked.is_some_and(|asked| asked.elapsed() < ASK) {
            return;
        }
        self.publishing.asked = Some(Instant::now());
        match self.state.left() {
            Ok(left) => {
                let before = self.publishing.leaving.phase();
                self.publishing.leaving.set(left.is_some());
                let now = self.publishing.leaving.phase();
                match (before, now) {
                    (Phase::Member, Phase::Announcing) => tracing::info!("this node leaves the mesh"),
                    (_, Phase::Member) if before != now => tracing::info!("this node joins the mesh again"),
                    _ => {}
                }
            }
            Err(error) => tracing::error!("{error}"),
        }
    }

    fn go_on_leaving(&mut self) {
        let is_published =
            self.publishing.published.is_some() && self.publishing.following.health().is_published();
        let has_record = self.publishing.record.is_some() || self.publishing.published.is_none();
        let now = self.started.elapsed();
        let is_new = self.publishing.leaving.go_on(is_published, has_record, now);
        let phase = self.publishing.leaving.phase();
        if is_new && self.publishing.is_going() {
            // How this node is concerns nobody any more. Its agent may end before the next examination.
            self.tell_of_leaving();
        }
        if is_new && phase == Phase::Out {
            tracing::info!("this node has left the mesh; its traffic is direct");
            // Unless it is to join again already.
            let wanted = matches!(self.state.left(), Ok(Some(_)));
            if wanted && let Err(error) = self.state.set_left(Some(Left { gone: true })) {
                tracing::warn!("cannot record that this node has left the mesh: {error}");
            }
        }
        self.note_foreign_record(is_published);
        self.report.is_published = is_published && phase == Phase::Member;
        self.report.left = match phase {
            Phase::Member => None,
            Phase::Announcing | Phase::Removing => Some(false),
            Phase::Out => Some(true),
        };
    }

    /// Puts what this node says of itself into a mesh from the store.
    ///
    /// Of one that has left there is no record any more, and without one there would be no plan to be direct by. Not
    /// before: as long as the store has not taken the announcement, the peers expect this node to encrypt. While it is
    /// a member and the store does not have its record as published, it goes by its own word: somebody else may have
    /// changed the record.
    pub(super) fn with_own_record(&self, mut mesh: Cluster) -> Cluster {
        if !self.publishing.is_on() {
            return mesh;
        }
        let own = &self.config.settings.node;
        let in_force = self.mesh_before().and_then(|mesh| mesh.nodes.get(own));
        let record = self.publishing.record.as_ref();
        match self.publishing.leaving.phase() {
            // What the readers of the store make of it holds for this node, too.
            Phase::Member if self.publishing.is_as_published => {}
            Phase::Member => assert_own(&mut mesh, own, record, in_force),
            Phase::Announcing => {}
            Phase::Removing | Phase::Out => {
                let known = mesh.nodes.get(own).or(record).or(in_force);
                let record = Node { encrypt: false, ..known.cloned().unwrap_or_default() };
                mesh.nodes.insert(own.clone(), record);
            }
        }
        mesh
    }

    /// Notes, and logs when that begins, that the store does not have this node's record as it was published.
    fn note_foreign_record(&mut self, is_published: bool) {
        let Publishing { published, leaving, shown, handed_over, .. } = &mut self.publishing;
        let is_member = leaving.phase() == Phase::Member && matches!(published, Some(Some(_)));
        // What the store says in the first moment is about the record before.
        *shown |= is_published && handed_over.is_some_and(|at| at.elapsed() >= ASK);
        // The store may need a moment for a new record, or say itself what is wrong with it.
        let is_late =
            handed_over.is_some_and(|at| at.elapsed() >= LATE) && self.report.membership_error.is_none();
        let is_foreign = is_member && !is_published && (*shown || is_late);
        match (is_foreign, self.report.unpublished_since) {
            (true, None) => {
                let since = unix_time();
                self.report.unpublished_since = Some(since);
                tracing::warn!("{}", Warning::RecordNotAsPublished { since });
            }
            (false, Some(_)) => {
                self.report.unpublished_since = None;
                tracing::info!("the store has this node's record as it was published again");
            }
            _ => {}
        }
    }

    /// Reports which records of the store are left out, in the log only those that are new.
    pub(super) fn take_complaints(&mut self, complaints: BTreeSet<Complaint>) {
        let left_out: BTreeSet<Complained> =
            complaints.into_iter().map(|Complaint { record, what }| Complained { record, what }).collect();
        let new: Vec<_> = left_out.difference(&self.report.left_out).collect();
        new.iter().take(LOGGED).for_each(|complaint| tracing::warn!("{}", complaint.warning()));
        if let Some(more @ 1..) = new.len().checked_sub(LOGGED) {
            tracing::warn!("and {more} more records are left out, in whole or in part");
        }
        self.report.left_out = left_out;
    }
}
