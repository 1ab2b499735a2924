//! Against the twin of the API server, and with the feature `functional` against a real one.

#[cfg(feature = "functional")]
mod api_server;
#[cfg(feature = "functional")]
mod churn;
mod collection;
mod crds;
mod credentials;
mod own_record;
mod report;
mod scale;
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
