//! ICMP errors (RFC 792, RFC 4443) about packets that cannot be sent, so that applications learn of it at once.

use std::net::IpAddr;

use wireloom_proto::inner;
use wireloom_types::LinkAddress;

use crate::packet::{
    checksum::checksum,
    ethernet::{Header, kind},
    ipv4, ipv6,
    protocol::ICMP,
    write_u16,
};

/// What prevents a packet from being sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The destination cannot be reached: "host unreachable" or "address unreachable", which applications see as
    /// `EHOSTUNREACH`.
    Unreachable,
    /// The packet is longer than this many bytes and must not be fragmented.
    TooBig(usize),
}

/// The link addresses of an error that is sent as a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    /// Of the peer by way of which the error appears to come.
    pub(crate) from: LinkAddress,
    /// Of the packet's sender.
    pub(crate) to: LinkAddress,
}

/// Appends to `out` what reports a problem with a packet to its sender: a frame, in link mode, or a bare packet.
///
/// The error appears to come from the packet's destination. Whatever validates sources accepts it as it accepts
/// answers, and the sender looks only at the packet that is quoted.
///
/// Returns false, and writes nothing, when the standards forbid an error: about errors, later fragments, multicast and
/// broadcast, and packets from or to no single host (RFC 1122, section 3.2.2; RFC 4443, section 2.4).
pub(crate) fn report(problem: Problem, packet: &[u8], way: Option<Way>, out: &mut Vec<u8>) -> bool {
    let Ok(inner::Packet { source, destination, len }) = inner::Packet::parse(packet) else { return false };
    let packet = &packet[..len];
    let one_host = |address: IpAddr| {
        let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
        !address.is_unspecified() && !address.is_multicast() && !address.is_loopback() && !broadcast
    };
    if !one_host(source) || !one_host(destination) {
        return false;
    }
    let ethernet =
        |kind| way.map(|Way { from, to }| Header { destination: to, source: from, kind }.to_bytes());
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            if is_v4_error_or_later_fragment(packet) {
                return false;
            }
            let quoted = &packet[..len.min(V4_QUOTED_MAX)];
            // Type, code, checksum, and what depends on the type.
            let mut start = match problem {
                Problem::Unreachable => [3, 1, 0, 0, 0, 0, 0, 0],
                Problem::TooBig(mtu) => {
                    let [high, low] = (mtu as u16).to_be_bytes();
                    [3, 4, 0, 0, 0, 0, high, low]
                }
            };
            let sum = checksum(&[&start, quoted]);
            write_u16(&mut start, 2, sum);
            out.extend(ethernet(kind::IPV4).into_iter().flatten());
            let payload = start.len() + quoted.len();
            out.extend(ipv4::header(ICMP, destination.octets(), source.octets(), payload));
            out.extend(start);
            out.extend(quoted);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            // Errors have the types below 128; redirects, of type 137, are treated like errors.
            let error = |message: &[u8]| message.first().is_none_or(|kind| *kind < 128 || *kind == 137);
            if ipv6::icmpv6(packet).is_some_and(error) {
                return false;
            }
            let quoted = &packet[..len.min(V6_QUOTED_MAX)];
            let start = match problem {
                Problem::Unreachable => [1, 3, 0, 0, 0, 0, 0, 0],
                Problem::TooBig(mtu) => {
                    let [high, low] = (mtu as u16).to_be_bytes();
                    [2, 0, 0, 0, 0, 0, high, low]
                }
            };
            let payload = start.len() + quoted.len();
            let header = ipv6::icmpv6_header(destination.octets(), source.octets(), payload);
            out.extend(ethernet(kind::IPV6).into_iter().flatten());
            out.extend(header);
            let message = out.len();
            out.extend(start);
            out.extend(quoted);
            ipv6::fill_icmpv6_checksum(&header, &mut out[message..]);
        }
        _ => return false,
    }
    true
}

/// An error has at most 576 bytes (RFC 1812, section 4.3.2.3).
const V4_QUOTED_MAX: usize = 576 - ipv4::HEADER_LEN - 8;
/// An error has at most 1280 bytes (RFC 4443, section 2.4).
const V6_QUOTED_MAX: usize = 1280 - ipv6::HEADER_LEN - 8;

/// Whether an IPv4 packet with a whole header is a later fragment or an ICMP error.
fn is_v4_error_or_later_fragment(packet: &[u8]) -> bool {
    let Some(header) = ipv4::Header::read(packet) else { return false };
    let error = || packet.get(header.len()).is_none_or(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12));
    header.is_later_fragment() || header.protocol() == ICMP && error()
}
