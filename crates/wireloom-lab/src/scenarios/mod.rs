//! Laboratories with programs already running on the nodes.

mod link;
pub mod unscoped;

pub use self::link::{Link, Topology};
