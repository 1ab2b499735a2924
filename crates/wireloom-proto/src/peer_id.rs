//! What peers are called inside a device.

/// A peer's name inside a device: cheap to copy and compare, never used again for another peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub(crate) u64);
