//! What Calico's objects, and the annotations of Nodes, mean for the mesh and for this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;
use tokio::sync::mpsc::UnboundedSender;

use super::{
    affinity::{Block, blocks_of},
    annotations::Annotations,
    felix::{guests, too_many},
    key_annotation::News,
    own::Blocks,
    pool::pools,
};
use crate::{
    knowledge::{Handler, Knowledge},
    kubernetes::settings::Workloads,
    store::Object,
};

/// What several collections say about this node, put together: its blocks, and its Node's `podCIDRs` and annotations.
/// Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Own(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    choice: Workloads,
    blocks: Blocks,
    pod_cidrs: Option<BTreeSet<IpNet>>,
    annotations: Annotations,
}

impl Own {
    pub(crate) fn new(choice: Workloads) -> Self {
        let (blocks, annotations) = (Blocks::default(), Annotations::default());
        Self(Arc::new(Mutex::new(State { choice, blocks, pod_cidrs: None, annotations })))
    }

    /// This node's Node has these `podCIDRs` and annotations. Without any, it takes none back that it had.
    pub(crate) fn node(
        &self,
        pod_cidrs: &BTreeSet<IpNet>,
        annotations: &BTreeMap<String, String>,
        knowledge: &mut Knowledge,
    ) {
        let mut state = self.lock();
        if !pod_cidrs.is_empty() {
            state.pod_cidrs = Some(pod_cidrs.clone());
        }
        state.annotations = annotations.into();
        state.tell(knowledge);
    }

    fn blocks(&self, blocks: Blocks, knowledge: &mut Knowledge) {
        let mut state = self.lock();
        state.blocks = state.blocks.then(blocks);
        state.tell(knowledge);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tell(&self, knowledge: &mut Knowledge) {
        let workloads = self.blocks.workloads(self.choice, self.pod_cidrs.clone(), &self.annotations);
        knowledge.local(|local| {
            // Without workloads, what it had stays with it.
            local.workloads = workloads.or(local.workloads.take());
            local.tunnel_addresses = match self.choice {
                Workloads::PodCidrs => BTreeSet::new(),
                Workloads::Auto | Workloads::Calico => self.annotations.tunnel_addresses.clone(),
            };
        });
    }
}

/// What the objects of a collection mean together.
trait Meaning: Send {
    fn tell(&self, objects: &BTreeMap<String, Object>, knowledge: &mut Knowledge);

    /// [`Handler::completes_mesh`].
    fn completes_mesh(&self) -> bool {
        true
    }
}

/// The handler of a collection of which each change matters as a whole: there are few objects.
#[derive(Debug, Default)]
pub(crate) struct All<M> {
    objects: BTreeMap<String, Object>,
    meaning: M,
    /// Objects have changed, and what they mean now has not been told.
    is_untold: bool,
}

impl<M: Meaning> Handler for All<M> {
    fn whole(&mut self, objects: BTreeMap<String, Object>, knowledge: &mut Knowledge) {
        self.objects = objects;
        self.meaning.tell(&self.objects, knowledge);
    }

    fn change(&mut self, name: &str, object: Option<&Object>, _knowledge: &mut Knowledge) {
        match object {
            Some(object) => self.objects.insert(name.to_owned(), object.clone()),
            None => self.objects.remove(name),
        };
        self.is_untold = true;
    }

    fn settle(&mut self, knowledge: &mut Knowledge) {
        if std::mem::take(&mut self.is_untold) {
            self.meaning.tell(&self.objects, knowledge);
        }
    }

