//! `mesh.toml`: any text at all is a mesh, or a mistake that says how to fix it; never a panic.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use wireloom_membership::{config_file::TomlFile, file};

fuzz_target!(|text: &str| {
    let toml = TomlFile::from_text(Path::new("mesh.toml"), text);
    match file::parse(&toml) {
        Ok(cluster) => assert!(!cluster.nodes.is_empty()),
        Err(mistake) => assert!(!mistake.what.is_empty()),
    }
});
