//! What the packets of one cell are recognised by on the underlay, while many cells are measured at a time.
//!
//! - *By length.* Requests and answers of a cell have a length that no other cell has at that time. It is all that
//!   an encrypted packet shows. Handshakes and acknowledgements of TCP, WireGuard's handshakes and keepalives, and a
//!   cluster's own traffic do not count: they are shorter, or not encrypted, or use other ports.
//! - *By the client's port*, in plaintext. It finds the TCP handshakes of connections that carry nothing, too. A
//!   masquerading node may change it, so there the length has to do, together with a port of a server. It may even
//!   change it to a port of another cell (kube-proxy leaves the choice to chance): what goes to and fro with the length
//!   of one cell is not another's, whatever its ports.
//!
//! So of a TCP connection that never opens, what went through the tunnel is not seen.

use std::{
    net::IpAddr,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use wireloom_plan::routing::Family;

use super::{
    cast::is_server_port,
    column::{Column, Protocol},
};
use crate::{Content, Packet, Wire, traffic::probe::LENGTHS};

/// WireGuard pads what it encrypts to a multiple of 16 bytes.
const PADDING: usize = 16;

/// The least length of an IP packet with a request or an answer, in bytes.
const SHORTEST: usize = 320;

/// How many cells can be told apart at a time: as many as there are lengths.
pub(super) const AT_A_TIME: usize = LENGTHS;

/// Ports that nobody else uses: below those of node ports (30000) and of connections that choose none (32768).
const CLIENT_PORTS: Range<u16> = 20_000..30_000;

/// How many ports a cell has: one for each call that it may make.
const CALLS: usize = 5;

/// How many marks there are before they repeat: a multiple of [`AT_A_TIME`], so that [`AT_A_TIME`] marks in a row
/// have different lengths, even where they wrap around.
const MARKS: usize = 35 * AT_A_TIME;

const _: () = assert!(MARKS * CALLS <= (CLIENT_PORTS.end - CLIENT_PORTS.start) as usize);

/// What the packets of one cell are recognised by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    number: usize,
    column: Column,
}

impl Mark {
    /// Marks for cells in these columns, at most [`AT_A_TIME`], which can be told apart while all of them are in use.
    pub(super) fn several(columns: impl ExactSizeIterator<Item = Column>) -> impl Iterator<Item = Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        debug_assert!(columns.len() <= AT_A_TIME, "more marks than lengths");
        let first = NEXT.fetch_add(columns.len(), Ordering::Relaxed);
        (first..).zip(columns).map(|(n, column)| Self { number: n % MARKS, column })
    }

    pub(super) fn protocol(self) -> Protocol {
        self.column.protocol
    }

    /// The client's port for the call of this index.
    pub(super) fn port(self, call: usize) -> u16 {
        debug_assert!(call < CALLS, "more calls than ports");
        CLIENT_PORTS.start + (CALLS * self.number + call) as u16
    }

    /// The length of a request and of its answer, in bytes.
    pub(super) fn payload(self) -> usize {
        let ip = if self.column.family == Family::V4 { 20 } else { 40 };
        let transport = match self.column.protocol {
            // With the timestamps option (RFC 7323), which Linux sends by default.
            Protocol::Tcp => 20 + 12,
            Protocol::Udp => 8,
        };
        self.length() - ip - transport
    }

    /// What the underlay saw of the cell.
    pub(super) fn wire(self, packets: &[Packet]) -> Wire {
        let direct =
            packets.iter().any(|packet| self.is_plaintext(packet) && !self.is_of_another(packet, packets));
        let encrypted = packets.iter().any(|packet| self.is_encrypted(packet));
        match (encrypted, direct) {
            (true, true) => Wire::Both,
            (true, false) => Wire::Encrypted,
            (false, true) => Wire::Direct,
            (false, false) => Wire::Nothing,
        }
    }

    /// The length of the IP packet with a request or an answer, in bytes: from 320 to 1,200, a multiple of
    /// [`PADDING`]. That is longer than handshakes, shorter than every MTU.
    fn length(self) -> usize {
        SHORTEST + PADDING * (self.number % AT_A_TIME)
    }

    /// Whether this packet belongs to the cell and everybody can read it.
    fn is_plaintext(self, packet: &Packet) -> bool {
        let ports = match (self.column.protocol, &packet.content) {
            (Protocol::Tcp, Content::Tcp { source, destination })
            | (Protocol::Udp, Content::Udp { source, destination }) => [*source, *destination],
            _ => return false,
        };
        // Without the timestamps option a TCP segment is 12 bytes shorter: less than the padding.
        let has_length = packet.length.next_multiple_of(PADDING) == self.length();
        ports.iter().any(|port| self.ports().contains(port) || has_length && is_server_port(*port))
    }

    /// Whether a request or an answer of another cell has the same ends as this packet.
    fn is_of_another(self, packet: &Packet, packets: &[Packet]) -> bool {
        let ends = ends(packet);
        packets.iter().any(|other| {
            let length = other.length.next_multiple_of(PADDING);
            length >= SHORTEST && length != self.length() && self::ends(other) == ends
        })
    }

    /// Whether this is a WireGuard data message with a request or an answer inside: a header of 16 bytes, the packet,
    /// and a tag of 16 bytes.
    fn is_encrypted(self, packet: &Packet) -> bool {
        packet.content == Content::WireGuard { message: 4, length: 16 + self.length() + 16 }
    }

    fn ports(self) -> Range<u16> {
        self.port(0)..self.port(0) + CALLS as u16
    }
}

