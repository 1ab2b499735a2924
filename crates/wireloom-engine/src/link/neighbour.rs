//! Answers to the network stack's questions for link addresses, and corrections of earlier answers: ARP (RFC 826) and
//! neighbour discovery (RFC 4861).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wireloom_types::LinkAddress;

use crate::packet::{
    ethernet::{Header, kind},
    ipv6,
};

/// The ICMPv6 types of questions and answers that must not leave the link. Router solicitations (133) and
/// advertisements (134) are not among them: they are sent to the peers.
pub(super) const NEIGHBOUR_TYPES: std::ops::RangeInclusive<u8> = SOLICITATION..=ADVERTISEMENT;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Would tell the stack to use another peer.
pub(super) const REDIRECT: u8 = 137;

/// A question for the link address of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    asker: IpAddr,
    /// Where the answer goes.
    asker_link: LinkAddress,
    pub(super) target: IpAddr,
}

impl Question {
    /// The question of an interface with this link address, when nobody knows which of its addresses asked: the
    /// link-local one that Linux makes of the link address. In IPv4 an answer counts whoever asked.
    pub(super) fn of_interface(own: LinkAddress, target: IpAddr) -> Self {
        let asker = if target.is_ipv6() { own.link_local().into() } else { Ipv4Addr::UNSPECIFIED.into() };
        Self { asker, asker_link: own, target }
    }
}

/// The question in a frame that carries ARP or neighbour discovery, if it is one.
pub(super) fn question(header: Header, packet: &[u8]) -> Option<Question> {
    if header.kind == kind::ARP {
        arp_question(header, packet)
    } else {
        solicited(header, packet, ipv6::icmpv6(packet)?)
    }
}

/// The question in an ARP packet. `None` when it is not a request, and for probes and announcements of the sender's own
/// address (RFC 5227): nobody on this link may contest an address of this machine.
fn arp_question(header: Header, packet: &[u8]) -> Option<Question> {
    /// Ethernet, IPv4, the lengths of their addresses, request.
    const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
    let packet: &[u8; ARP_LEN] = packet.first_chunk()?;
    let asker = v4(packet, 14);
    let target = v4(packet, 24);
    let asks = packet[..8] == REQUEST && !asker.is_unspecified() && asker != target;
    asks.then_some(Question { asker: asker.into(), asker_link: header.source, target: target.into() })
}

/// The question in an IPv6 packet with this ICMPv6 message. `None` when it is not a solicitation, and for duplicate
/// address detection, which has the unspecified source address (RFC 4862, section 5.4.2).
fn solicited(header: Header, packet: &[u8], message: &[u8]) -> Option<Question> {
    let asker = v6(packet.get(8..)?)?;
    let target = v6(message.get(8..)?)?;
    let asks = message[0] == SOLICITATION && !asker.is_unspecified() && !target.is_multicast();
    asks.then_some(Question { asker: asker.into(), asker_link: header.source, target: target.into() })
}

/// Appends to `out` the frame that answers a question: the target has the link address `location`.
pub(super) fn answer(question: &Question, location: LinkAddress, out: &mut Vec<u8>) {
    let to = question.asker_link;
    match (question.asker, question.target) {
        (IpAddr::V4(asker), IpAddr::V4(target)) => arp_reply((target, location), (asker, to), to, out),
        (IpAddr::V6(asker), IpAddr::V6(target)) => {
            let flags = Flags::ROUTER | Flags::SOLICITED | Flags::OVERRIDE;
            advertisement(target, location, flags, (asker, to), out);
        }
        _ => {}
    }
}

/// Appends to `out` the frame by which the target of a question asks the asker back, if there is one: it has the link
/// address `location`. In IPv6 that tells the stack where the target is, when it ignores answers because it has given
/// the target up (`ndisc_recv_na` in net/ipv6/ndisc.c; RFC 4861, section 7.2.3).
pub(super) fn ask_back(question: &Question, location: LinkAddress, out: &mut Vec<u8>) {
    if let (IpAddr::V6(asker), IpAddr::V6(target)) = (question.asker, question.target) {
        solicitation((target, location), (asker, question.asker_link), out);
    }
}

