//! Explicit congestion notification (RFC 3168): instead of dropping a packet, a queue marks it, if its sender and its
//! receiver know such marks. Across a tunnel the field is carried as RFC 6040 says, in its normal mode.

use wireloom_proto::inner;

use super::{checksum::Sum, ip_version, ipv4, ipv6, read_u16, write_u16};
use crate::drops::EngineDrop;

/// The field (RFC 3168, section 5): the lowest two bits of the type of service, or of the traffic class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ecn {
    /// Not ECN-capable transport: the packet cannot be marked.
    #[default]
    NotEct = 0b00,
    /// ECN-capable transport, codepoint ECT(1).
    Ect1 = 0b01,
    /// ECN-capable transport, codepoint ECT(0).
    Ect0 = 0b10,
    /// Congestion experienced: the mark.
    Ce = 0b11,
}

impl Ecn {
    /// The field in a type of service or traffic class.
    #[inline]
    pub(crate) fn of_class(class: u8) -> Self {
        match class & 0b11 {
            0b00 => Self::NotEct,
            0b01 => Self::Ect1,
            0b10 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// The field of a packet. What is too short for a header, or no IP, cannot be marked.
    #[inline]
    pub(crate) fn of_packet(packet: &[u8]) -> Self {
        Self::of_class(inner::ecn(packet))
    }

    /// Whether a tunnel's end has something to do with a packet whose datagram arrived with this field.
    #[inline]
    pub(crate) fn concerns_the_inner_packet(self) -> bool {
        matches!(self, Self::Ect1 | Self::Ce)
    }
}

/// Brings what became of the outer field on the way to the packet inside (RFC 6040, section 4.2). The packet has a
/// whole IP header.
///
/// # Errors
/// The datagram was marked, and the packet cannot be: dropping it is the only sign that is left. (The kernel's
/// WireGuard lets it pass, unlike the kernel's other tunnels.)
#[inline]
pub(crate) fn leave_tunnel(outer: Ecn, packet: &mut [u8]) -> Result<(), EngineDrop> {
    if !outer.concerns_the_inner_packet() {
        return Ok(());
    }
    match (Ecn::of_packet(packet), outer) {
        (Ecn::NotEct, Ecn::Ce) => return Err(EngineDrop::Congested),
        (Ecn::Ect0 | Ecn::Ect1, Ecn::Ce) | (Ecn::Ect0, Ecn::Ect1) => set(packet, outer),
        _ => {}
    }
    Ok(())
}

/// Marks a packet. Returns false when it cannot be marked.
#[inline]
pub(crate) fn mark(packet: &mut [u8]) -> bool {
    let can = Ecn::of_packet(packet) != Ecn::NotEct;
    if can {
        set(packet, Ecn::Ce);
    }
    can
}

/// Sets the field of a packet with a whole header, and corrects the header's checksum where there is one.
fn set(packet: &mut [u8], ecn: Ecn) {
    if ip_version(packet) == Some(6) {
        packet[1] = packet[1] & !0x30 | (ecn as u8) << 4;
        return;
    }
    let before = read_u16(packet, 0);
    packet[1] = packet[1] & !0b11 | ecn as u8;
    // RFC 1624, section 3, equation 3.
    let sum = Sum::default().and_u16(!read_u16(packet, ipv4::CHECKSUM));
    let sum = sum.without_u16(before).and_u16(read_u16(packet, 0)).complement();
    write_u16(packet, ipv4::CHECKSUM, sum);
}

const _: () = assert!(ipv4::HEADER_LEN > ipv4::CHECKSUM + 1 && ipv6::HEADER_LEN > 1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::protocol::UDP;

    const ALL: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect1, Ecn::Ect0, Ecn::Ce];

    fn v4(dscp: u8, ecn: Ecn) -> Vec<u8> {
        let mut packet = ipv4::header(UDP, [192, 0, 2, 1], [192, 0, 2, 2], 0).to_vec();
        packet[1] = dscp << 2 | ecn as u8;
        write_u16(&mut packet, ipv4::CHECKSUM, 0);
        let sum = Sum::of(&packet).complement();
        write_u16(&mut packet, ipv4::CHECKSUM, sum);
        packet
    }

    fn v6(dscp: u8, ecn: Ecn) -> Vec<u8> {
        let mut packet = ipv6::icmpv6_header([1; 16], [2; 16], 0).to_vec();
        let class = dscp << 2 | ecn as u8;
        packet[0] |= class >> 4;
        packet[1] = class << 4 | 0x0b;
        packet
    }

    /// The table of RFC 6040, figure 4: by the inner field, then by the outer one, in the order of [`ALL`].
    #[test]
    fn the_field_leaves_the_tunnel_as_the_rfc_says() {
        let table = [
            [Some(Ecn::NotEct), Some(Ecn::NotEct), Some(Ecn::NotEct), None],
            [Some(Ecn::Ect1), Some(Ecn::Ect1), Some(Ecn::Ect1), Some(Ecn::Ce)],
            [Some(Ecn::Ect0), Some(Ecn::Ect1), Some(Ecn::Ect0), Some(Ecn::Ce)],
            [Some(Ecn::Ce); 4],
        ];
        for (inner, row) in ALL.into_iter().zip(table) {
            for (outer, expected) in ALL.into_iter().zip(row) {
                for make in [v4, v6] {
                    let mut packet = make(0x2e, inner);
                    let left = leave_tunnel(outer, &mut packet).ok().map(|()| packet);
                    assert_eq!(left, expected.map(|ecn| make(0x2e, ecn)), "{inner:?} in {outer:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_packet_cannot_be_marked() {
        for bytes in [&[][..], &[0x45], &[0x60], &[0x15, 3], &[0, 0x30]] {
            assert_eq!(Ecn::of_packet(bytes), Ecn::NotEct);
            assert!(!mark(&mut bytes.to_vec()));
        }
    }

    proptest! {
        #[test]
        fn a_mark_changes_the_field_and_keeps_the_checksum_right(
            dscp in 0u8..64, field in 1u8..4, identification: u16, is_v4: bool,
        ) {
            let make = if is_v4 { v4 } else { v6 };
            let (mut packet, mut marked) = (make(dscp, Ecn::of_class(field)), make(dscp, Ecn::Ce));
            if is_v4 {
                for packet in [&mut packet, &mut marked] {
                    write_u16(packet, ipv4::IDENTIFICATION, identification);
                    write_u16(packet, ipv4::CHECKSUM, 0);
                    let sum = Sum::of(packet).complement();
                    write_u16(packet, ipv4::CHECKSUM, sum);
                }
            }
            prop_assert!(mark(&mut packet));
            prop_assert_eq!(packet, marked);
        }
    }
}
