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
//! Pure: the source lists and watches the objects, and hands them over as JSON.

mod affinity;
mod annotations;
mod felix;
mod group;
mod hash;
mod own;
mod pool;
#[cfg(test)]
mod tests;

pub(crate) use self::{
    affinity::{Block, blocks_of},
    annotations::{Annotations, PUBLIC_KEY},
    felix::{NODES_MAX, guests},
    group::{Group, Migration, chosen},
    hash::selector,
    own::Blocks,
    pool::pools,
};
