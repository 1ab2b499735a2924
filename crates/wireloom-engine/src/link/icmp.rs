//! ICMP errors about packets that go no further (RFC 792, RFC 4443), so that applications learn at once.

use std::{net::IpAddr, time::Duration};

use wireloom_proto::{Instant, inner};
use wireloom_types::LinkAddress;

use super::{
    frame::{self, Header},
    ip,
};

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is no way to the destination (host, or address, unreachable: `EHOSTUNREACH`).
    Unreachable,
    /// It is longer than this many bytes and may not be fragmented.
    TooBig(u16),
}

/// Writes the frame that reports trouble with a packet to its sender, as if from its destination, by way
/// of the peer `from`. Returns false, and writes nothing, when the rules forbid it: no errors about
/// errors, about later fragments, about what goes to many, or to nobody (RFC 1122, section 3.2.2;
/// RFC 4443, section 2.4).
pub(super) fn report(
    trouble: Trouble,
    packet: &[u8],
    from: LinkAddress,
    to: LinkAddress,
    out: &mut Vec<u8>,
) -> bool {
    let Ok(inner::Packet { source, destination, len }) = inner::Packet::parse(packet) else { return false };
    let packet = &packet[..len];
    let one = |address: IpAddr| {
        let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
        !address.is_unspecified() && !address.is_multicast() && !address.is_loopback() && !broadcast
    };
    if !one(source) || !one(destination) {
        return false;
    }
    let header = |kind| Header { destination: to, source: from, kind }.to_bytes();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            if is_v4_error_or_fragment(packet) {
                return false;
            }
            let quoted = &packet[..len.min(V4_QUOTED_MAX)];
            // Type, code, checksum, and what depends on the type.
            let mut start = match trouble {
                Trouble::Unreachable => [3, 1, 0, 0, 0, 0, 0, 0],
                Trouble::TooBig(mtu) => {
                    let [high, low] = mtu.to_be_bytes();
                    [3, 4, 0, 0, 0, 0, high, low]
                }
            };
            let sum = ip::checksum(&[&start, quoted]).to_be_bytes();
            start[2..4].copy_from_slice(&sum);
            out.extend(header(frame::IPV4));
            let payload = start.len() + quoted.len();
            out.extend(ip::v4_header(ip::ICMP, destination.octets(), source.octets(), payload));
            out.extend(start);
            out.extend(quoted);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let error = |message: &[u8]| message.first().is_none_or(|kind| *kind < 128 || *kind == 137);
            if ip::icmpv6(packet).is_some_and(error) {
                return false;
            }
            let quoted = &packet[..len.min(V6_QUOTED_MAX)];
            let start = match trouble {
                Trouble::Unreachable => [1, 3, 0, 0, 0, 0, 0, 0],
                Trouble::TooBig(mtu) => {
                    let [high, low] = mtu.to_be_bytes();
                    [2, 0, 0, 0, 0, 0, high, low]
                }
            };
            let ip = ip::v6_header(destination.octets(), source.octets(), start.len() + quoted.len());
            out.extend(header(frame::IPV6));
            out.extend(ip);
            let message = out.len();
            out.extend(start);
            out.extend(quoted);
            ip::sum_icmpv6(&ip, &mut out[message..]);
        }
        _ => return false,
    }
    true
}

/// An error has at most 576 bytes (RFC 1812, section 4.3.2.3).
const V4_QUOTED_MAX: usize = 576 - ip::V4_HEADER - 8;
/// An error has at most 1280 bytes (RFC 4443, section 2.4).
const V6_QUOTED_MAX: usize = 1280 - ip::V6_HEADER - 8;

/// Whether an IPv4 packet, whose header is there, is a later fragment or an ICMP error.
fn is_v4_error_or_fragment(packet: &[u8]) -> bool {
    let offset = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff;
    let header = usize::from(packet[0] & 0xf) * 4;
    let error = || packet.get(header).is_none_or(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12));
    offset != 0 || packet[9] == ip::ICMP && error()
}

/// How many errors leave, whoever they are for: as many as the kernel's `icmp_msgs_per_sec` allows.
#[derive(Debug)]
pub(super) struct Limiter {
    /// When there would be a whole burst again.
    full_at: Instant,
}

const INTERVAL: Duration = Duration::from_millis(1);
const BURST: u32 = 250;

impl Default for Limiter {
    fn default() -> Self {
        Self { full_at: Instant::from_origin(Duration::ZERO) }
    }
}

impl Limiter {
    /// Whether one more may leave now; if so, it is counted.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.max(now);
        if full_at.since(now) > INTERVAL * (BURST - 1) {
            return false;
        }
        self.full_at = full_at + INTERVAL;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_a_thousand_a_second() {
        let mut limiter = Limiter::default();
        let at = |millis: u64| Instant::from_origin(Duration::from_millis(5_000 + millis));
        let allowed =
            |limiter: &mut Limiter, millis| (0..1000).filter(|_| limiter.allows(at(millis))).count();
        assert_eq!(allowed(&mut limiter, 0), 250);
        assert_eq!(allowed(&mut limiter, 0), 0);
        assert_eq!(allowed(&mut limiter, 10), 10);
        assert_eq!(allowed(&mut limiter, 60_000), 250);
    }
}
