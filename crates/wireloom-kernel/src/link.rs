//! Interfaces (`ip link`), to and from netlink.

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkFlags, LinkInfo,
        LinkLayerType, LinkMessage,
    },
};
use wireloom_plan::kernel::Link;
use wireloom_types::{PeerLookup, interface::AGENT_ALIAS};

use super::{
    error::Cause,
    netlink::{Netlink, Request},
    wireguard::Implementation,
};

/// An interface and the index by which netlink knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Indexed {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) link: Link,
    /// Who carries its packets, if it is ours.
    pub(super) implementation: Implementation,
}

/// The interface of a name.
pub(super) fn by_name(netlink: &mut Netlink, name: &str) -> Result<Option<Indexed>, Cause> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::IfName(name.to_owned()));
    get(netlink, request)
}

/// The interface of an index.
pub(super) fn by_index(netlink: &mut Netlink, index: u32) -> Result<Option<Indexed>, Cause> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    get(netlink, request)
}

fn get(netlink: &mut Netlink, request: LinkMessage) -> Result<Option<Indexed>, Cause> {
    Ok(match netlink.get(&RouteNetlinkMessage::GetLink(request))? {
        Some(RouteNetlinkMessage::NewLink(message)) => decode(&message),
        _ => None,
    })
}

/// Marks an interface as ours; from then on a restarted agent knows it.
pub(super) fn adopt(index: u32, mtu: u32) -> Request {
    change(index, |message| {
        message.attributes.push(LinkAttribute::IfAlias(AGENT_ALIAS.to_owned()));
        message.attributes.push(LinkAttribute::Mtu(mtu));
    })
}

/// The kernel shall make no link-local address of its own, as for its own WireGuard
/// interfaces: router solicitations and MLD reports would start handshakes.
pub(super) fn no_link_local_addresses(index: u32) -> Request {
    change(index, |message| {
        let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]));
    })
}

pub(super) fn set_mtu(index: u32, mtu: u32) -> Request {
    change(index, |message| message.attributes.push(LinkAttribute::Mtu(mtu)))
}

pub(super) fn set_up(index: u32) -> Request {
    change(index, |message| {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
    })
}

pub(super) fn remove(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Request { message: RouteNetlinkMessage::DelLink(message), flags: 0 }
}

/// For one that has no index yet.
pub(super) fn remove_by_name(name: &str) -> Request {
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

/// `None` for a message without a name.
pub(super) fn decode(message: &LinkMessage) -> Option<Indexed> {
    let mut name = None;
    // A TAP is an Ethernet interface, a TUN and the kernel's WireGuard are not.
    let peer_lookup = match message.header.link_layer_type {
        LinkLayerType::Ether => PeerLookup::Gateway,
        _ => PeerLookup::Destination,
    };
    let mut implementation = Implementation::Userspace;
    let up = message.header.flags.contains(LinkFlags::Up);
    let mut link = Link { alias: None, mtu: 0, up, peer_lookup };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value.clone()),
            LinkAttribute::IfAlias(value) => link.alias = Some(value.clone()),
            LinkAttribute::Mtu(value) => link.mtu = *value,
            LinkAttribute::LinkInfo(info) if info.contains(&LinkInfo::Kind(InfoKind::Wireguard)) => {
                implementation = Implementation::Kernel;
            }
            _ => {}
        }
    }
    Some(Indexed { index: message.header.index, name: name?, link, implementation })
}
