//! `mesh.toml`: the mesh in one file.
//!
//! Reading takes three steps: the file as written (`MeshText`), every value parsed by itself but still with its
//! place in the file (`Mesh`), and the claims of the nodes checked against each other (`claims`).

use std::{
    collections::BTreeSet,
    net::IpAddr,
    ops::Range,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;
use wireloom_plan::{
    cluster::{Cluster, Node},
    own_record::Endpoint,
};
use wireloom_types::PublicKey;

use crate::{
    Error,
    config_file::{Mistake, ReadError, TomlFile},
    values::{address, cidr, endpoint, key, link_address},
};

mod claims;
mod doubts;
#[cfg(test)]
mod tests;

/// Reads the mesh from a file.
pub(crate) fn read(path: &Path) -> Result<Cluster, Error> {
    cluster(TomlFile::read(path))
}

/// The mesh of a file that has been read, or could not be.
pub(crate) fn cluster(read: Result<TomlFile, ReadError>) -> Result<Cluster, Error> {
    Ok(parse(&read?)?)
}

/// The mesh that a `mesh.toml` describes.
///
/// # Errors
/// The first mistake in the file.
pub fn parse(file: &TomlFile) -> Result<Cluster, Mistake> {
    if file.is_blank() {
        return Err(
            file.mistake_as_a_whole("the file is empty; describe the mesh with [[nodes]] (and [[pools]])")
        );
    }
    let written: MeshText = file.parse()?;
    let mesh = Mesh::read(file, &written)?;
    if mesh.nodes.is_empty() {
        return Err(file.mistake_as_a_whole("there are no nodes; describe each with [[nodes]]"));
    }
    claims::check(file, &mesh)?;
    Ok(mesh.into())
}

/// What a `mesh.toml` says that is valid and hardly meant, in the order of its lines.
///
/// # Errors
/// As [`parse`].
pub fn doubts(file: &TomlFile) -> Result<Vec<Mistake>, Mistake> {
    let mesh = Mesh::read(file, &file.parse()?)?;
    Ok(doubts::about_endpoints(file, &mesh.nodes))
}

/// The file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MeshText {
    preshared_key_file: Option<Spanned<String>>,
    #[serde(default)]
    pools: Vec<PoolText>,
    #[serde(default)]
    nodes: Vec<NodeText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PoolText {
    cidr: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeText {
    name: Spanned<String>,
    public_key: Option<Spanned<String>>,
    endpoint: Option<Spanned<String>>,
    #[serde(default)]
    addresses: Vec<Spanned<String>>,
    #[serde(default)]
    workloads: Vec<Spanned<String>>,
    #[serde(default)]
    link_addresses: Vec<Spanned<String>>,
    #[serde(default)]
    tunnel_addresses: Vec<Spanned<String>>,
    #[serde(default = "encrypts")]
    encrypt: bool,
}

fn encrypts() -> bool {
    true
}

/// The file with its values parsed: each is valid by itself, and still knows its place in the file.
struct Mesh {
    preshared_key_file: Option<PathBuf>,
    pools: Vec<Located<IpNet>>,
    nodes: Vec<MeshNode>,
}

struct MeshNode {
    name: Located<String>,
    public_key: Option<PublicKey>,
    endpoint: Option<Located<Endpoint>>,
    addresses: Vec<Located<IpAddr>>,
    workloads: Vec<Located<IpNet>>,
    link_addresses: Vec<Located<IpAddr>>,
    tunnel_addresses: Vec<Located<IpAddr>>,
    encrypt: bool,
}

/// A value and the bytes of the file that it was read from.
struct Located<T> {
    value: T,
    span: Range<usize>,
}

impl Mesh {
    fn read(file: &TomlFile, written: &MeshText) -> Result<Self, Mistake> {
        let key_file = written.preshared_key_file.as_ref();
        let key_file = key_file.map(|text| read_value(file, text, absolute_path)).transpose()?;
        Ok(Self {
            preshared_key_file: key_file.map(|path| path.value),
            pools: written
                .pools
                .iter()
                .map(|pool| read_value(file, &pool.cidr, cidr))
                .collect::<Result<_, _>>()?,
            nodes: written.nodes.iter().map(|node| MeshNode::read(file, node)).collect::<Result<_, _>>()?,
        })
    }
}

impl MeshNode {
    fn read(file: &TomlFile, written: &NodeText) -> Result<Self, Mistake> {
        let key = written.public_key.as_ref().map(|text| read_value(file, text, key)).transpose()?;
        let endpoint = written.endpoint.as_ref().map(|text| read_value(file, text, endpoint)).transpose()?;
        Ok(Self {
            name: read_value(file, &written.name, name)?,
            public_key: key.map(|key| key.value),
            endpoint,
            addresses: read_list(file, &written.addresses, address)?,
            workloads: read_list(file, &written.workloads, cidr)?,
            link_addresses: read_list(file, &written.link_addresses, link_address)?,
            tunnel_addresses: read_list(file, &written.tunnel_addresses, address)?,
            encrypt: written.encrypt,
        })
    }
}

fn read_value<T>(
    file: &TomlFile,
    written: &Spanned<String>,
    parse: fn(&str) -> Result<T, String>,
) -> Result<Located<T>, Mistake> {
    match parse(written.get_ref()) {
        Ok(value) => Ok(Located { value, span: written.span() }),
        Err(what) => Err(file.mistake(&written.span(), what)),
    }
}

fn read_list<T>(
    file: &TomlFile,
    written: &[Spanned<String>],
    parse: fn(&str) -> Result<T, String>,
) -> Result<Vec<Located<T>>, Mistake> {
    written.iter().map(|text| read_value(file, text, parse)).collect()
}

fn name(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err(
            "the node has no name; write the name that its agent uses (`node` in agent.toml, or the host \
                   name)"
                .into(),
        ),
        name => Ok(name.to_owned()),
    }
}

fn absolute_path(text: &str) -> Result<PathBuf, String> {
    match PathBuf::from(text) {
        path if path.is_absolute() => Ok(path),
        _ => Err(format!(
            "{text:?} is not an absolute path; write one such as \"/etc/wireloom/mesh.psk\", the same on every node"
        )),
    }
}

impl From<Mesh> for Cluster {
    fn from(mesh: Mesh) -> Self {
        Self {
            preshared_key_file: mesh.preshared_key_file,
            pools: values(mesh.pools),
            nodes: mesh.nodes.into_iter().map(|node| (node.name.value.clone(), node.into())).collect(),
        }
    }
}

impl From<MeshNode> for Node {
    fn from(node: MeshNode) -> Self {
        let (endpoint, endpoint_name) = match node.endpoint.map(|endpoint| endpoint.value) {
            Some(Endpoint::Address(address)) => (Some(address), None),
            Some(Endpoint::Name(name)) => (None, Some(name)),
            None => (None, None),
        };
        Self {
            public_key: node.public_key,
            endpoint,
            endpoint_name,
            other_endpoints: Vec::new(),
            addresses: values(node.addresses),
            workloads: values(node.workloads),
            link_addresses: values(node.link_addresses),
            tunnel_addresses: values(node.tunnel_addresses),
            encrypt: node.encrypt,
        }
    }
}

fn values<T: Ord>(list: Vec<Located<T>>) -> BTreeSet<T> {
    list.into_iter().map(|located| located.value).collect()
}
