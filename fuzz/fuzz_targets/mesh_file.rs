//! `mesh.toml`: whatever the text, it is a mesh or an error that says what is wrong, and nothing panics.
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
