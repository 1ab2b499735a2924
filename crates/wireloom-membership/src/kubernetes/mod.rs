//! Membership from Kubernetes: `WireloomNode` objects, and this node's own Node.
//!
//! ```text
//!  API server ─┬─ WireloomNodes ─────── Objects ─▶ WireloomNodes ─┐
//!              ├─ this node's Node ──── Objects ─▶ OwnNodeHandler ┴─▶ source
//!              │                                        │ uid
//!              ├─ its WireloomNode ◀─── OwnWireloomNode ◀┤
//!              └─ its WireloomNodeStatus, Events ◀─ Reporter
//! ```
//!
//! [`server`] asks, one attempt at a time; [`credentials`] says who asks. Nothing here retries: the source does.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
};

use futures::FutureExt;
use ipnet::IpNet;
use tokio::sync::mpsc;
use wireloom_plan::cluster::Cluster;

use self::{
    collection::Objects,
    credentials::Credentials,
    own_node::{OwnNodeHandler, Owner},
    own_record::OwnWireloomNode,
    reporter::Reporter,
    server::ApiServer,
};
pub use self::{
    report::Report,
    settings::{Settings, Workloads},
};
use crate::{
    Error, Event, Following, Start,
    calico::{self, Own},
    knowledge::{Handler, Knowledge},
    record::Spelling,
    source::{self, Connect, Followed, Stores},
    store::{Object, StoreError},
    store_address,
};

pub(crate) mod collection;
mod credentials;
mod events;
mod lines;
mod own_node;
mod own_record;
pub(crate) mod report;
mod reporter;
pub(crate) mod server;
pub(crate) mod settings;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod twin;

/// Reads the mesh once.
pub(crate) fn read(settings: &Settings) -> Result<Cluster, Error> {
    source::read(connector(Credentials::of(settings), settings))
}

/// Follows the mesh.
pub(crate) fn follow(
    settings: &Settings,
    start: Start,
    deliver: impl Fn(Event) + Send + 'static,
) -> io::Result<Following> {
    source::follow(start, deliver, connector(Credentials::of(settings), settings))
}

fn connector(credentials: Credentials, settings: &Settings) -> impl Connect + Send + 'static {
    let settings = settings.clone();
    move |node| connect(credentials.clone(), settings.clone(), node.to_owned()).boxed()
}

async fn connect(credentials: Credentials, settings: Settings, node: String) -> Result<Stores, StoreError> {
    let server = Arc::new(ApiServer::new(credentials));
    let url = server.connect().await?;
    let objects = |selection| Objects::new(Arc::clone(&server), selection);
    let owner = Owner::default();
    let own = Own::new(settings.workloads);
    let own_node = OwnNodeHandler::new(&node, owner.clone(), own.clone());
    let records = Box::new(WireloomNodes { pools: settings.pools.clone() });
    let calico = calico::followed(&server, &settings, &node, &own, records).await?;
    let mut followed = vec![
        Followed { collection: Box::new(objects(own_record::selection())), handler: calico.records },
        Followed::new(objects(own_node::selection(&node)), own_node),
    ];
    followed.extend(calico.followed);
    let (reports, reported) = mpsc::unbounded_channel();
    tokio::spawn(Reporter::new(Arc::clone(&server), &node, owner.clone()).run(reported));
    Ok(Stores {
        spelling: Spelling::Camel,
        followed,
        own_record: Some(Box::new(OwnWireloomNode::new(Arc::clone(&server), &node, owner))),
        addresses: store_address::of_urls(&[url]).await,
        reports: Some(reports),
    })
}

/// The handler of the records, which declares the pools of the settings with them. If those have none, Calico's IPPools
/// say which there are.
struct WireloomNodes {
    pools: BTreeSet<IpNet>,
}

impl Handler for WireloomNodes {
    fn whole(&mut self, objects: BTreeMap<String, Object>, knowledge: &mut Knowledge) {
        if !self.pools.is_empty() {
            knowledge.declare_pools(&self.pools);
        }
        knowledge.records(objects);
    }

    fn change(&mut self, name: &str, object: Option<&Object>, knowledge: &mut Knowledge) {
        knowledge.record(name, object);
    }
}
