//! The files that an agent reads: `mesh.toml`, `agent.toml` and the node's private key.

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

use crate::{Lab, Node, Result, network::layout};

/// The UDP port that every node's WireGuard listens on.
pub const PORT: u16 = 51820;

/// The agent's settings file.
pub const SETTINGS: &str = "/etc/wireloom/agent.toml";
/// The agent's default mesh file.
pub const MEMBERS: &str = "/etc/wireloom/mesh.toml";
/// The agent's default private key file.
pub const KEY: &str = "/var/lib/wireloom/wg0.key";

/// A key pair, both halves in base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// The private key. It protects nothing outside the laboratory, so it may be shown.
    pub private: String,
    /// The public key.
    pub public: String,
}

impl KeyPair {
    /// Makes a new pair with `wireloom key`, run on `place`.
    ///
    /// # Errors
    /// When the program `wireloom` cannot be run.
    pub fn generate(wireloom: &Path, place: &Node) -> Result<Self> {
        let private = place.run(&format!("{} key generate", wireloom.display()))?.trim().to_owned();
        Self::of(wireloom, place, private)
    }

    /// The pair of a given private key.
    pub(crate) fn of(wireloom: &Path, place: &Node, private: String) -> Result<Self> {
        let program = wireloom.display();
        let public = place.host.space.feed(&format!("{program} key public"), &private)?.trim().to_owned();
        Ok(Self { private, public })
    }
}

/// The content of `mesh.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Mesh {
    /// The `[[pools]]` entries.
    pub pools: Vec<Pool>,
    /// The `[[nodes]]` entries, in the order of [`Lab::nodes`].
    pub nodes: Vec<Member>,
}

/// A `[[pools]]` entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pool {
    /// The pool's prefix.
    pub cidr: IpNet,
}

/// A `[[nodes]]` entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    /// The node's name.
    pub name: String,
    /// The node's public key in base64; a node without one does not encrypt.
    pub public_key: Option<String>,
    /// The address and port at which its WireGuard listens.
    pub endpoint: Option<SocketAddr>,
    /// The node's own addresses.
    pub addresses: Vec<IpAddr>,
    /// The prefixes of its pods.
    pub workloads: Vec<IpNet>,
    /// The node's addresses on the link between the peers (link mode).
    pub link_addresses: Vec<IpAddr>,
    /// Those of its pods' addresses that its WireGuard interface has.
    pub tunnel_addresses: Vec<IpAddr>,
    /// Whether it encrypts.
    pub encrypt: bool,
}

impl Mesh {
    /// The mesh of a laboratory whose nodes have these keys, in order. WireGuard runs over IPv4.
    #[must_use]
    pub fn of(lab: &Lab, keys: &[KeyPair]) -> Self {
        Self::of_nodes(&lab.nodes, keys)
    }

    /// The mesh of these nodes.
    pub(crate) fn of_nodes(nodes: &[Node], keys: &[KeyPair]) -> Self {
        let member = |(node, key): (&Node, &KeyPair)| Member {
            name: node.name.clone(),
            public_key: Some(key.public.clone()),
            endpoint: Some(node.endpoint(Family::V4)),
            addresses: node.host.addresses.both().to_vec(),
            workloads: node.block.to_vec(),
            link_addresses: Vec::new(),
            tunnel_addresses: Vec::new(),
            encrypt: true,
        };
        Self {
            pools: layout::pools().map(|cidr| Pool { cidr }).to_vec(),
            nodes: nodes.iter().zip(keys).map(member).collect(),
        }
    }

    /// The text of `mesh.toml`.
    pub(crate) fn to_toml(&self) -> String {
        toml::to_string(self).expect("TOML can express every mesh")
    }

    /// Writes `mesh.toml` on every node.
    ///
    /// # Errors
    /// When a node's file cannot be written.
    pub fn write(&self, lab: &Lab) -> Result<()> {
        lab.nodes.iter().try_for_each(|node| self.write_on(node))
    }

    /// Writes `mesh.toml` on one node.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_on(&self, node: &Node) -> Result<()> {
        node.host.space.write(MEMBERS, &self.to_toml())
    }
}

/// Writes a node's private key file, readable by its owner only.
///
/// # Errors
/// When it cannot be written.
pub fn write_key(node: &Node, key: &KeyPair) -> Result<()> {
    node.host.space.open(&format!("write {KEY}"), || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(KEY)?;
        writeln!(file, "{}", key.private)
    })
}

/// Writes `agent.toml` on one node: its name, these lines of the `[routing]` section, and the back end that
/// `WIRELOOM_LAB_BACKEND` names in the environment (absent: the agent's default).
///
/// # Errors
/// When it cannot be written.
pub fn write_settings(node: &Node, routing: &str) -> Result<()> {
    let backend = env::var("WIRELOOM_LAB_BACKEND").map(|name| format!("wireguard.backend = \"{name}\""));
    let backend = backend.unwrap_or_default();
    node.host.space.write(SETTINGS, &format!("node = \"{}\"\n{backend}\n[routing]\n{routing}\n", node.name))
}
