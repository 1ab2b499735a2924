//! How an agent's echo requests, with which it probes paths, are recognised by the device that sends them.

/// Bytes of the header of an ICMP or ICMPv6 echo request (RFC 792, RFC 4443 section 4.1).
pub const HEADER: usize = 8;

/// The data of the request begins with this. The device sends the encrypted packet unfragmented or not at all, so that
/// a reply says that the path carries it.
pub const DATA: [u8; 16] = *b"wireloom: path? ";
