//! Calico: pools, blocks and tunnel addresses of a cluster whose pods get their addresses from Calico's IPAM, and the
//! keys that its Felix publishes.
//!
//! ```text
//!  IPPool ─────────────────────▶ pools ───────────▶ the mesh's pools
//!  BlockAffinity ──────────────▶ blocks ──────────▶ this node's workloads ─┐
//!  Node (annotations) ─────────▶ tunnel addresses ─────────────────────────┴▶ this node's record
//!  Node, BlockAffinity of all ─▶ records of nodes that Felix encrypts for ──▶ the mesh's nodes (`felix_peers`)
//!  DatastoreMigration ─────────▶ which of Calico's two API groups counts
//! ```
//!
//! What the objects mean is pure. `objects` lists and watches them, `handlers` tells the source what they mean,
//! `key_annotation` writes this node's key where Felix looks for it.

mod affinity;
mod annotations;
mod felix;
mod followed;
mod group;
mod handlers;
mod hash;
mod key_annotation;
mod objects;
mod own;
mod pool;
#[cfg(test)]
mod tests;

pub(crate) use self::{followed::followed, handlers::Own};
