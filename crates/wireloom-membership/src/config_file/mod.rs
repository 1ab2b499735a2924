//! The TOML files that operators write: reading them, naming the line of a mistake, and watching for changes.
//!
//! `mesh.toml` is one, the binary's `agent.toml` the other.

mod toml_file;
mod watch;

pub use self::{
    toml_file::{Mistake, TomlFile},
    watch::watch,
};
