//! The parts of the `wireloom` program.
//!
//! - `cli`: the commands. Those that do one thing and end are here whole.
//! - `agent`: the agent's thread, its events, and how it starts.
//! - `reconcile`: the agent's core, which observes, plans and applies, and knows no clock, thread or file.
//! - `config`: `agent.toml`. `key_file`: the private key. `run_file`: what the agent tells `wireloom status`.
//!   `instance_file`: what it tells the probes of its own pod.
//! - `log_output`: standard error, for the log of a process that must not wait for its reader.
//! - `supervisor`: `wireloom engine`, which runs the userspace device.
//! - `metrics`: what the agent tells monitoring.

mod agent;
mod cli;
mod config;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod instance_file;
mod key_file;
mod log_output;
mod metrics;
mod reconcile;
mod run_file;
mod supervisor;

pub use self::cli::{command, main};
