//! Promises that are not kept yet.
//!
//! The list is strict: a cell on it that keeps its promise is an error until it is taken off. So is one on it that
//! leaks plaintext where encryption is promised.

use wireloom_plan::routing::Family;

use super::{
    column::{Column, Protocol},
    flow::Flow,
    situation::Situation,
};
use crate::{FAMILIES, PodNetwork, ProxyMode};

/// The issue that fixes them.
pub const ISSUE: &str = "The promise holds whatever happens";

/// A flow that fails with Wireloom, in some situations and over some families and protocols.
struct KnownFailure {
    /// The [name](Flow::name) of the flow.
    flow: &'static str,
    networks: &'static [PodNetwork],
    proxies: &'static [ProxyMode],
    families: &'static [Family],
    protocols: &'static [Protocol],
}

const ROUTED: &[PodNetwork] = &[PodNetwork::Bridge, PodNetwork::Vxlan];
const MASQUERADING: &[PodNetwork] = &[PodNetwork::MasqueradingBridge];
const EVERY: &[PodNetwork] = &[PodNetwork::Bridge, PodNetwork::MasqueradingBridge, PodNetwork::Vxlan];

/// All of them are connections that NAT changes on the way (docs/agent.md, "Connections that NAT changes").
const KNOWN_FAILURES: &[KnownFailure] = &[
    // Routed into the tunnel, then masqueraded. The interface has no address, so IPv4 takes the first one of the node,
    // and the far peer drops what comes from there. IPv6 takes the one that has most in common with the
    // destination (RFC 6724, section 5, rule 8): the bridge's, which lies in the node's block.
    fails("pod → node port of its own node", EVERY).over(&[Family::V4]),
    // The same, where the network plugin masquerades whatever a pod sends.
    fails("pod → pod on another node", MASQUERADING).over(&[Family::V4]),
    fails("pod → endpoint of a headless service", MASQUERADING).over(&[Family::V4]),
    fails("pod → service", MASQUERADING).over(&[Family::V4]),
    fails("pod → service, session affinity", MASQUERADING).over(&[Family::V4]),
    fails("pod → node port of its own node, Local", MASQUERADING).over(&[Family::V4]),
    // The reply is routed into the tunnel before NAT puts the node's address in, and the far peer drops it.
    fails("pod → node port of the endpoint's node", ROUTED),
    fails("pod → node port of a third node", ROUTED),
    fails("pod → node port of another node → itself", ROUTED),
    fails("pod → node port of the endpoint's node, Local", ROUTED),
    fails("pod → host port of another node", ROUTED),
];

/// Fails with kube-proxy in every mode, over every family and protocol.
const fn fails(flow: &'static str, networks: &'static [PodNetwork]) -> KnownFailure {
    KnownFailure {
        flow,
        networks,
        proxies: &[ProxyMode::Iptables, ProxyMode::Nftables],
        families: &FAMILIES,
        protocols: &[Protocol::Tcp, Protocol::Udp],
    }
}

impl KnownFailure {
    /// The same failure, over these families only.
    const fn over(self, families: &'static [Family]) -> Self {
        Self { families, ..self }
    }
}

/// Whether a cell is known to break its promise. Without Wireloom none is.
pub(super) fn is_known_failure(flow: &Flow, column: Column, situation: Situation) -> bool {
    let Situation { wireloom, proxy, network } = situation;
    let applies = |known: &&KnownFailure| {
        known.flow == flow.name
            && known.networks.contains(&network)
            && known.proxies.contains(&proxy)
            && known.families.contains(&column.family)
            && known.protocols.contains(&column.protocol)
    };
    wireloom && KNOWN_FAILURES.iter().any(|known| applies(&known))
}

#[cfg(test)]
mod tests {
    use super::{super::FLOWS, *};

    fn known(name: &str, family: Family, wireloom: bool, network: PodNetwork) -> bool {
        let flow = FLOWS.iter().find(|flow| flow.name == name).unwrap();
        let situation = Situation { wireloom, proxy: ProxyMode::Nftables, network };
        is_known_failure(flow, Column { protocol: Protocol::Udp, family }, situation)
    }

    #[test]
    fn every_entry_names_a_flow() {
        for failure in KNOWN_FAILURES {
            assert!(FLOWS.iter().any(|flow| flow.name == failure.flow), "{}", failure.flow);
        }
    }

    #[test]
    fn failures_depend_on_wireloom_the_network_and_the_family() {
        use PodNetwork::{Bridge, MasqueradingBridge, Vxlan};
        assert!(known("pod → node port of its own node", Family::V4, true, Bridge));
        assert!(!known("pod → node port of its own node", Family::V4, false, Bridge));
        assert!(!known("pod → node port of its own node", Family::V6, true, Bridge));
        assert!(known("pod → host port of another node", Family::V6, true, Vxlan));
        assert!(known("pod → service", Family::V4, true, MasqueradingBridge));
        assert!(!known("pod → service", Family::V4, true, Vxlan));
    }
}
