//! Against the twin of the API server.

mod collection;
mod crds;
mod credentials;
mod own_record;
mod report;
mod scale;

use std::sync::Arc;

use super::{
    credentials::Credentials,
    server::ApiServer,
    twin::{NODES, Twin, node},
};

/// The twin as an agent's credentials show it.
fn server(twin: &Twin) -> Arc<ApiServer> {
    Arc::new(ApiServer::new(Credentials::Kubeconfig(twin.kubeconfig())))
}

/// A twin with a Node.
async fn twin_with_node() -> Twin {
    let twin = Twin::start().await;
    twin.put(NODES, node("n1", &["10.1.1.0/24"], &["192.0.2.1"]));
    twin
}
