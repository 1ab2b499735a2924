//! Wireloom on a real Kubernetes cluster, which the laboratory builds: `scripts/test-kubernetes`.
//!
//! - `flows`: who reaches whom, and what the network between the nodes sees of it.
//! - `disturbances`: what a rollout, a killed container and a lost node cost.
//! - `manifests`: the Helm chart installs what kustomize does; whom the admission policy refuses.
//! - `fleet`: installed, joined, left and uninstalled with nothing written by hand, under pings of which none is lost.
//! - `metrics`: what `fleet` installs serves metrics at the nodes' addresses.
//! - `felix`: keys shared with Calico's Felix, with the rights of the component for that.
//! - `token`: tokens that expire, for 12 minutes (with the feature `soak`).
//! - `removal`: the mesh from a file; `remove.yaml` leaves nothing behind on the nodes.
//! - `demo`: `wireloom-demo kubernetes`, left up to look around, killed and interrupted.
//! - `cluster`: the cluster itself comes and goes without a trace.
//! - `image`: the image is the same, byte for byte, whenever it is made.
//!
//! They need root, Go, and what the script installs. What they measure is part of their output.

mod cluster;
mod demo;
mod disturbances;
mod felix;
mod fixtures;
mod fleet;
mod flows;
mod image;
mod manifests;
mod metrics;
mod pings;
mod removal;
#[cfg(feature = "soak")]
mod token;