/// The protocol and the ends of a connection or an exchange in plaintext, in either direction.
fn ends(packet: &Packet) -> Option<(Protocol, [(IpAddr, u16); 2])> {
    let (protocol, source, destination) = match packet.content {
        Content::Tcp { source, destination } => (Protocol::Tcp, source, destination),
        Content::Udp { source, destination } => (Protocol::Udp, source, destination),
        _ => return None,
    };
    let mut ends = [(packet.source, source), (packet.destination, destination)];
    ends.sort_unstable();
    Some((protocol, ends))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::Ipv4Addr};

    use super::*;

    fn packet(length: usize, content: Content) -> Packet {
        let [source, destination] = [1, 2].map(|n| Ipv4Addr::new(192, 168, 1, n).into());
        Packet { source, destination, length, content }
    }

    fn data(length: usize) -> Packet {
        packet(60 + length, Content::WireGuard { message: 4, length })
    }

    fn mark() -> Mark {
        Mark { number: 3, column: Column { protocol: Protocol::Tcp, family: Family::V4 } }
    }

    #[test]
    fn marks_that_are_in_use_together_have_different_lengths_and_ports() {
        let marks = || (0..MARKS).map(|number| Mark { number, ..mark() });
        let twice: Vec<_> = marks().chain(marks()).collect();
        for together in twice.windows(AT_A_TIME) {
            let lengths: BTreeSet<_> = together.iter().map(|mark| mark.length()).collect();
            assert_eq!(lengths.len(), AT_A_TIME);
        }
        let ports: BTreeSet<_> = marks().flat_map(Mark::ports).collect();
        assert_eq!(ports.len(), MARKS * CALLS);
        assert!(ports.iter().all(|port| CLIENT_PORTS.contains(port) && !is_server_port(*port)));
    }

    #[test]
    fn an_encrypted_packet_is_found_by_its_length_alone() {
        let mark = mark();
        assert_eq!(mark.payload() + 20 + 32, mark.length());
        assert_eq!(mark.wire(&[data(mark.length() + 32)]), Wire::Encrypted);
        // A keepalive, a handshake, and another cell.
        let handshake = packet(176, Content::WireGuard { message: 1, length: 148 });
        assert_eq!(mark.wire(&[data(32), handshake, data(mark.length() + 48)]), Wire::Nothing);
    }

    #[test]
    fn plaintext_is_found_by_the_clients_port_or_by_length_and_server() {
        let mark = mark();
        let tcp = |length, source, destination| packet(length, Content::Tcp { source, destination });
        let handshake = tcp(60, 8080, mark.port(4));
        let without_timestamps = tcp(mark.length() - 12, 61000, 30082);
        assert_eq!(mark.wire(&[handshake]), Wire::Direct);
        assert_eq!(mark.wire(&[without_timestamps.clone(), data(32)]), Wire::Direct);
        assert_eq!(mark.wire(&[without_timestamps, data(mark.length() + 32)]), Wire::Both);
        // The API server, another cell, another protocol.
        let others = [
            tcp(mark.length(), 61000, 6443),
            tcp(mark.length() + 16, 61000, 8080),
            packet(mark.length(), Content::Udp { source: mark.port(0), destination: 8080 }),
        ];
        assert_eq!(mark.wire(&others), Wire::Nothing);
    }

    #[test]
    fn a_connection_that_masquerading_gave_a_port_of_the_cell_is_another_cells() {
        let mark = mark();
        let syn = packet(60, Content::Tcp { source: mark.port(0), destination: 8080 });
        let answer = |length| Packet {
            source: syn.destination,
            destination: syn.source,
            ..packet(length, Content::Tcp { source: 8080, destination: mark.port(0) })
        };
        assert_eq!(mark.wire(&[syn.clone(), answer(mark.length())]), Wire::Direct);
        assert_eq!(mark.wire(&[syn.clone(), answer(mark.length() + 16)]), Wire::Nothing);
        // From another client, or by UDP.
        let elsewhere = packet(mark.length() + 16, Content::Tcp { source: 8080, destination: mark.port(0) });
        let udp = Packet { content: Content::Udp { source: 8080, destination: mark.port(0) }, ..answer(600) };
        assert_eq!(mark.wire(&[syn, elsewhere, udp]), Wire::Direct);
    }
}
