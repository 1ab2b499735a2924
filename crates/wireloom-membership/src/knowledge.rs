//! What a source knows, and the handlers that tell it: they know what the objects of a collection mean.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use ipnet::IpNet;
use wireloom_plan::cluster::Node;
use wireloom_types::PublicKey;

use crate::{Complaint, Local, mesh::Mesh, publishing::Publishing, store::Object};

/// How many complaints of one origin are shown.
const SHOWN_MAX: usize = 20;

/// What the objects of one collection mean. It is told of every object, and tells the source in the source's words
/// (each method of [`Knowledge`] may be called as often as one likes: what does not change has no effect).
pub(crate) trait Handler: Send {
    /// The whole collection: at the start, and whenever its changes could not be followed. What it lacks is gone.
    fn whole(&mut self, objects: BTreeMap<String, Object>, knowledge: &mut Knowledge);

    /// An object is new or another one; `None`: it is gone.
    fn change(&mut self, name: &str, object: Option<&Object>, knowledge: &mut Knowledge);

    /// All changes that have come so far have been told: what takes long to put together is told now.
    fn settle(&mut self, _knowledge: &mut Knowledge) {}

    /// Whether the mesh is whole only once this collection has been listed. A collection that says something about this
    /// node alone need not hold up the others.
    fn completes_mesh(&self) -> bool {
        true
    }
}

/// What a source knows: the mesh, what concerns this node, and its own record.
#[derive(Debug)]
pub(crate) struct Knowledge {
    /// The name of this node.
    node: String,
    pub(crate) mesh: Mesh,
    pub(crate) publishing: Publishing,
    local: Option<Local>,
    /// What handlers complain about, each under a name of its own.
    complaints: BTreeMap<&'static str, BTreeSet<Complaint>>,
    /// The time of the call that is being handled.
    now: Instant,
}

impl Knowledge {
    pub(crate) fn new(node: &str, mesh: Mesh, publishing: Publishing, now: Instant) -> Self {
        Self { node: node.to_owned(), mesh, publishing, local: None, complaints: BTreeMap::new(), now }
    }

    pub(crate) fn set_time(&mut self, now: Instant) {
        self.now = now;
    }

    /// The name of this node.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// All nodes' records, by the nodes' names.
    pub(crate) fn records(&mut self, objects: BTreeMap<String, Object>) {
        self.publishing.show(objects.get(&self.node));
        self.mesh.records(objects, self.now);
    }

    /// The record of the node of this name is new or another one, or is gone.
    pub(crate) fn record(&mut self, name: &str, object: Option<&Object>) {
        if name == self.node {
            self.publishing.show(object);
        }
        self.mesh.record(name, object, self.now);
    }

    /// Nodes that are known otherwise than by a record, such as Felix's by their annotations: all of them. They are in
    /// force where there is no record of that name, and go at once when they are no longer among them.
    pub(crate) fn guests(&mut self, nodes: BTreeMap<String, Node>) {
        self.mesh.guests(nodes);
    }

    /// All pools.
    pub(crate) fn pools(&mut self, pools: &BTreeSet<IpNet>) {
        self.mesh.pools(pools, self.now);
    }

    /// All pools, by this node's own settings.
    pub(crate) fn declare_pools(&mut self, pools: &BTreeSet<IpNet>) {
        self.mesh.declare_pools(pools, self.now);
    }

    /// The names of the nodes that claimed keys first, where the store says so: all of them.
    pub(crate) fn key_claims(&mut self, claims: BTreeMap<PublicKey, String>) {
        self.mesh.key_claims(claims);
    }

    /// Whether a single address may lie inside another node's block (with Calico, inside a pool).
    pub(crate) fn allow_borrowing(&mut self, allowed: bool) {
        self.mesh.allow_borrowing(allowed);
    }

    /// Changes what is known about this node. `Event::Local` follows if it is another thing then, or the first one.
    pub(crate) fn local(&mut self, change: impl FnOnce(&mut Local)) {
        change(self.local.get_or_insert_default());
    }

