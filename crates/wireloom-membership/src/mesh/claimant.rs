//! Who claims something, and what decides between several who do.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use wireloom_plan::cluster::{Cluster, Node};
use wireloom_types::PublicKey;

/// A node and what it claims.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claimant<'a> {
    pub(super) name: &'a str,
    pub(super) node: &'a Node,
    pub(super) standing: Standing,
    /// When its record was made ([`crate::store::Object::born`]).
    pub(super) born: u64,
}

/// How a node is known; whose claims come first is first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// By a record in the store.
    Present,
    /// Otherwise than by a record.
    Guest,
    /// By a record that has vanished.
    Vanished,
}

/// What decides between claims, besides the claimants.
pub(super) struct Rules<'a> {
    /// The mesh as it was delivered last.
    pub(super) before: &'a Cluster,
    pub(super) pools: &'a BTreeSet<IpNet>,
    /// The node that the store says to have claimed a key first.
    pub(super) key_claims: &'a BTreeMap<PublicKey, String>,
    /// The addresses of the store's own machines.
    pub(super) protected: &'a BTreeSet<IpAddr>,
    /// Whether a single address may lie inside another node's block, if it is in a pool.
    pub(super) borrowing: bool,
}

impl<'a> Claimant<'a> {
    /// Who of several is first gets what they claim.
    pub(super) fn rank(&self, is_established: bool) -> (Standing, bool, u64, &'a str) {
        (self.standing, !is_established, self.born, self.name)
    }
}
