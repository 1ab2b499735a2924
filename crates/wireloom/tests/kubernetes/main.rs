//! Wireloom on a real Kubernetes cluster, which the laboratory builds: `scripts/test-kubernetes`.
//!
//! - `flows`: who reaches whom, and what the network between the nodes sees of it.
//! - `disturbances`: what a rollout, a killed container and a lost node cost.
//! - `cluster`: the cluster itself comes and goes without a trace.
//! - `image`: the image is the same, byte for byte, whenever it is made.
//!
//! They need root, Go, and what the script installs. What they measure is part of their output.

mod cluster;
mod disturbances;
mod fixtures;
mod flows;
mod image;
