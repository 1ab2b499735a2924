//! The binary's parts, as a library so that the functional tests can use the laboratory.

pub mod cli;
pub mod config;
pub mod lab;
pub mod membership;
pub mod mistake;
