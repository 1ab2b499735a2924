//! Answers to the network stack's questions for link addresses, and news of them: ARP (RFC 826) and
//! neighbour discovery (RFC 4861).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wireloom_types::LinkAddress;

use super::{
    frame::{self, Header},
    ip,
};

/// Neighbour discovery's ICMPv6 types that mean something between neighbours only. Router solicitations
/// (133) and advertisements (134) are not among them: they cross the link.
pub(super) const NEIGHBOUR_TYPES: std::ops::RangeInclusive<u8> = SOLICITATION..=REDIRECT;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// Who asks for whose link address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    asker: IpAddr,
    /// Where the answer goes.
    pub(super) asker_link: LinkAddress,
    pub(super) target: IpAddr,
}

/// The question in a frame that carries ARP or neighbour discovery.
pub(super) fn question(header: Header, packet: &[u8]) -> Option<Question> {
    if header.kind == frame::ARP {
        arp_question(header, packet)
    } else {
        solicited(header, packet, ip::icmpv6(packet)?)
    }
}

/// The question in an ARP packet; `None` when it is none, or a probe or announcement of an address of
/// one's own (RFC 5227), which nobody may answer: every address here is this machine's to take.
fn arp_question(header: Header, packet: &[u8]) -> Option<Question> {
    /// Ethernet, IPv4, their addresses' lengths, request.
    const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
    let packet: &[u8; ARP_LEN] = packet.first_chunk()?;
    let asker = v4(packet, 14);
    let target = v4(packet, 24);
    let asks = packet[..8] == REQUEST && !asker.is_unspecified() && asker != target;
    asks.then_some(Question { asker: asker.into(), asker_link: header.source, target: target.into() })
}

/// The question in an IPv6 packet with this ICMPv6 message; `None` when it is no solicitation, or one
/// of duplicate address detection, which comes from the unspecified address (RFC 4862, section 5.4.2).
fn solicited(header: Header, packet: &[u8], message: &[u8]) -> Option<Question> {
    let asker = v6(packet.get(8..)?)?;
    let target = v6(message.get(8..)?)?;
    let asks = message[0] == SOLICITATION && !asker.is_unspecified() && !target.is_multicast();
    asks.then_some(Question { asker: asker.into(), asker_link: header.source, target: target.into() })
}

/// Writes the frame that says: the target is there.
pub(super) fn answer(question: &Question, there: LinkAddress, out: &mut Vec<u8>) {
    let to = question.asker_link;
    match (question.asker, question.target) {
        (IpAddr::V4(asker), IpAddr::V4(target)) => arp_reply((target, there), (asker, to), to, out),
        (IpAddr::V6(asker), IpAddr::V6(target)) => {
            advertisement(target, there, SOLICITED, (asker, to), out);
        }
        _ => {}
    }
}

/// Writes the frame that says, unasked, to the interface with the link address `to`: the target is there.
/// Whoever has it in its cache takes it over, and nobody else does.
pub(super) fn announce(target: IpAddr, there: LinkAddress, to: LinkAddress, out: &mut Vec<u8>) {
    match target {
        // The kernel takes it at once, also when it was told otherwise less than `locktime` ago, if both
        // halves are alike (`arp_is_garp` in net/ipv4/arp.c).
        IpAddr::V4(target) => arp_reply((target, there), (target, there), to, out),
        IpAddr::V6(target) => {
            // RFC 4861, section 7.2.6.
            advertisement(target, there, 0, (ALL_NODES, LinkAddress::ALL_NODES), out);
        }
    }
}

/// Writes an ARP reply from one to another in a frame to `to`.
fn arp_reply(
    (sender, there): (Ipv4Addr, LinkAddress),
    (target, target_link): (Ipv4Addr, LinkAddress),
    to: LinkAddress,
    out: &mut Vec<u8>,
) {
    out.extend(Header { destination: to, source: there, kind: frame::ARP }.to_bytes());
    out.extend([0, 1, 8, 0, 6, 4, 0, 2]);
    out.extend(there.to_bytes());
    out.extend(sender.octets());
    out.extend(target_link.to_bytes());
    out.extend(target.octets());
}

/// Writes a frame with a neighbour advertisement of the target.
fn advertisement(
    target: Ipv6Addr,
    there: LinkAddress,
    solicited: u8,
    (to, to_link): (Ipv6Addr, LinkAddress),
    out: &mut Vec<u8>,
) {
    let mut message = [0; ADVERTISEMENT_LEN];
    message[0] = ADVERTISEMENT;
    message[4] = ROUTER | solicited | OVERRIDE;
    message[8..24].copy_from_slice(&target.octets());
    message[24..26].copy_from_slice(&[TARGET_LINK_ADDRESS, 1]);
    message[26..].copy_from_slice(&there.to_bytes());
    let ip = ip::v6_header(target.octets(), to.octets(), message.len());
    ip::sum_icmpv6(&ip, &mut message);
    out.extend(Header { destination: to_link, source: there, kind: frame::IPV6 }.to_bytes());
    out.extend(ip);
    out.extend(message);
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const ARP_LEN: usize = 28;
/// With one option of 8 bytes.
const ADVERTISEMENT_LEN: usize = 32;
/// Every peer may forward: without this flag the stack would take default routes over it away.
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// The option, whose length counts in units of 8 bytes.
const TARGET_LINK_ADDRESS: u8 = 2;

fn v4(packet: &[u8; ARP_LEN], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3])
}

fn v6(bytes: &[u8]) -> Option<Ipv6Addr> {
    bytes.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets))
}
