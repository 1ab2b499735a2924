//! Permanent neighbours on our interface (`ip neighbour`).

use std::{collections::BTreeMap, net::IpAddr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};
use wireloom_plan::routing::{Family, PROTOCOL};
use wireloom_types::LinkAddress;

use super::{Request, Rtnetlink, address_family};
use crate::error::Cause;

/// Our neighbours on the interface. They have our protocol, so that those of an operator stay.
pub(crate) fn observe(
    netlink: &mut Rtnetlink,
    interface: u32,
) -> Result<BTreeMap<IpAddr, LinkAddress>, Cause> {
    let mut request = NeighbourMessage::default();
    // With strict checking, the kernel filters by it.
    request.attributes.push(NeighbourAttribute::IfIndex(interface));
    let dumped = netlink.dump(&RouteNetlinkMessage::GetNeighbour(request))?;
    let ours = dumped.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewNeighbour(message)
            if message.header.ifindex == interface && message.header.state == NeighbourState::Permanent =>
        {
            decode(message)
        }
        _ => None,
    });
    Ok(ours.collect())
}

/// Replaces any entry for the address.
pub(crate) fn set(interface: u32, address: IpAddr, link_address: LinkAddress) -> Request {
    let mut message = encode(interface, address);
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(link_address.to_bytes().to_vec()));
    message.attributes.push(NeighbourAttribute::Protocol(PROTOCOL.into()));
    Request { message: RouteNetlinkMessage::NewNeighbour(message), flags: NLM_F_CREATE | NLM_F_REPLACE }
}

pub(crate) fn remove(interface: u32, address: IpAddr) -> Request {
    Request { message: RouteNetlinkMessage::DelNeighbour(encode(interface, address)), flags: 0 }
}

/// Whether a notification is about a neighbour of ours. Those that the kernel learns change all the time.
pub(crate) fn concerns(message: &NeighbourMessage, interface: u32) -> bool {
    message.header.ifindex == interface && is_ours(message)
}

fn is_ours(message: &NeighbourMessage) -> bool {
    message.attributes.contains(&NeighbourAttribute::Protocol(PROTOCOL.into()))
}

fn encode(interface: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(Family::of(address));
    message.header.ifindex = interface;
    message.attributes.push(NeighbourAttribute::Destination(match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }));
    message
}

pub(super) fn decode(message: &NeighbourMessage) -> Option<(IpAddr, LinkAddress)> {
    let (mut address, mut link_address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(value)) => address = Some((*value).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(value)) => {
                address = Some((*value).into());
            }
            NeighbourAttribute::LinkLayerAddress(value) => link_address = value.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some((address?, LinkAddress::from_bytes(link_address?))).filter(|_| is_ours(message))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable, Parseable};

    use super::*;

    #[test]
    fn every_neighbour_is_read_back_as_written() {
        let link_address = LinkAddress::from_bytes([2, 0xb5, 0xca, 0xdc, 0x5d, 0xab]);
        for address in ["100.64.0.2", "fd64::2", "fe80::b5:caff:fedc:5dab"] {
            let address: IpAddr = address.parse().unwrap();
            let RouteNetlinkMessage::NewNeighbour(message) = set(7, address, link_address).message else {
                panic!("set() must add a neighbour")
            };
            let mut bytes = vec![0; message.buffer_len()];
            message.emit(&mut bytes);
            let read = NeighbourMessage::parse(bytes.as_slice()).unwrap();
            assert_eq!(decode(&read), Some((address, link_address)));
            assert!(concerns(&read, 7) && !concerns(&read, 8));
        }
    }

    #[test]
    fn a_neighbour_that_somebody_else_added_is_not_ours() {
        let mut message = encode(7, "100.64.0.2".parse().unwrap());
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1]));
        assert_eq!(decode(&message), None);
    }
}
