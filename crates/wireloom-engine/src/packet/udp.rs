//! UDP (RFC 768).

use super::{MAX_PACKET, ipv4};

/// The header's length, in bytes.
pub(crate) const HEADER_LEN: usize = 8;

/// The longest payload over IPv4, in bytes: 65,507. One send takes no more, even when segmentation offload splits it.
pub(crate) const PAYLOAD_MAX: usize = MAX_PACKET - ipv4::HEADER_LEN - HEADER_LEN;

/// Offsets of fields in the header.
pub(crate) const LENGTH: usize = 4;
pub(crate) const CHECKSUM: usize = 6;
