//! This node's own Node: its UID, the pods' CIDRs that the cluster gave it, and its addresses.
//!
//! Agents watch no Node but their own: a Node has tens of kilobytes, and its kubelet rewrites it every few minutes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use ipnet::IpNet;
use serde_json::{Value, json};

use super::collection::Selection;
use crate::{
    Complaint,
    calico::Own,
    knowledge::{Handler, Knowledge},
    store::Object,
    values,
};

/// What an own Node says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OwnNode {
    /// Tells it from a Node that had its name before.
    pub(crate) uid: String,
    /// Its pods' CIDRs; none as long as the cluster has given it none.
    pub(crate) pod_cidrs: BTreeSet<IpNet>,
    /// Its addresses inside the cluster.
    pub(crate) addresses: BTreeSet<IpAddr>,
}

/// The own Node as it was seen last, for those who write what it owns. Nothing while there is none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Owner(Arc<Mutex<Option<OwnNode>>>);

impl Owner {
    pub(crate) fn get(&self) -> Option<OwnNode> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, node: Option<OwnNode>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = node;
    }
}

/// The Node of this name, and no other one.
pub(crate) fn selection(node: &str) -> Selection {
    Selection {
        name: format!("the Node {node:?}"),
        path: "/api/v1/nodes".into(),
        labels: None,
        fields: Some(format!("metadata.name={node}")),
        metadata_only: false,
        keep: essence,
    }
}

/// What concerns us in a Node.
fn essence(mut node: Value) -> Value {
    let mut take = |pointer: &str| node.pointer_mut(pointer).map(Value::take).unwrap_or_default();
    json!({
        "podCIDR": take("/spec/podCIDR"),
        "podCIDRs": take("/spec/podCIDRs"),
        "addresses": take("/status/addresses"),
        "annotations": take("/metadata/annotations"),
    })
}

/// The handler of the collection that is the own Node alone.
#[derive(Debug)]
pub(crate) struct OwnNodeHandler {
    name: String,
    owner: Owner,
    /// Where the workloads come from.
    own: Own,
    /// The UID of the Node that was seen last, even if it is gone.
    last_uid: Option<String>,
}

impl OwnNodeHandler {
    pub(crate) fn new(name: &str, owner: Owner, own: Own) -> Self {
        Self { name: name.to_owned(), owner, own, last_uid: None }
    }

    fn see(&mut self, object: Option<&Object>, knowledge: &mut Knowledge) {
        // A Node that is gone takes nothing back: what it said stays in force until there is another one.
        let Some(object) = object else {
            self.owner.set(None);
            return;
        };
        let (node, complaints) = read(&self.name, object);
        knowledge.complain("own Node", complaints);
        knowledge.local(|local| local.addresses.clone_from(&node.addresses));
        self.own.node(&node.pod_cidrs, &annotations(object), knowledge);
        let is_another = self.last_uid.replace(node.uid.clone()).is_some_and(|before| before != node.uid);
        self.owner.set(Some(node));
        if is_another {
            // The record belongs to the Node that was there before, and would be collected with it.
            knowledge.write_again();
        }
    }
}

impl Handler for OwnNodeHandler {
    fn whole(&mut self, objects: BTreeMap<String, Object>, knowledge: &mut Knowledge) {
        self.see(objects.get(&self.name), knowledge);
    }

    fn change(&mut self, name: &str, object: Option<&Object>, knowledge: &mut Knowledge) {
        if name == self.name {
            self.see(object, knowledge);
        }
    }

    fn completes_mesh(&self) -> bool {
        false
    }
}

/// The Node's annotations that are texts, as all are.
fn annotations(object: &Object) -> BTreeMap<String, String> {
    let value: Value = serde_json::from_str(&object.value).unwrap_or_default();
    serde_json::from_value(value["annotations"].clone()).unwrap_or_default()
}

/// What a Node says, and what of it cannot be used.
fn read(name: &str, object: &Object) -> (OwnNode, BTreeSet<Complaint>) {
    let mut complaints = BTreeSet::new();
    let mut complain = |what: String| {
        complaints.insert(Complaint { record: format!("Node {name}"), what });
    };
    let value: Value = serde_json::from_str(&object.value).unwrap_or_default();
    let texts = |field: &str| -> Vec<String> {
        let list = value[field].as_array();
        list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut written = texts("podCIDRs");
    if written.is_empty() {
        // Kubernetes before 1.16, and programs that set the one field only.
        written.extend(value["podCIDR"].as_str().filter(|text| !text.is_empty()).map(str::to_owned));
    }
    let mut pod_cidrs = BTreeSet::new();
    for text in written {
        match values::cidr(&text) {
            Ok(cidr) => {
                pod_cidrs.insert(cidr);
            }
            Err(why) => complain(format!("spec.podCIDRs: {why}")),
        }
    }
    let internal = value["addresses"].as_array().into_iter().flatten();
    let internal = internal.filter(|address| address["type"] == "InternalIP");
    let mut addresses = BTreeSet::new();
    for text in internal.filter_map(|address| address["address"].as_str()) {
        match values::address(text) {
            Ok(address) => {
                addresses.insert(address);
            }
            Err(why) => complain(format!("status.addresses: {why}")),
        }
    }
    (OwnNode { uid: object.uid.clone(), pod_cidrs, addresses }, complaints)
}
