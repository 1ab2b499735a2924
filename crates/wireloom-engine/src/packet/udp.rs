//! UDP (RFC 768).

/// The header's length, in bytes.
pub(crate) const HEADER_LEN: usize = 8;

/// Offsets of fields in the header.
pub(crate) const LENGTH: usize = 4;
pub(crate) const CHECKSUM: usize = 6;
