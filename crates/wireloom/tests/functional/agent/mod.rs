//! The agent on the nodes of a mesh.

mod borrowed;
mod broken;
mod bypass;
mod endpoints;
mod felix;
mod guard;
mod holdback;
mod host_mode;
pub(crate) mod instances;
pub(crate) mod matrix;
pub(crate) mod membership;
mod metrics;
#[cfg(feature = "slow")]
mod migration;
mod mtu;
pub(crate) mod ownership;
mod preshared;
mod proofs;
mod records;
mod repair;
mod reports;
pub(crate) mod restart;
pub(crate) mod rules;
mod stores;
pub(crate) mod survival;
mod trouble;
pub(crate) mod upgrade;
mod upkeep;
mod watching;
