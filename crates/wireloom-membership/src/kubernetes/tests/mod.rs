//! Against the twin of the API server. With `cargo test --features functional`, [`churn`] runs against a real one, as
//! root or not; it needs Go: the first time, `scripts/kubernetes-programs` and `scripts/etcd-program` compile what it
//! starts, and take minutes.

#[cfg(feature = "functional")]
mod api_server;
#[cfg(feature = "functional")]
mod churn;
mod collection;
mod crds;
mod credentials;
mod own_record;
mod reporter;
mod source;

use std::sync::Arc;

use super::{
    credentials::Credentials,
    server::ApiServer,
    twin::{NODES, Twin, node},
};

/// The twin as an agent's credentials show it.
fn server(twin: &Twin) -> Arc<ApiServer> {
    Arc::new(ApiServer::new(Credentials::Twin(twin.door())))
}

/// A twin with a Node.
fn twin_with_node() -> Twin {
    let twin = Twin::start();
    twin.put(NODES, node("n1", &["10.1.1.0/24"], &["192.0.2.1"]));
    twin
}
