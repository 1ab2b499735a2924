//! What of Calico's a source follows, by the settings.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc;

use super::{
    felix::NODES_MAX,
    handlers::{All, Felix, FelixNodes, Own, Pools},
    key_annotation::{RecordsWithKey, keep},
    objects::{CalicoObjects, Kind},
};
use crate::{
    knowledge::Handler,
    kubernetes::{
        collection::{Objects, Selection},
        server::ApiServer,
        settings::{Settings, Workloads},
    },
    source::{self, Followed},
    store::StoreError,
};

const NODES: &str = "/api/v1/nodes";

/// Calico's part of a source.
pub(crate) struct Followable {
    /// The handler of the WireloomNodes.
    pub(crate) records: Box<dyn Handler>,
    /// What is followed besides.
    pub(crate) followed: Vec<Followed>,
}

/// What is to be followed at this server by the node of this name, besides its own Node, whose handler tells `own` of
/// it, and the WireloomNodes, whose handler is `records`. Called inside the runtime.
///
/// # Errors
/// With `felix_peers`, the nodes cannot be counted.
pub(crate) async fn followed(
    server: &Arc<ApiServer>,
    settings: &Settings,
    node: &str,
    own: &Own,
    mut records: Box<dyn Handler>,
) -> Result<Followable, StoreError> {
    let objects = |kind| CalicoObjects::new(Arc::clone(server), kind);
    let mut followed = Vec::new();
    if settings.pools.is_empty() {
        followed.push(Followed::new(objects(Kind::IpPools), All::<Pools>::default()));
    }
    let nodes = if settings.felix_peers { server.count(NODES, "count the Nodes").await? } else { 0 };
    let felix = match settings.felix_peers {
        true if nodes <= NODES_MAX => {
            let (tell, news) = mpsc::unbounded_channel();
            tokio::spawn(keep(Arc::clone(server), node.to_owned(), news, source::seed()));
            records = Box::new(RecordsWithKey::new(records, tell.clone()));
            let nodes = FelixNodes::new(tell);
            followed
                .push(Followed::new(Objects::new(Arc::clone(server), metadata_of_nodes()), nodes.clone()));
            Felix::On(nodes)
        }
        true => Felix::TooMany(nodes),
        false => Felix::Off,
    };
    let kind = match felix {
        Felix::On(_) => Kind::BlockAffinities,
        Felix::Off | Felix::TooMany(_) => Kind::BlockAffinitiesOf(node.to_owned()),
    };
    if settings.workloads != Workloads::PodCidrs || settings.felix_peers {
        followed.push(Followed::new(objects(kind), All::new(own.clone(), felix)));
    }
    Ok(Followable { records, followed })
}

fn metadata_of_nodes() -> Selection {
    Selection {
        name: "the metadata of the Nodes".to_owned(),
        path: NODES.to_owned(),
        labels: None,
        fields: None,
        metadata_only: true,
        keep: annotations,
    }
}

/// What is read of a Node.
fn annotations(mut node: Value) -> Value {
    let mut kept = Value::Null;
    kept["metadata"]["annotations"] = node["metadata"]["annotations"].take();
    if let Some(annotations) = kept["metadata"]["annotations"].as_object_mut() {
        annotations.retain(|name, _| name.starts_with("projectcalico.org/"));
    }
    kept
}
