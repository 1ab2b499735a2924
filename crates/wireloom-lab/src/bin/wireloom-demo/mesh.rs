//! The demo's mesh: nodes in a laboratory, with WireGuard set up first by hand, then by the agent.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use wireloom_lab::{
    Lab, Layout, Matrix, PingReport, Pinger,
    agent::{self, Agent},
    mesh::{KeyPair, Mesh, write_key, write_settings},
    unscoped,
};
use wireloom_plan::routing::Family;

use super::state::State;

/// How long a state may take to be reached; it usually takes about a second. A handshake that is lost is tried again
/// after 5 s.
const PATIENCE: Duration = Duration::from_secs(20);

/// Time between two pings.
const INTERVAL: Duration = Duration::from_millis(10);

pub(super) struct DemoMesh {
    pub(super) lab: Lab,
    pub(super) agents: Vec<Agent>,
    wireloom: PathBuf,
    mesh: Mesh,
    keys: Vec<KeyPair>,
}

impl DemoMesh {
    pub(super) fn new() -> anyhow::Result<Self> {
        let wireloom = crate::program("wireloom")?;
        let lab = Lab::new(&Layout { nodes: 3, ..Layout::default() })?;
        let keys =
            lab.nodes.iter().map(|node| KeyPair::generate(&wireloom, node)).collect::<Result<Vec<_>, _>>()?;
        let mesh = Mesh::of(&lab, &keys);
        mesh.write(&lab)?;
        for (node, key) in lab.nodes.iter().zip(&keys) {
            write_key(node, key)?;
        }
        Ok(Self { lab, agents: Vec::new(), wireloom, mesh, keys })
    }

    pub(super) fn nodes(&self) -> usize {
        self.lab.nodes.len()
    }

    pub(super) fn program(&self) -> &Path {
        &self.wireloom
    }

    /// Starts the change to a state, from the one before it.
    pub(super) fn enter(&mut self, state: State) -> anyhow::Result<()> {
        match state {
            State::Unscoped => {
                let device = format!("{} device", self.wireloom.display());
                unscoped::build(&device, &self.lab, &self.mesh, &self.keys)?;
            }
            State::Scoped => {
                for node in &self.lab.nodes {
                    write_settings(node, "encrypt_host_traffic = false")?;
                    self.agents.push(Agent::start(&self.wireloom, node)?);
                }
            }
            State::Host => {
                for node in &self.lab.nodes {
                    write_settings(node, "encrypt_host_traffic = true")?;
                }
            }
        }
        Ok(())
    }

    /// Measures until the state is reached or [`PATIENCE`] is over, and returns the last measurement.
    pub(super) fn settle(&self, state: State) -> anyhow::Result<Matrix> {
        Ok(Matrix::settle(&self.lab, state.promise(), PATIENCE)?)
    }

    /// Starts pings from a pod to a pod, over both families.
    pub(super) fn pings(&self) -> anyhow::Result<Pings> {
        let [from, to] = [&self.lab.nodes[0].pods[0], &self.lab.nodes[1].pods[0]];
        let start = |family| Pinger::start(from, to, family, INTERVAL);
        Ok(Pings([start(Family::V4)?, start(Family::V6)?]))
    }

    /// Prints the agents' logs.
    pub(super) fn print_logs(&self) -> anyhow::Result<()> {
        for node in &self.lab.nodes {
            anstream::eprintln!("\nthe agent's log on {}:\n{}", node.name, agent::log(node)?);
        }
        Ok(())
    }
}

/// Running pings over both families.
pub(super) struct Pings([Pinger; 2]);

impl Pings {
    /// Stops the pings, and adds the counts of both families.
    pub(super) fn stop(self) -> anyhow::Result<PingReport> {
        let [v4, v6] = self.0.map(Pinger::stop);
        let (v4, v6) = (v4?, v6?);
        let [sent, lost] = [v4.sent + v6.sent, v4.lost + v6.lost];
        let [outage, slowest] = [v4.outage.max(v6.outage), v4.slowest.max(v6.slowest)];
        Ok(PingReport { sent, lost, outage, slowest })
    }
}
