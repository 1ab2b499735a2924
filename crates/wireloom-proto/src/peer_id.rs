//! Identifiers of peers.

/// Identifies a peer within its device. Cheap to copy and compare; a removed peer's identifier is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub(crate) u64);
