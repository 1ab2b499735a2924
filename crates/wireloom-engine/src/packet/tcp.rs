//! TCP (RFC 9293, section 3.1).

/// The shortest header, in bytes.
pub(crate) const HEADER_LEN: usize = 20;

/// Offsets of fields in the header. The high half of the byte at `DATA_OFFSET` is the header's length in words of 4
/// bytes; the low half is reserved.
pub(crate) const SEQUENCE: usize = 4;
pub(crate) const DATA_OFFSET: usize = 12;
pub(crate) const FLAGS: usize = 13;
pub(crate) const CHECKSUM: usize = 16;

bitflags::bitflags! {
    /// The flags in the byte at [`FLAGS`] that mean something here. The byte may have others, too.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(crate) struct Flags: u8 {
        const FIN = 0x01;
        const PSH = 0x08;
        const ACK = 0x10;
        const CWR = 0x80;
        const _ = !0;
    }
}

/// The length of a header of at least [`HEADER_LEN`] bytes, in bytes, as it claims.
pub(crate) fn header_len(header: &[u8]) -> usize {
    usize::from(header[DATA_OFFSET] >> 4) * 4
}
