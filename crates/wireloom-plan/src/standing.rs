//! Where this node stands with the others: from whom it expects encryption.

use std::collections::BTreeMap;

use serde::Serialize;
use wireloom_types::PublicKey;

/// The nodes of which this node has a proof, by name. A node that is absent is unproven: its workloads are direct, or
/// refused with [`UnprovenPeers::Reject`](crate::settings::UnprovenPeers::Reject).
pub type Standings = BTreeMap<String, Standing>;

/// What a node's proof means at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// The key that it proved. Of several nodes that claim this key, it is the one that has it.
    pub key: PublicKey,
    /// Traffic for its workloads is encrypted or refused.
    pub egress: bool,
    /// Traffic from its workloads is taken encrypted only.
    pub ingress: bool,
    /// It may not know yet that we are proven: keepalives tell it, one every three seconds.
    pub fresh: bool,
}
