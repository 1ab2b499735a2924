//! `mesh.toml`: any text at all is a mesh or a mistake with its mend, never a panic.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use wireloom_membership::{file, mistake::TomlFile};

fuzz_target!(|text: &str| {
    let toml = TomlFile::from_text(Path::new("mesh.toml"), text);
    match file::parse(&toml) {
        Ok(cluster) => assert!(!cluster.nodes.is_empty()),
        Err(mistake) => assert!(!mistake.what.is_empty()),
    }
});
