//! The binary's parts, as a library so that the functional tests can use the laboratory.

pub mod agent;
pub mod cli;
pub mod config;
pub mod kernel;
pub mod key_file;
pub mod lab;
pub mod membership;
pub mod mistake;
pub mod reconcile;
pub mod run_file;
pub mod state;
pub mod watch;
pub mod wording;
