//! The files of a mesh: `mesh.toml` and `agent.toml`, and each node's key.

use std::{
    env,
    fs::OpenOptions,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use ipnet::IpNet;
use serde::Serialize;
use wireloom_plan::routing::Family;

use super::{Lab, Node, Result, layout};

/// The port that every node's WireGuard listens on.
pub const PORT: u16 = 51820;

/// Where the agent looks for its settings.
pub const SETTINGS: &str = "/etc/wireloom/agent.toml";
/// Where the mesh's members are, unless the settings say otherwise.
pub const MEMBERS: &str = "/etc/wireloom/mesh.toml";
/// Where the private key is, unless the settings say otherwise.
pub const KEY: &str = "/var/lib/wireloom/wg0.key";

/// A key pair, both halves in base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// For the laboratory's own nodes alone: it is no secret.
    pub private: String,
    /// Its other half.
    pub public: String,
}

impl KeyPair {
    /// A new one, by `wireloom key`.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn generate(wireloom: &Path, place: &Node) -> Result<Self> {
        let private = place.run(&format!("{} key generate", wireloom.display()))?.trim().to_owned();
        Self::of(wireloom, place, private)
    }

    /// The pair that this private key is of.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub(super) fn of(wireloom: &Path, place: &Node, private: String) -> Result<Self> {
        let program = wireloom.display();
        let public = place.host.space.feed(&format!("{program} key public"), &private)?.trim().to_owned();
        Ok(Self { private, public })
    }
}

/// What `mesh.toml` says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Mesh {
    /// See the design.
    pub pools: Vec<Pool>,
    /// In the order of [`Lab::nodes`].
    pub nodes: Vec<Member>,
}

/// A `[[pools]]` entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pool {
    /// Its range.
    pub cidr: IpNet,
}

/// A `[[nodes]]` entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Host name.
    pub name: String,
    /// Base64; absent: this node does not encrypt.
    pub public_key: Option<String>,
    /// Where its WireGuard listens.
    pub endpoint: Option<SocketAddr>,
    /// Its own.
    pub addresses: Vec<IpAddr>,
    /// Where its pods live.
    pub workloads: Vec<IpNet>,
    /// Its own on the link between the peers.
    pub link_addresses: Vec<IpAddr>,
}

impl Mesh {
    /// The laboratory's pools and nodes; WireGuard runs over IPv4.
    #[must_use]
    pub fn of(lab: &Lab, keys: &[KeyPair]) -> Self {
        let member = |(node, key): (&Node, &KeyPair)| Member {
            name: node.name.clone(),
            public_key: Some(key.public.clone()),
            endpoint: Some(node.endpoint(Family::V4)),
            addresses: node.host.addresses.both().to_vec(),
            workloads: node.block.to_vec(),
            link_addresses: Vec::new(),
        };
        Self {
            pools: layout::pools().map(|cidr| Pool { cidr }).to_vec(),
            nodes: lab.nodes.iter().zip(keys).map(member).collect(),
        }
    }

    /// Writes it on every node.
    ///
    /// # Errors
    /// When a node's file cannot be written.
    pub fn write(&self, lab: &Lab) -> Result<()> {
        lab.nodes.iter().try_for_each(|node| self.write_on(node))
    }

    /// Writes it on one node.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_on(&self, node: &Node) -> Result<()> {
        let text = toml::to_string(self).expect("a mesh has nothing that TOML cannot say");
        node.host.space.write(MEMBERS, &text)
    }
}

/// Writes a node's private key, for its owner alone.
///
/// # Errors
/// When it cannot be written.
pub fn write_key(node: &Node, key: &KeyPair) -> Result<()> {
    node.host.space.open(&format!("write {KEY}"), || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(KEY)?;
        writeln!(file, "{}", key.private)
    })
}

/// Writes `agent.toml` on one node: its name, these lines of the `[routing]` section, and the back end
/// that the environment's `WIRELOOM_LAB_BACKEND` names (the default is the agent's own).
///
/// # Errors
/// When it cannot be written.
pub fn write_settings(node: &Node, routing: &str) -> Result<()> {
    let backend = env::var("WIRELOOM_LAB_BACKEND").map(|name| format!("wireguard.backend = \"{name}\""));
    let backend = backend.unwrap_or_default();
    node.host.space.write(SETTINGS, &format!("node = \"{}\"\n{backend}\n[routing]\n{routing}\n", node.name))
}
