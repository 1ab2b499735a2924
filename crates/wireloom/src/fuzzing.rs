//! Doors for `fuzz/`.

use std::path::Path;

use wireloom_membership::config_file::TomlFile;

use crate::{
    config::{Config, Error},
    key_file,
    run_file::RunFile,
};

/// Reads an `agent.toml`.
///
/// # Errors
/// What the operator is told.
pub fn agent_toml(text: &str) -> Result<(), String> {
    match Config::from_file(&TomlFile::from_text(Path::new("agent.toml"), text), Some("node")) {
        Ok(_) => Ok(()),
        Err(Error::Mistake(mistake)) => Err(mistake.what),
        Err(other) => panic!("{other}"),
    }
}

/// What is written of a run file after it has been read, and what `wireloom status` says of it; `None` when it cannot
/// be read.
#[must_use]
pub fn run_file(text: &[u8]) -> Option<(Vec<u8>, Vec<String>)> {
    let agent: RunFile = serde_json::from_slice(text).ok()?;
    let mut said: Vec<String> = agent.warnings(1).map(|warning| warning.to_string()).collect();
    said.extend(agent.membership(0));
    said.extend(agent.probed().keys().map(ToString::to_string));
    Some((serde_json::to_vec(&agent).expect("what was read can be written"), said))
}

/// The key in a private key's file, in base64; `None` when there is no file.
///
/// # Errors
/// What the operator is told.
pub fn private_key(path: &Path) -> Result<Option<String>, String> {
    let key = key_file::read(path).map_err(|error| error.to_string())?;
    Ok(key.map(|key| key.expose_base64().to_string()))
}

/// The key in a preshared key's file, in base64.
///
/// # Errors
/// What the operator is told.
pub fn preshared_key(path: &Path) -> Result<String, String> {
    let key = key_file::read_preshared(path).map_err(|error| error.to_string())?;
    Ok(key.expose_base64().to_string())
}
