//! Addresses of interfaces (`ip address`).

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
};

use wireloom_plan::routing::Family;

use super::{Request, Rtnetlink, address_family};
use crate::error::Cause;

/// An address on an interface, with its prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Assigned {
    /// The interface's index.
    pub(crate) interface: u32,
    pub(crate) address: IpNet,
    /// Whether packets may have it as their source: duplicate address detection succeeded, or need not be
    /// awaited.
    pub(crate) usable: bool,
    /// Whether it stays: it is no temporary one of IPv6 (RFC 8981), and not deprecated.
    pub(crate) lasting: bool,
}

/// Every address of the machine, except link-local ones.
pub(crate) fn observe(netlink: &mut Rtnetlink) -> Result<Vec<Assigned>, Cause> {
    let dumped = netlink.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let assigned = dumped.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewAddress(message) => decode(&message),
        _ => None,
    });
    Ok(assigned.filter(|assigned| !is_link_local(assigned.address.addr())).collect())
}

pub(crate) fn add(interface: u32, address: IpNet) -> Request {
    let mut message = encode(interface, address);
    // A WireGuard interface has no neighbours that could have the same address, so duplicate address
    // detection (RFC 4862, section 5.4) is pointless. Of an IPv6 address the kernel would make a route in the main
    // table as well, even with a full-length prefix.
    let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
    message.attributes.push(AddressAttribute::Flags(flags));
    Request { message: RouteNetlinkMessage::NewAddress(message), flags: NLM_F_CREATE | NLM_F_EXCL }
}

pub(crate) fn remove(interface: u32, address: IpNet) -> Request {
    Request { message: RouteNetlinkMessage::DelAddress(encode(interface, address)), flags: 0 }
}

fn encode(interface: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = address_family(Family::of(address.addr()));
    message.header.prefix_len = address.prefix_len();
    message.header.index = interface;
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    message
}

/// `IFA_LOCAL` is the interface's own address where it differs from `IFA_ADDRESS` (the other end of a
/// point-to-point interface).
pub(crate) fn decode(message: &AddressMessage) -> Option<Assigned> {
    let mut address = None;
    let mut local = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(value) => address = Some(*value),
            AddressAttribute::Local(value) => local = Some(*value),
            _ => {}
        }
    }
    let address = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    // These flags are among the eight in the header (include/uapi/linux/if_addr.h). An optimistic address is
    // usable while it is tentative (RFC 4429).
    let flags = message.header.flags;
    let detecting =
        flags.contains(AddressHeaderFlags::Tentative) && !flags.contains(AddressHeaderFlags::Optimistic);
    let usable = !detecting && !flags.contains(AddressHeaderFlags::Dadfailed);
    // IFA_F_TEMPORARY is IFA_F_SECONDARY, which an IPv4 address may have for good.
    let temporary = address.addr().is_ipv6() && flags.contains(AddressHeaderFlags::Secondary);
    let lasting = !temporary && !flags.contains(AddressHeaderFlags::Deprecated);
    Some(Assigned { interface: message.header.index, address, usable, lasting })
}

pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable, Parseable};

    use super::*;

    #[test]
    fn every_address_is_read_back_as_written() {
        for address in ["100.64.0.1/24", "100.64.0.1/32", "fd00::1/64"] {
            let address = address.parse().unwrap();
            let assigned = Assigned { interface: 7, address, usable: true, lasting: true };
            let message = encode(assigned.interface, assigned.address);
            let mut bytes = vec![0; message.buffer_len()];
            message.emit(&mut bytes);
            assert_eq!(decode(&AddressMessage::parse(bytes.as_slice()).unwrap()), Some(assigned));
        }
    }

    #[test]
    fn temporary_and_deprecated_addresses_do_not_last() {
        use AddressHeaderFlags as Flags;
        let lasts = |address: &str, flags| {
            let mut message = encode(7, address.parse().unwrap());
            message.header.flags = flags;
            decode(&message).unwrap().lasting
        };
        assert!(lasts("100.64.0.1/24", Flags::Permanent | Flags::Secondary));
        assert!(lasts("fd00::1/64", Flags::empty()));
        assert!(!lasts("fd00::1/64", Flags::Secondary), "temporary");
        assert!(!lasts("fd00::1/64", Flags::Deprecated));
        assert!(!lasts("100.64.0.1/24", Flags::Deprecated));
    }

    #[test]
    fn an_address_that_may_be_a_duplicate_is_not_usable() {
        use AddressHeaderFlags as Flags;
        for (flags, usable) in [
            (Flags::Permanent, true),
            (Flags::Permanent | Flags::Tentative, false),
            (Flags::Tentative | Flags::Optimistic, true),
            (Flags::Permanent | Flags::Tentative | Flags::Dadfailed, false),
            (Flags::Optimistic | Flags::Tentative | Flags::Dadfailed, false),
        ] {
            let mut message = encode(7, "fd00::1/64".parse().unwrap());
            message.header.flags = flags;
            assert_eq!(decode(&message).unwrap().usable, usable, "{flags:?}");
        }
    }
}
