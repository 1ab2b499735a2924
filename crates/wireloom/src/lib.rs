//! The parts of the `wireloom` program.
//!
//! - `cli`: the commands. Those that do one thing and end are here whole.
//! - `agent`: the agent's thread, its events, and how it starts.
//! - `reconcile`: the agent's core, which observes, plans and applies, and knows no clock, thread or file.
//! - `config`: `agent.toml`. `key_file`: the private key. `run_file`: what the agent tells `wireloom status`.
//! - `metrics`: what the agent tells monitoring.

mod agent;
mod cli;
mod config;
mod key_file;
mod metrics;
mod reconcile;
mod run_file;

pub use self::cli::{command, main};
