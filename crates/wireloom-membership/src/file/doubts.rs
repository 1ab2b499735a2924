//! What is valid in a mesh file and hardly meant. It may be, so the mesh is not refused for it.

use std::{collections::BTreeMap, net::SocketAddr};

use wireloom_plan::own_record::Endpoint;

use super::MeshNode;
use crate::config_file::{Mistake, TomlFile};

/// Endpoints that several nodes have, and those that are on every machine itself.
pub(super) fn about_endpoints(file: &TomlFile, nodes: &[MeshNode]) -> Vec<Mistake> {
    let mut doubts = Vec::new();
    let mut seen = BTreeMap::new();
    for node in nodes {
        let Some(endpoint) = &node.endpoint else { continue };
        let (name, text) = (&node.name.value, text(&endpoint.value));
        let mut doubt = |what| doubts.push(file.mistake(&endpoint.span, what));
        if let Endpoint::Address(address) = &endpoint.value
            && address.ip().to_canonical().is_loopback()
        {
            doubt(format!(
                "the endpoint {text} of {name:?} is on every machine itself; write an address of that node, unless a \
                 proxy listens there on each of the others"
            ));
        }
        if let Some((other, first)) = seen.insert(text.clone(), (name, endpoint.span.start)) {
            doubt(format!(
                "{name:?} has the endpoint {text}, as {other:?} has at line {}: one of the two gets what is for the \
                 other; write where each of them listens",
                file.line(first)
            ));
        }
    }
    doubts
}

/// An endpoint as WireGuard takes it: an IPv4 address is the same in its IPv6 form.
fn text(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Address(address) => {
            SocketAddr::new(address.ip().to_canonical(), address.port()).to_string()
        }
        Endpoint::Name(name) => name.to_string(),
    }
}
