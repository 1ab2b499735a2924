//! A network laboratory: nodes, pods and the network between them, as namespaces of this machine.
//!
//! ```text
//!              pod ── cni0 ┐                                  ┌ cni0 ── pod
//!   node-a     10.161.1.2  ├ eth0 ───── underlay ───── eth0 ┤  10.161.2.2     node-b
//!                          ┘ 192.168.1.1      192.168.1.2    └
//! ```
//!
//! - [`Lab`] builds it all and takes it all away: on drop, on panic, and when this process is killed.
//! - [`Node`] is a machine: own network, processes, `/run`, `/etc/wireloom` and `/var/lib/wireloom`. Its
//!   main table routes the other nodes' pods over the underlay, as a cluster's network plugin does.
//! - [`Place`] is where traffic starts or ends: a node's own network (the *host*) or a pod's.
//! - [`Capture`] sees what crosses the underlay: WireGuard, or plaintext.
//! - [`probe`] is one exchange between two places and what the capture saw of it; [`Matrix`] is a probe
//!   for every direction, pair of nodes and family; [`Pinger`] and [`Stream`] run while things change.
//! - [`mesh`] and [`agent`] write the files of a mesh and run `wireloom` on its nodes.
//! - [`Link`] makes the nodes routers on one common link, and [`routing`] runs daemons on them.
//!
//! Nothing here is unsafe or needs privileges on the machine itself: see [`become_root`].

pub mod agent;
mod capture;
pub mod control;
mod error;
pub mod guide;
mod layout;
mod link;
mod matrix;
pub mod mesh;
mod network;
mod node;
mod pinger;
pub mod probe;
mod root;
pub mod routing;
mod space;
mod stream;
mod tools;
pub mod unscoped;
mod wait;

pub use self::{
    capture::{Capture, Content, Packet},
    error::{Error, Result},
    layout::{Addresses, FAMILIES, Layout},
    link::{Link, Topology},
    matrix::{Direction, Matrix, Measurement, Promise},
    network::Lab,
    node::{Node, Place},
    pinger::{PingReport, Pinger},
    probe::{Cell, Wire, probe},
    root::become_root,
    space::{Holder, Space},
    stream::{Stream, StreamReport},
    tools::require,
    wait::{PATIENCE, at_this_pace, finish, until},
};
