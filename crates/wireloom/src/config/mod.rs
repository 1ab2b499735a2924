//! `agent.toml`: what the operator of this node decided.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use wireloom_kernel::BackendSetting;
use wireloom_membership::{
    Source,
    config_file::{Mistake, ReadError, TomlFile},
};
use wireloom_plan::{own_record::Declared, settings::Settings, warning::Warning};

use self::file::File;
use crate::metrics::Listen;

mod file;
mod membership;
#[cfg(test)]
mod tests;
mod values;

/// The settings file that is read unless another one is named.
pub(crate) const DEFAULT_PATH: &str = "/etc/wireloom/agent.toml";

/// The content of `agent.toml`, with defaults for what it leaves out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// What the planner needs to know.
    pub(crate) settings: Settings,
    /// Whether the agent chooses the table; until it has, the settings have the first that it may choose.
    pub(crate) table_is_auto: bool,
    /// The private key's file: base64, as `wg genkey` writes it. The agent makes it when it is absent.
    pub(crate) private_key_file: PathBuf,
    /// Which WireGuard carries the packets.
    pub(crate) backend: BackendSetting,
    /// Where the agent learns who is in the mesh.
    pub(crate) membership: Source,
    /// What this node's record says because the operator does.
    pub(crate) declared: Declared,
    /// Where metrics are served.
    pub(crate) metrics: Listen,
    /// What the operator should change in the file although it is valid.
    pub(crate) warnings: BTreeSet<Warning>,
}

/// Why the settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Nobody says what this node is called, and the host name cannot be read either.
    #[error("cannot read the host name ({0}); set `node` in agent.toml, or WIRELOOM_NODE")]
    HostName(io::Error),
    /// The file's content is not valid.
    #[error(transparent)]
    Mistake(#[from] Mistake),
}

impl Config {
    /// Reads `agent.toml`, [`DEFAULT_PATH`] unless another one is named. `node` is the name of this node if the file
    /// says none; without either, it is the host name.
    pub(crate) fn load(path: Option<&Path>, node: Option<&str>) -> Result<Self, Error> {
        let read = TomlFile::read(path.unwrap_or(Path::new(DEFAULT_PATH)));
        Self::from_file(&file_or_defaults(read, path)?, node)
    }

    /// The settings of an `agent.toml` that has been read. `node` is the name of this node if the file says none.
    pub(crate) fn from_file(file: &TomlFile, node: Option<&str>) -> Result<Self, Error> {
        let file = File::parse(file)?;
        let node = match (&file.node, node) {
            (Some(said), _) => said.0.clone(),
            (None, Some(node)) => node.to_owned(),
            (None, None) => host_name().map_err(Error::HostName)?,
        };
        Ok(file.with_node(node))
    }
}

/// The default file may be absent: every setting has a default, so an empty file takes its place. `path` is the file
/// that was named.
pub(crate) fn file_or_defaults(
    read: Result<TomlFile, ReadError>,
    path: Option<&Path>,
) -> Result<TomlFile, ReadError> {
    match read {
        Err(error) if error.is_absent() && path.is_none() => {
            Ok(TomlFile::from_text(Path::new(DEFAULT_PATH), ""))
        }
        read => read,
    }
}

fn host_name() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim_end().to_owned())
}
