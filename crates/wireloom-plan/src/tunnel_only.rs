//! In host mode, what is between proven nodes goes through the tunnel alone, and with a wrong key nobody gets in to
//! correct it: who would be shut out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    cluster::Cluster,
    connections::Connection,
    settings::{HostTransition, Settings},
    standing::Standings,
    warning::Warning,
};

/// In host mode, the addresses of other nodes that have such connections and are not exempt.
pub(crate) fn warnings(
    connections: &BTreeSet<Connection>,
    cluster: &Cluster,
    settings: &Settings,
    standings: &Standings,
) -> BTreeSet<Warning> {
    let is_exempt = |address| settings.encrypt_host_exempt.iter().any(|prefix| prefix.contains(&address));
    let mut of_interest = connections.iter().filter(|it| !is_exempt(it.remote)).peekable();
    if !settings.encrypt_host_traffic || of_interest.peek().is_none() {
        return BTreeSet::new();
    }
    let others = cluster.nodes.iter().filter(|(name, _)| **name != settings.node);
    let others = others.filter(|(_, node)| node.public_key.is_some() && node.encrypt);
    let owners: BTreeMap<IpAddr, &String> = others
        .flat_map(|(name, node)| node.underlay_addresses().into_iter().map(move |it| (it, name)))
        .collect();
    let warning = |connection: &Connection| {
        let node = owners.get(&connection.remote)?;
        let proven = standings.get(*node).is_some_and(|standing| standing.egress);
        let already = proven && settings.host_transition != Some(HostTransition::Accept);
        let (node, address) = ((*node).clone(), connection.remote);
        Some(Warning::TunnelOnly { node, address, port: connection.port, already })
    };
    of_interest.filter_map(warning).collect()
}