    /// What is left out of what a handler read: all of it, each time, under a name of the handler's own.
    pub(crate) fn complain(&mut self, of: &'static str, complaints: BTreeSet<Complaint>) {
        self.complaints.insert(of, complaints);
    }

    /// This node's record must be written again although it is as it was wanted: something else about its object
    /// changed, such as the Node that owns it.
    pub(crate) fn write_again(&mut self) {
        self.publishing.write_again();
    }

    pub(crate) fn known_local(&self) -> Option<&Local> {
        self.local.as_ref()
    }

    /// What is left out, for people: of the mesh and of each handler, a bounded number of complaints. That another
    /// machine has this node's name is said with them, since they last as long as their reasons.
    pub(crate) fn shown_complaints(&self) -> BTreeSet<Complaint> {
        let mesh = self.mesh.complaints();
        let rival = self.publishing.rival().map(|rival| Complaint {
            record: self.node.clone(),
            what: format!("another machine publishes it, too, {rival}: give each machine a name of its own"),
        });
        let of_mesh_and_handlers = [&mesh].into_iter().chain(self.complaints.values());
        rival.into_iter().chain(of_mesh_and_handlers.flat_map(|all| few(all, &self.node))).collect()
    }

    /// All complaints of handlers.
    #[cfg(test)]
    pub(crate) fn complaints(&self) -> impl Iterator<Item = &Complaint> {
        self.complaints.values().flatten()
    }
}

/// The first of these complaints, those about this node before all others, and how many more there are: one credential
/// can be enough to make thousands.
fn few(all: &BTreeSet<Complaint>, node: &str) -> Vec<Complaint> {
    let (ours, others): (Vec<_>, Vec<_>) = all.iter().partition(|complaint| complaint.record == node);
    let mut sorted = ours.into_iter().chain(others);
    let mut shown: Vec<Complaint> = sorted.by_ref().take(SHOWN_MAX).cloned().collect();
    if let Some(next) = sorted.next() {
        let more = sorted.count() + 1;
        let what =
            format!("something is wrong with it, too: there are {more} more complaints than are shown here");
        shown.push(Complaint { record: next.record.clone(), what });
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{self, Spelling};

    #[test]
    fn few_complaints_are_shown_and_those_about_this_node_first() {
        let complaint = |number: u32| Complaint { record: format!("n{number:04}"), what: "?".into() };
        let all: BTreeSet<Complaint> = (0..5000).map(complaint).collect();
        let shown = few(&all, "n4000");
        assert_eq!(shown.len(), SHOWN_MAX + 1);
        assert_eq!((&*shown[0].record, &*shown[1].record), ("n4000", "n0000"));
        assert!(shown[SHOWN_MAX].what.ends_with("there are 4980 more complaints than are shown here"));
        let all: BTreeSet<Complaint> = (0..20).map(complaint).collect();
        assert_eq!(few(&all, "n").len(), 20);
    }

    #[test]
    fn another_machine_of_our_name_is_complained_about() {
        let now = Instant::now();
        let publishing = Publishing::new(Spelling::Snake, 0);
        let mut knowledge = Knowledge::new("n", Mesh::new(None), publishing, now);
        let of = |number| Node { endpoint: Some(([192, 0, 2, number], 7).into()), ..Node::default() };
        knowledge.publishing.want(Some(&of(1))).unwrap();
        for _ in 0..4 {
            assert_eq!(knowledge.shown_complaints(), BTreeSet::new());
            for number in [1, 2] {
                let value = record::write(&of(number), Spelling::Snake);
                knowledge.record("n", Some(&Object { value, born: 1, uid: String::new() }));
            }
        }
        let shown: Vec<String> = knowledge.shown_complaints().iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            ["\"n\": another machine publishes it, too, without a key at 192.0.2.2:7: give each machine a \
              name of its own"]
        );
    }
}