    fn completes_mesh(&self) -> bool {
        self.meaning.completes_mesh()
    }
}

/// What IPPools mean.
#[derive(Debug, Default)]
pub(crate) struct Pools;

impl Meaning for Pools {
    fn tell(&self, objects: &BTreeMap<String, Object>, knowledge: &mut Knowledge) {
        let (pools, complaints) = pools(objects);
        knowledge.allow_borrowing(!pools.is_empty());
        knowledge.pools(&pools);
        knowledge.complain("IPPools", complaints);
    }
}

/// What BlockAffinities mean.
#[derive(Debug)]
pub(crate) struct Affinities {
    own: Own,
    felix: Felix,
}

/// Whether keys are shared with Felix.
#[derive(Debug)]
pub(super) enum Felix {
    Off,
    /// They should be, but there are so many nodes.
    TooMany(usize),
    /// The blocks of all hosts are needed here.
    On(FelixNodes),
}

impl All<Affinities> {
    pub(super) fn new(own: Own, felix: Felix) -> Self {
        Self { objects: BTreeMap::new(), meaning: Affinities { own, felix }, is_untold: false }
    }
}

impl Meaning for Affinities {
    fn tell(&self, objects: &BTreeMap<String, Object>, knowledge: &mut Knowledge) {
        let (own, complaints) = blocks_of(Some(knowledge.node()), objects);
        self.own.blocks(Blocks::new(&own, !objects.is_empty()), knowledge);
        knowledge.complain("BlockAffinities", complaints);
        match &self.felix {
            Felix::Off => {}
            Felix::TooMany(nodes) => knowledge.complain("Felix", [too_many(*nodes)].into()),
            Felix::On(felix) => felix.blocks(blocks_of(None, objects).0, knowledge),
        }
    }

    fn completes_mesh(&self) -> bool {
        matches!(self.felix, Felix::On(_))
    }
}

/// The nodes that Felix encrypts for, put together from the annotations of all Nodes and the blocks of all hosts. It is
/// the handler of the Nodes, too. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct FelixNodes(Arc<Mutex<FelixState>>);

#[derive(Debug)]
struct FelixState {
    annotations: BTreeMap<String, Annotations>,
    blocks: BTreeSet<Block>,
    /// The nodes that were told last.
    in_force: BTreeSet<String>,
    /// Hears of the key in this node's own annotations.
    own_key: UnboundedSender<News>,
}

impl FelixNodes {
    pub(super) fn new(own_key: UnboundedSender<News>) -> Self {
        let (annotations, blocks, in_force) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Self(Arc::new(Mutex::new(FelixState { annotations, blocks, in_force, own_key })))
    }

    fn blocks(&self, blocks: BTreeSet<Block>, knowledge: &mut Knowledge) {
        let mut state = self.lock();
        state.blocks = blocks;
        state.tell(knowledge);
    }

    fn lock(&self) -> MutexGuard<'_, FelixState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FelixState {
    fn tell(&mut self, knowledge: &mut Knowledge) {
        let (mut nodes, complaints) = guests(&self.annotations, &self.blocks, &self.in_force);
        // What this node is, it says in a record.
        nodes.remove(knowledge.node());
        self.in_force = nodes.keys().cloned().collect();
        knowledge.guests(nodes);
        knowledge.complain("Felix", complaints);
    }

    fn tell_own_key(&self, node: &str) {
        if let Some(annotations) = self.annotations.get(node) {
            // Nobody listens when the source ends.
            let _ = self.own_key.send(News::Annotation(annotations.public_key));
        }
    }
}

impl Handler for FelixNodes {
    fn whole(&mut self, objects: BTreeMap<String, Object>, knowledge: &mut Knowledge) {
        let mut state = self.lock();
        state.annotations =
            objects.into_iter().map(|(name, object)| (name, Annotations::of(&object.value))).collect();
        state.tell_own_key(knowledge.node());
        state.tell(knowledge);
    }

    fn change(&mut self, name: &str, object: Option<&Object>, knowledge: &mut Knowledge) {
        let mut state = self.lock();
        let annotations = object.map(|object| Annotations::of(&object.value));
        // Kubelets touch their Nodes every few minutes.
        if state.annotations.get(name) == annotations.as_ref() {
            return;
        }
        match annotations {
            Some(annotations) => state.annotations.insert(name.to_owned(), annotations),
            None => state.annotations.remove(name),
        };
        if name == knowledge.node() {
            state.tell_own_key(name);
        }
        state.tell(knowledge);
    }
}
