//! Interfaces (`ip link`).

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkFlags, LinkInfo,
        LinkLayerType, LinkMessage,
    },
};
use nix::errno::Errno;
use wireloom_plan::observed::Interface;
use wireloom_types::{LinkAddress, PeerLookup, interface::AGENT_ALIAS};

use super::{Request, Rtnetlink};
use crate::{error::Cause, wireguard::Backend};

/// An interface with its name and its index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) interface: Interface,
    /// The back end that carries its packets, if it is ours.
    pub(crate) backend: Backend,
    /// Whether a back end makes interfaces of its kind.
    pub(crate) is_of_a_back_end: bool,
}

/// The interface with this name.
pub(crate) fn by_name(netlink: &mut Rtnetlink, name: &str) -> Result<Option<Found>, Cause> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::IfName(name.to_owned()));
    get(netlink, request)
}

/// The interface with this index.
pub(crate) fn by_index(netlink: &mut Rtnetlink, index: u32) -> Result<Option<Found>, Cause> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    get(netlink, request)
}

/// All interfaces.
pub(crate) fn all(netlink: &mut Rtnetlink) -> Result<Vec<Found>, Cause> {
    let dumped = netlink.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let found = dumped.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(message) => decode(message),
        _ => None,
    });
    Ok(found.collect())
}

fn get(netlink: &mut Rtnetlink, request: LinkMessage) -> Result<Option<Found>, Cause> {
    match netlink.get(&RouteNetlinkMessage::GetLink(request)) {
        Ok(RouteNetlinkMessage::NewLink(message)) => Ok(decode(&message)),
        Ok(_) => Ok(None),
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Marks an interface as ours, so that a restarted agent recognizes it.
pub(crate) fn adopt(index: u32, mtu: u32) -> Request {
    change(index, |message| {
        message.attributes.push(LinkAttribute::IfAlias(AGENT_ALIAS.to_owned()));
        message.attributes.push(LinkAttribute::Mtu(mtu));
    })
}

/// Keeps the kernel from generating a link-local address, as for its own WireGuard interfaces: router
/// solicitations and MLD reports would start handshakes.
pub(crate) fn no_link_local_addresses(index: u32) -> Request {
    change(index, |message| {
        let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]));
    })
}

pub(crate) fn set_mtu(index: u32, mtu: u32) -> Request {
    change(index, |message| message.attributes.push(LinkAttribute::Mtu(mtu)))
}

pub(crate) fn set_link_address(index: u32, address: LinkAddress) -> Request {
    change(index, |message| message.attributes.push(LinkAttribute::Address(address.to_bytes().to_vec())))
}

pub(crate) fn set_up(index: u32) -> Request {
    change(index, |message| {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
    })
}

pub(crate) fn remove(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Request { message: RouteNetlinkMessage::DelLink(message), flags: 0 }
}

/// For an interface whose index is not known.
pub(crate) fn remove_by_name(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    Request { message: RouteNetlinkMessage::DelLink(message), flags: 0 }
}

fn change(index: u32, with: impl FnOnce(&mut LinkMessage)) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    with(&mut message);
    Request { message: RouteNetlinkMessage::NewLink(message), flags: 0 }
}

/// `None` for a message without a name. `rp_filter`, which is not in the message, is 0.
pub(crate) fn decode(message: &LinkMessage) -> Option<Found> {
    let mut name = None;
    // A TAP is an Ethernet interface; a TUN and the kernel's WireGuard are not.
    let peer_lookup = match message.header.link_layer_type {
        LinkLayerType::Ether => PeerLookup::Gateway,
        _ => PeerLookup::Destination,
    };
    let mut backend = Backend::Userspace;
    let up = message.header.flags.contains(LinkFlags::Up);
    let mut interface =
        Interface { alias: None, mtu: 0, up, peer_lookup, link_address: None, left: false, rp_filter: 0 };
    let (mut is_tun, mut has_carrier) = (false, true);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value.clone()),
            LinkAttribute::IfAlias(value) => interface.alias = Some(value.clone()),
            LinkAttribute::Mtu(value) => interface.mtu = *value,
            LinkAttribute::Address(bytes) if peer_lookup == PeerLookup::Gateway => {
                interface.link_address = bytes.as_slice().try_into().ok().map(LinkAddress::from_bytes);
            }
            LinkAttribute::Carrier(value) => has_carrier = *value != 0,
            LinkAttribute::LinkInfo(info) if info.contains(&LinkInfo::Kind(InfoKind::Tun)) => is_tun = true,
            LinkAttribute::LinkInfo(info) if info.contains(&LinkInfo::Kind(InfoKind::Wireguard)) => {
                backend = Backend::Kernel;
            }
            _ => {}
        }
    }
    // The carrier of a TUN or TAP tells whether a process holds it (`__tun_detach` in drivers/net/tun.c).
    interface.left = is_tun && !has_carrier;
    let is_of_a_back_end = is_tun || backend == Backend::Kernel;
    Some(Found { index: message.header.index, name: name?, interface, backend, is_of_a_back_end })
}
