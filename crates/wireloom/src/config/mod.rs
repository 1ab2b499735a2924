//! `agent.toml`: what the operator of this node decided.

use std::{
    io,
    path::{Path, PathBuf},
};

use wireloom_kernel::BackendSetting;
use wireloom_membership::{
    Source,
    config_file::{Mistake, TomlFile},
};
use wireloom_plan::settings::Settings;

use self::file::File;

mod file;
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
    /// The private key's file: base64, as `wg genkey` writes it. The agent makes it when it is absent.
    pub(crate) private_key_file: PathBuf,
    /// Which WireGuard carries the packets.
    pub(crate) backend: BackendSetting,
    /// Where the agent learns who is in the mesh.
    pub(crate) membership: Source,
}

/// Why the settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Read { path: PathBuf, cause: io::Error },
    /// `node` is not set, and the host name cannot be read either.
    #[error("cannot read the host name ({0}); set `node` in agent.toml")]
    HostName(io::Error),
    /// The file's content is not valid.
    #[error(transparent)]
    Mistake(#[from] Mistake),
}

impl Config {
    /// Reads `agent.toml`. Without a path the file is [`DEFAULT_PATH`] and may be absent: every setting has a default.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, Error> {
        let given = path.unwrap_or(Path::new(DEFAULT_PATH));
        let file = match TomlFile::read(given) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_none() => {
                TomlFile::from_text(given, "")
            }
            Err(cause) => return Err(Error::Read { path: given.to_owned(), cause }),
        };
        let file = File::parse(&file)?;
        let node = match &file.node {
            Some(node) => node.0.clone(),
            None => host_name().map_err(Error::HostName)?,
        };
        Ok(file.with_node(node))
    }
}

fn host_name() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim_end().to_owned())
}