/// Appends to `out` the frame that tells the interface with the link address `to`, unasked, that the target has the
/// link address `location`. It updates entries of neighbour caches and creates none.
pub(super) fn announce(target: IpAddr, location: LinkAddress, to: LinkAddress, out: &mut Vec<u8>) {
    match target {
        // With both halves alike, the kernel accepts it even if it was told otherwise less than `locktime` ago
        // (`arp_is_garp` in net/ipv4/arp.c).
        IpAddr::V4(target) => arp_reply((target, location), (target, location), to, out),
        // RFC 4861, section 7.2.6.
        IpAddr::V6(target) => {
            let all_nodes = (ALL_NODES, LinkAddress::ALL_NODES);
            advertisement(target, location, Flags::ROUTER | Flags::OVERRIDE, all_nodes, out);
        }
    }
}

/// Appends an ARP reply, in a frame to `to`.
fn arp_reply(
    (sender, sender_link): (Ipv4Addr, LinkAddress),
    (target, target_link): (Ipv4Addr, LinkAddress),
    to: LinkAddress,
    out: &mut Vec<u8>,
) {
    out.extend(Header { destination: to, source: sender_link, kind: kind::ARP }.to_bytes());
    out.extend([0, 1, 8, 0, 6, 4, 0, 2]);
    out.extend(sender_link.to_bytes());
    out.extend(sender.octets());
    out.extend(target_link.to_bytes());
    out.extend(target.octets());
}

/// Appends a frame with a neighbour advertisement of the target.
fn advertisement(
    target: Ipv6Addr,
    location: LinkAddress,
    flags: Flags,
    (to, to_link): (Ipv6Addr, LinkAddress),
    out: &mut Vec<u8>,
) {
    let about = [ADVERTISEMENT, flags.bits(), TARGET_LINK_ADDRESS];
    neighbour_discovery(about, target, (target, location), (to, to_link), out);
}

/// Appends a frame with a neighbour solicitation of `from`, which asks after `to`.
fn solicitation(from: (Ipv6Addr, LinkAddress), to: (Ipv6Addr, LinkAddress), out: &mut Vec<u8>) {
    neighbour_discovery([SOLICITATION, 0, SOURCE_LINK_ADDRESS], to.0, from, to, out);
}

/// Appends a frame with a message of neighbour discovery about a target. The option has the sender's link address.
fn neighbour_discovery(
    [kind, flags, option]: [u8; 3],
    target: Ipv6Addr,
    (from, from_link): (Ipv6Addr, LinkAddress),
    (to, to_link): (Ipv6Addr, LinkAddress),
    out: &mut Vec<u8>,
) {
    let mut message = [0; DISCOVERY_LEN];
    message[0] = kind;
    message[4] = flags;
    message[8..24].copy_from_slice(&target.octets());
    message[24..26].copy_from_slice(&[option, 1]);
    message[26..].copy_from_slice(&from_link.to_bytes());
    let header = ipv6::icmpv6_header(from.octets(), to.octets(), message.len());
    ipv6::fill_icmpv6_checksum(&header, &mut message);
    out.extend(Header { destination: to_link, source: from_link, kind: kind::IPV6 }.to_bytes());
    out.extend(header);
    out.extend(message);
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const ARP_LEN: usize = 28;
/// The length of a solicitation or an advertisement with one option of 8 bytes.
const DISCOVERY_LEN: usize = 32;

bitflags::bitflags! {
    /// The flags of an advertisement (RFC 4861, section 4.4).
    #[derive(Clone, Copy)]
    struct Flags: u8 {
        /// Every peer may forward. Without this flag, the stack would remove default routes through it.
        const ROUTER = 0x80;
        const SOLICITED = 0x40;
        const OVERRIDE = 0x20;
    }
}
/// The types of the options with a link address: that of who sends a solicitation, and that of an advertisement's
/// target. Their lengths count in units of 8 bytes.
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;

fn v4(packet: &[u8; ARP_LEN], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3])
}

fn v6(bytes: &[u8]) -> Option<Ipv6Addr> {
    bytes.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets))
}
