//! Which packets are longer than the path to their peer carries.

use std::net::SocketAddr;

use wireloom_proto::{
    Instant, PeerPath,
    message::{DATA_OVERHEAD, PADDING},
};

use crate::packet::{ip_version, ipv4, ipv6, udp};

/// The length in bytes of the longest packet that the path to a peer carries, if this packet exceeds it and must not be
/// fragmented. The packet's segments are up to `longest` bytes long; `mtu` is the interface's, in bytes.
#[inline]
pub(crate) fn room_exceeded(
    path: &PeerPath,
    now: Instant,
    packet: &[u8],
    longest: usize,
    mtu: usize,
) -> Option<usize> {
    // For most peers there is nothing more to do.
    let path_mtu = path.path_mtu(now)?;
    let is_v6 = ip_version(packet)? == 6;
    let may_be_fragmented = !is_v6 && !ipv4::Header::read(packet)?.dont_fragment();
    let payload = path_mtu.saturating_sub(outer_headers(path.endpoint()?.remote) + DATA_OVERHEAD);
    // A packet as long as the interface's MTU is not padded.
    let room = if payload >= mtu { mtu } else { payload - payload % PADDING };
    // Every IPv6 link carries packets of the minimum MTU, so a "packet too big" may not name less.
    let room = if is_v6 { room.max(ipv6::MTU_MIN) } else { room };
    (longest > room && !may_be_fragmented).then_some(room)
}

/// The length of the outer headers of a datagram to this endpoint, in bytes.
pub(crate) fn outer_headers(remote: SocketAddr) -> usize {
    udp::HEADER_LEN + if remote.is_ipv4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN }
}
