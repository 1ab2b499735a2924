//! A network laboratory on one machine: nodes, pods and the network between them, each in namespaces of its own.
//!
//! ```text
//!  ┌ node-a ────────────────────┐               ┌ node-b ────────────────────┐
//!  │ pod-1 ── cni0        eth0 ─┼── underlay ───┼─ eth0        cni0 ── pod-1 │
//!  │ 10.161.1.2     192.168.1.1 │               │ 192.168.1.2     10.161.2.2 │
//!  └────────────────────────────┘               └────────────────────────────┘
//! ```
//!
//! Functional tests, the tunnel bench and `wireloom-demo` are built on it. It needs no privileges: an ordinary user
//! becomes root of a user namespace first ([`become_root`]).
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
//! | folder | holds |
//! |---|---|
//! | `network` | the machines: [`Lab`] builds them and takes them down, [`Node`] is one of them, [`Place`] is where traffic starts or ends |
//! | `programs` | what runs on the nodes: [`agent`] and its files ([`mesh`]), [`routing`] daemons, the configurations that the [`guide`] shows |
//! | `scenarios` | laboratories with programs already running: routers on one [`Link`], the [`unscoped`] rule of Calico issue #9751 |
//! | `traffic` | measuring: [`Capture`] sees what crosses the underlay, [`probe()`] makes one exchange, [`Matrix`] probes every pair, [`Pinger`] and [`Stream`] run while things change |

mod error;
mod network;
mod programs;
mod root;
mod scenarios;
mod tools;
mod traffic;
mod wait;

pub use self::{
    error::{Error, Result},
    network::{Addresses, FAMILIES, Holder, Lab, Layout, Node, Place, Space},
    programs::{agent, guide, mesh, routing},
    root::become_root,
    scenarios::{Link, Topology, unscoped},
    tools::require,
    traffic::{
        Capture, Cell, Content, Direction, Matrix, Measurement, Packet, PingReport, Pinger, Promise, Stream,
        StreamReport, Wire,
        probe::{self, probe},
    },
    wait::{PATIENCE, at_this_pace, until},
};
