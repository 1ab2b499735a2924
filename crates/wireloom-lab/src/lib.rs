//! A network laboratory on one machine: nodes, pods and the network between them, in namespaces.
//!
//! ```text
//!  ┌ node-a ────────────────────┐               ┌ node-b ────────────────────┐
//!  │ pod-1 ── cni0        eth0 ─┼── underlay ───┼─ eth0        cni0 ── pod-1 │
//!  │ 10.161.1.2     192.168.1.1 │               │ 192.168.1.2     10.161.2.2 │
//!  └────────────────────────────┘               └────────────────────────────┘
//! ```
//!
//! Functional tests, the program's benches and `wireloom-demo` are built on it. It needs no privileges: an ordinary
//! user becomes root of a user namespace first ([`become_root`]).
//!
//! ```no_run
//! use wireloom_lab::{Lab, Layout, Matrix, Promise};
//!
//! let lab = Lab::new(&Layout { nodes: 3, ..Layout::default() })?;
//! lab.nodes[0].run("ip route show")?;
//! let matrix = Matrix::measure(&lab)?;
//! assert!(matrix.broken(Promise::PLAINTEXT).is_empty());
//! # Ok::<(), wireloom_lab::Error>(())
//! ```
//!
//! - `network`: the machines. [`Lab`] builds them and takes them down, [`Node`] is one of them, [`Place`] is where
//!   traffic starts or ends (a node's own network or a pod's), [`Space`] runs work inside.
//! - `cluster`: a Kubernetes [`Cluster`] on such machines, and Wireloom on it as a [`DaemonSet`].
//! - `programs`: what runs on the nodes. A [`device`] and its hand-overs, the [`agent`] and the files that it reads
//!   ([`mesh`]), [`routing`] daemons, an imitation of Calico's [`felix`], and the configurations that the [`guide`] to
//!   link mode shows.
//! - `scenarios`: laboratories with programs already running. Routers on one [`Link`]; the [`unscoped`] rule of
//!   Calico issue #9751.
//! - `traffic`: measuring. [`Capture`] sees what crosses the underlay, [`probe()`] makes one exchange, [`Matrix`]
//!   probes every pair of nodes. [`Pinger`], [`Stream`] and [`Numbered`] datagrams run while something changes, and
//!   [`Nonces`] looks for nonces that are used twice.
//! - [`flows`]: who reaches whom in a Kubernetes cluster, encrypted or not. The program `wireloom-workload` answers.

mod cluster;
mod error;
pub mod flows;
mod network;
mod programs;
mod root;
mod scenarios;
mod tools;
mod traffic;
mod wait;

pub use self::{
    cluster::{
        Cluster, ClusterLayout, DaemonSet, PodNetwork, ProxyMode, WORKLOAD_IMAGE, WORKLOAD_PROGRAM,
        copy_manifests,
    },
    error::{Error, Result},
    network::{Addresses, FAMILIES, Holder, Lab, Layout, Node, Place, Space},
    programs::{agent, control, device, felix, guide, mesh, routing},
    root::become_root,
    scenarios::{Link, Topology, unscoped},
    tools::require,
    traffic::{
        Capture, Cell, Content, Direction, Matrix, Measurement, Noise, NonceReport, Nonces, Numbered,
        NumberedReport, Packet, PingReport, Pinger, Promise, Stream, StreamReport, Wire,
        probe::{self, probe},
    },
    wait::{PATIENCE, at_this_pace, finish, until},
};
