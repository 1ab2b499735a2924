//! What is promised of each flow.

use std::fmt;

use super::{
    flow::{Flow, Path},
    situation::Situation,
};
use crate::{Cell, PodNetwork, Wire};

/// The outcome that a flow should have, over every family and protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Promise {
    /// Whether the right server answers.
    pub(super) reachable: bool,
    /// What the underlay sees; `None` when nothing is promised of that.
    pub(super) wire: Option<Wire>,
}

const fn works(wire: Wire) -> Promise {
    Promise { reachable: true, wire: Some(wire) }
}

impl Promise {
    /// The promise for a flow: Kubernetes says what works, docs/agent.md ("What is encrypted") and DESIGN 2.6 what
    /// is encrypted in scoped mode.
    pub(super) fn of(flow: &Flow, situation: Situation) -> Self {
        let Situation { wireloom, network, .. } = situation;
        match flow.path {
            Path::OnNode => works(Wire::Nothing),
            Path::Refused => Self { reachable: false, wire: Some(Wire::Direct) },
            _ if !wireloom => works(Wire::Direct),
            Path::PodToPod => works(Wire::Encrypted),
            Path::ToNode => works(Wire::Direct),
            // The node in the middle sees a pod call, and masquerading happens after routing: its part of the way is
            // from a pod to a pod. Where pods appear under their node's address, it sees a node call.
            Path::Relayed if network == PodNetwork::MasqueradingBridge => works(Wire::Direct),
            Path::Relayed => works(Wire::Both),
            // The node appears under its vxlan device's address, which lies in its block of pods' addresses. Whether
            // that counts as a pod's is not promised.
            Path::NodeToPod if network == PodNetwork::Vxlan => Self { reachable: true, wire: None },
            Path::NodeToPod => works(Wire::Direct),
        }
    }

    /// Whether the outcome is as promised.
    pub(super) fn is_kept_by(self, cell: Cell) -> bool {
        cell.reachable == self.reachable && self.wire.is_none_or(|wire| cell.wire == wire)
    }

    /// Whether the underlay saw plaintext where encryption was promised. No busy machine
    /// excuses that.
    pub(super) fn is_leaked_by(self, cell: Cell) -> bool {
        self.wire == Some(Wire::Encrypted) && matches!(cell.wire, Wire::Direct | Wire::Both)
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self { reachable, wire: Some(wire) } => Cell { reachable, wire }.fmt(f),
            Self { reachable: true, wire: None } => f.pad("reachable"),
            Self { reachable: false, wire: None } => f.pad("unreachable"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::FLOWS, *};
    use crate::ProxyMode;

    fn promise(name: &str, wireloom: bool, network: PodNetwork) -> String {
        let flow = FLOWS.iter().find(|flow| flow.name == name).unwrap();
        Promise::of(flow, Situation { wireloom, proxy: ProxyMode::Iptables, network }).to_string()
    }

    #[test]
    fn promises_follow_from_who_is_at_the_ends() {
        use PodNetwork::{Bridge, MasqueradingBridge, Vxlan};
        for (name, wireloom, network, expected) in [
            ("pod → pod on another node", false, Bridge, "reachable, direct"),
            ("pod → pod on another node", true, Vxlan, "reachable, encrypted"),
            ("pod → pod on its own node", true, Bridge, "reachable, nothing"),
            ("pod → node port of its own node", true, Bridge, "reachable, encrypted"),
            ("pod → node port of the endpoint's node", true, Bridge, "reachable, direct"),
            ("pod → node port of a third node", true, Bridge, "reachable, half encrypted"),
            ("pod → node port of a third node", true, MasqueradingBridge, "reachable, direct"),
            ("node → pod on another node", true, Bridge, "reachable, direct"),
            ("node → pod on another node", true, Vxlan, "reachable"),
            ("node → pod on another node", false, Vxlan, "reachable, direct"),
            ("outside → node port of another node, Local", true, Bridge, "unreachable, direct"),
        ] {
            assert_eq!(promise(name, wireloom, network), expected, "{name}, {wireloom}, {network}");
        }
    }

    #[test]
    fn plaintext_is_a_leak_where_encryption_is_promised() {
        let leaks = |promised, wire| works(promised).is_leaked_by(Cell { reachable: false, wire });
        assert!(leaks(Wire::Encrypted, Wire::Direct) && leaks(Wire::Encrypted, Wire::Both));
        assert!(!leaks(Wire::Encrypted, Wire::Nothing) && !leaks(Wire::Encrypted, Wire::Encrypted));
        assert!(!leaks(Wire::Both, Wire::Direct) && !leaks(Wire::Direct, Wire::Direct));
    }

    #[test]
    fn a_promise_can_leave_open_what_the_underlay_sees() {
        let open = Promise { reachable: true, wire: None };
        let cell = |reachable, wire| Cell { reachable, wire };
        assert!(open.is_kept_by(cell(true, Wire::Both)));
        assert!(!open.is_kept_by(cell(false, Wire::Both)));
        assert!(!works(Wire::Direct).is_kept_by(cell(true, Wire::Both)));
    }
}
