//! Routing loops: our own datagrams that routing sends back into the interface, when a peer's endpoint is routed to it.
//!
//! Each round would wrap the datagram once more and, beyond the MTU, double it: one ping becomes as many packets as the
//! processor can make. A route of some other peer's endpoint through the interface is no loop but a tunnel in a tunnel
//! (the kernel's `netns.sh` calls it onion routing), so a datagram is dropped only when its way closes.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use wireloom_proto::{Instant, PeerPath, message::DataHeader};

use crate::packet::{ip_version, ipv4, ipv6, protocol::UDP, read_u16, udp};

/// How long a way counts after a datagram was last seen on it. A loop takes far less for a round.
const WAY_LASTS: Duration = Duration::from_secs(1);
/// The most ways that are remembered. A loop of two or three peers has as many.
const WAYS_MAX: usize = 32;

/// The ways of our own datagrams through the interface, as all queues have seen them.
#[derive(Debug, Default)]
pub(crate) struct RoutingLoops {
    ways: Mutex<Vec<Way>>,
    said: AtomicBool,
}

/// A datagram to one endpoint went into a datagram to another one.
#[derive(Clone, Copy, Debug)]
struct Way {
    to: SocketAddr,
    by: SocketAddr,
    seen: Instant,
}

impl RoutingLoops {
    /// Whether a packet that is about to be sent to a peer is a datagram from our own `port` whose way leads to itself.
    #[inline]
    pub(super) fn close(&self, now: Instant, path: &PeerPath, packet: &[u8], port: u16) -> bool {
        data_message(packet, port).is_some_and(|(to, header)| self.way_closes(now, path, to, header))
    }

    #[cold]
    fn way_closes(&self, now: Instant, path: &PeerPath, to: SocketAddr, header: DataHeader) -> bool {
        let Some(by) = path.endpoint().map(|endpoint| endpoint.remote) else { return false };
        let closes = if by == to {
            // Somebody behind this machine may have a session of their own with the same peer, by the same port.
            path.sends_to(header.receiver)
        } else {
            self.is_on_a_ring(Way { to, by, seen: now })
        };
        if closes && !self.said.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "datagrams to {to} are routed into the interface that they come from, and dropped: route the peers' \
                 endpoints past it, or set fwmark and a rule for it"
            );
        }
        closes
    }

    /// Notes a way. Returns whether it leads from endpoint to endpoint back to its start.
    fn is_on_a_ring(&self, way: Way) -> bool {
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        ways.retain(|other| way.seen.since(other.seen) < WAY_LASTS && other.to != way.to);
        if ways.len() == WAYS_MAX {
            // The oldest one: others may come by all the time, and those of a loop come most often.
            ways.remove(0);
        }
        ways.push(way);
        let next = |at| ways.iter().find(|other| other.to == at).map(|other| other.by);
        let mut at = Some(way.by);
        for _ in 0..ways.len() {
            match at {
                Some(endpoint) if endpoint == way.to => return true,
                Some(endpoint) => at = next(endpoint),
                None => return false,
            }
        }
        at == Some(way.to)
    }
}

/// The destination and the header of a data message in a UDP packet from this port.
#[inline]
fn data_message(packet: &[u8], port: u16) -> Option<(SocketAddr, DataHeader)> {
    let (protocol, datagram, destination) = match ip_version(packet)? {
        4 => {
            let header = ipv4::Header::read(packet).filter(|header| !header.is_later_fragment())?;
            (header.protocol(), packet.get(header.len()..)?, ipv4::ADDRESSES.start + 4)
        }
        // A datagram that is longer than the interface's MTU comes in fragments, and the first one shows what it is.
        6 => {
            let (protocol, payload) = ipv6::payload(packet)?;
            (protocol, payload, ipv6::ADDRESSES.start + 16)
        }
        _ => return None,
    };
    if protocol != UDP || datagram.len() <= udp::HEADER_LEN || read_u16(datagram, 0) != port {
        return None;
    }
    let header = DataHeader::parse(&datagram[udp::HEADER_LEN..]).ok()?;
    let address = &packet[destination..];
    let address = if ip_version(packet) == Some(4) {
        IpAddr::from(*address.first_chunk::<4>()?)
    } else {
        IpAddr::from(*address.first_chunk::<16>()?)
    };
    Some((SocketAddr::new(address, read_u16(datagram, 2)), header))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 51820))
    }

    /// A UDP packet of that family whose payload begins like a data message.
    fn packet(is_v4: bool, from: u16) -> Vec<u8> {
        let mut packet = if is_v4 {
            ipv4::header(UDP, [192, 0, 2, 1], [192, 0, 2, 9], 40).to_vec()
        } else {
            let mut header = ipv6::icmpv6_header([1; 16], [9; 16], 40);
            header[6] = UDP;
            header.to_vec()
        };
        packet.extend([from.to_be_bytes(), 777_u16.to_be_bytes(), [0, 40], [0, 0]].concat());
        packet.extend([4, 0, 0, 0, 5, 0, 0, 0]);
        packet.extend([0; 24]);
        packet
    }

    #[test]
    fn a_data_message_from_our_port_is_recognised_in_both_families() {
        for (is_v4, to) in [(true, IpAddr::from([192, 0, 2, 9])), (false, IpAddr::from([9; 16]))] {
            let found = data_message(&packet(is_v4, 51820), 51820).expect("it is one");
            assert_eq!((found.0, found.1.receiver), (SocketAddr::new(to, 777), 5));
            assert!(data_message(&packet(is_v4, 51821), 51820).is_none(), "somebody else's");
            for len in 0..packet(is_v4, 51820).len() - 1 {
                let _ = data_message(&packet(is_v4, 51820)[..len], 51820);
            }
        }
    }

    #[test]
    fn a_first_fragment_is_recognised_and_a_later_one_is_not() {
        for (offset, is_found) in [(0, true), (8, false)] {
            let mut packet = packet(false, 51820);
            packet[6] = ipv6::FRAGMENT;
            packet.splice(ipv6::HEADER_LEN..ipv6::HEADER_LEN, [UDP, 0, 0, offset | 1, 0, 0, 0, 7]);
            assert_eq!(data_message(&packet, 51820).is_some(), is_found, "{offset}");
        }
    }

    #[test]
    fn a_way_that_leads_back_to_its_start_closes_and_a_tunnel_in_a_tunnel_does_not() {
        let loops = RoutingLoops::default();
        let way = |to, by, seconds| {
            let seen = Instant::from_origin(Duration::from_secs(seconds));
            loops.is_on_a_ring(Way { to: endpoint(to), by: endpoint(by), seen })
        };
        assert!(!way(1, 2, 10) && !way(2, 3, 10) && !way(1, 2, 10), "in a tunnel in a tunnel");
        assert!(way(3, 1, 10), "each in the next one");
        assert!(way(1, 2, 10) && way(2, 3, 10));
        assert!(!way(3, 4, 10) && !way(1, 2, 10), "the routes have changed");
        assert!(!way(3, 1, 20), "the other ways were left long ago");
        // However many there are, the check ends, and finds the ring among them.
        for last in 10..100 {
            assert!(!way(last, last + 1, 30));
        }
        assert!(!way(1, 2, 30) && way(2, 1, 30));
    }
}
