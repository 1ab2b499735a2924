//! Membership from real etcd, in network namespaces that each test makes for itself.
//!
//! | module | proves |
//! |---|---|
//! | [`contract`] | what every store must do for an agent |
//! | [`records`] | that lists are whole, and that watches report everything in order, with etcd 3.6 and 3.4 |
//! | [`own_record`] | that no two nodes have the same key, and that a node takes along what is its own |
//! | [`credentials`] | TLS, certificates, users, and what is said when one of them is wrong |
//! | [`disturbances`] | that nothing is lost while members die, hang and return, and whom they return as |
//! | [`churn`] | that every agent has all of 200 nodes that come, change and go, while its watches are cut |
//! | [`scale`] | figures with 5,000 nodes |
//!
//! [`fixtures`] is what they are built with, and Kubernetes' churn too. No wait in them is without a bound and a
//! message.
//!
//! `cargo test --features functional` runs them, as root or not. They need Debian's `etcd-server` (3.4), and Go: the
//! first time, `scripts/etcd-program` compiles etcd 3.6.

mod churn;
mod contract;
mod credentials;
mod disturbances;
pub(crate) mod fixtures;
mod own_record;
mod records;
mod scale;
