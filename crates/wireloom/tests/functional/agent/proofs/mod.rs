//! Proven peers: how a fleet becomes encrypted node by node, and back, and what a proof outlives.

mod rollout;
mod sticky;

use std::time::Duration;

use serde_json::Value;
use wireloom_lab::{
    Capture, Cell, Content, FAMILIES, Layout, Packet, Pinger, Wire,
    agent::{self, Agent},
};

use crate::{
    fixtures::fleet::{Fleet, run},
    wireloom,
};

const SCOPED: &str = "encrypt_host_traffic = false";
const ENCRYPTED: Cell = Cell { reachable: true, wire: Wire::Encrypted };
const DIRECT: Cell = Cell { reachable: true, wire: Wire::Direct };
const REFUSED: Cell = Cell { reachable: false, wire: Wire::Nothing };

impl Fleet {
    /// Starts the agent of one node.
    fn start_agent(&self, node: usize) -> Agent {
        Agent::start(wireloom(), &self.lab.nodes[node]).unwrap()
    }

    /// Pings between the first pods of two nodes, over both families, every 10 ms.
    fn ping(&self, from: usize, to: usize) -> Vec<Pinger> {
        let (from, to) = (&self.lab.nodes[from].pods[0], &self.lab.nodes[to].pods[0]);
        FAMILIES.map(|family| Pinger::start(from, to, family, Duration::from_millis(10)).unwrap()).into()
    }

    /// Ends pingers, which must not have lost anything.
    #[track_caller]
    fn assert_none_lost(&self, pingers: Vec<Pinger>) {
        for pinger in pingers {
            let report = pinger.stop().unwrap();
            let logs =
                self.lab.nodes.iter().map(|node| agent::log(node).unwrap()).collect::<Vec<_>>().join("\n");
            assert_eq!(report.lost, 0, "{report:?}\n{logs}\n{}", self.counters());
        }
    }

    /// What a node says about another: `proven`, or `unproven`.
    fn standing(&self, node: usize, other: &str) -> Value {
        let status = run(&self.lab.nodes[node], "status --json").1;
        let status: Value = serde_json::from_str(&status).unwrap_or_default();
        status["standing"][other].clone()
    }

    /// Waits until a node takes another for proven, or for unproven.
    #[track_caller]
    fn wait_for_standing(&self, node: usize, other: &str, proven: bool) {
        let what = format!("{other} to be proven ({proven}) on {}", self.lab.nodes[node].name);
        let word = if proven { "proven" } else { "unproven" };
        self.wait(&what, |fleet| fleet.standing(node, other).get(word).is_some());
    }

    /// The pings between pods in plaintext among what was captured.
    fn plain(&self, capture: &Capture) -> Vec<Packet> {
        let is_pod = |address| self.mesh.pools.iter().any(|pool| pool.cidr.contains(&address));
        let packets = capture.drain().unwrap();
        let echoes = packets.into_iter().filter(|packet| matches!(packet.content, Content::Echo { .. }));
        echoes.filter(|echo| is_pod(echo.source) && is_pod(echo.destination)).collect()
    }
}

/// Nodes whose interface gets a tunnel address: without one, where source validation applies to all interfaces, the
/// kernel's loose validation is strict (`no_addr` in `__fib_validate_source`, net/ipv4/fib_frontend.c), and what a peer
/// encrypts before we know that it is proven is dropped.
fn layout() -> Layout {
    Layout { block_address: true, ..Layout::default() }
}
