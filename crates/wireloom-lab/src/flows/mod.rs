//! The flow table: who reaches whom in a Kubernetes cluster, and what the network between the nodes sees of it.
//!
//! ```text
//!  node-a             node-b            node-c            outside
//!   pod-a, pod-a2      pod-b             pod-c             (no node)
//!   server-a           server-b          server-c
//! ```
//!
//! A *flow* says who calls whom: a pod, a node or a machine outside calls a pod, a service, a node port, a host port
//! or a node. A *cell* is a flow over one family and one protocol. Each has its promise.
//!
//! - `cast`: the pods and services, and the ports that they use. `manifest` writes them for `kubectl apply`.
//! - `testbed`: what measuring needs to know of the running cluster.
//! - `flow`: the rows of the table; `column`: protocol and family. `promise` says what is expected of them.
//! - `call`: one request and its answer. `mark` finds its packets on the underlay.
//! - `table` measures and judges all cells, `report` prints them.

mod call;
mod cast;
mod column;
mod flow;
mod manifest;
mod mark;
mod promise;
mod report;
mod situation;
mod table;
mod testbed;

pub use self::{
    cast::{HEADLESS, NODES, PODS, Pod, SERVICES, Service, ServiceKind},
    column::{Column, Protocol},
    flow::{FLOWS, Flow, Group},
    manifest::manifest,
    situation::Situation,
    table::{FlowTable, Measured, Verdict},
    testbed::Testbed,
};
