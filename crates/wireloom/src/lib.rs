//! The parts of the `wireloom` program: the agent's loop, its settings, and the commands.

pub mod agent;
pub mod cli;
pub mod config;
pub mod key_file;
pub mod reconcile;
pub mod run_file;
