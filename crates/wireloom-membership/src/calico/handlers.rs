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
    kubernetes::Workloads,
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

/// The objects of a collection, of which each change matters as a whole: there are few.
#[derive(Debug, Default)]
struct All(BTreeMap<String, Object>);

impl All {
    fn change(&mut self, name: &str, object: Option<&Object>) {
        match object {
            Some(object) => self.0.insert(name.to_owned(), object.clone()),
            None => self.0.remove(name),
        };
    }
}

/// The handler of IPPools.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    objects: All,
}

impl Pools {
    fn tell(&self, knowledge: &mut Knowledge) {
        let (pools, complaints) = pools(&self.objects.0);
        knowledge.allow_borrowing(!pools.is_empty());
        knowledge.pools(&pools);
        knowledge.complain("IPPools", complaints);
    }
}

impl Handler for Pools {
    fn whole(&mut self, objects: BTreeMap<String, Object>, knowledge: &mut Knowledge) {
        self.objects.0 = objects;
        self.tell(knowledge);
    }

    fn change(&mut self, name: &str, object: Option<&Object>, knowledge: &mut Knowledge) {
        self.objects.change(name, object);
        self.tell(knowledge);
    }
}

/// The handler of BlockAffinities.
#[derive(Debug)]
pub(crate) struct Affinities {
    objects: All,
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

impl Affinities {
    pub(super) fn new(own: Own, felix: Felix) -> Self {
        Self { objects: All::default(), own, felix }
    }

    fn tell(&self, knowledge: &mut Knowledge) {
        let (own, complaints) = blocks_of(Some(knowledge.node()), &self.objects.0);
        let any = !self.objects.0.is_empty();
        self.own.blocks(Blocks::new(&own, any), knowledge);
        knowledge.complain("BlockAffinities", complaints);
        match &self.felix {
            Felix::Off => {}
            Felix::TooMany(nodes) => knowledge.complain("Felix", [too_many(*nodes)].into()),
            Felix::On(felix) => felix.blocks(blocks_of(None, &self.objects.0).0, knowledge),
        }
    }
}

impl Handler for Affinities {
    fn whole(&mut self, objects: BTreeMap<String, Object>, knowledge: &mut Knowledge) {
        self.objects.0 = objects;
        self.tell(knowledge);
    }

    fn change(&mut self, name: &str, object: Option<&Object>, knowledge: &mut Knowledge) {
        self.objects.change(name, object);
        self.tell(knowledge);
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
