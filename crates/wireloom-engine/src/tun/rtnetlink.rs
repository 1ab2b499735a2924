//! Questions about the interface, and changes of it, by rtnetlink(7).

use std::{fs, io, net::Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage},
};
use nix::errno::Errno;
use wireloom_netlink::{Client, Protocol, Request};
use wireloom_types::interface::{AGENT_ALIAS, DEVICE_ALIAS};

use super::{TunState, place::Place};
use crate::packet::ipv6;

/// Configures a new TUN interface like the kernel's own WireGuard interfaces (`wg_setup` in
/// drivers/net/wireguard/device.c): with this MTU in bytes, without multicast, and without a generated IPv6 link-local
/// address. The group reports and router solicitations that come with the latter two would start handshakes.
pub(super) fn set_up_tun(index: u32, mtu: usize) -> io::Result<()> {
    // On a machine that forwards, IPv6 joins the all-routers group as soon as it sees a new interface with multicast,
    // and stays in it. An MTU below its minimum makes IPv6 leave the interface; when it comes back, it looks at the
    // flag again (`addrconf_notify` in net/ipv6/addrconf.c).
    let mut message = own_interface(index);
    message.header.change_mask = LinkFlags::Multicast;
    message.attributes.push(mtu_attribute(ipv6::MTU_MIN - 1));
    change(RouteNetlinkMessage::SetLink(message), 0)?;

    let mut message = own_interface(index);
    message.attributes.push(mtu_attribute(mtu));
    change(RouteNetlinkMessage::SetLink(message), 0)?;

    // A separate request, because a machine without IPv6 refuses it. It does no harm there.
    let mut message = own_interface(index);
    let none = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(none)]));
    if let Err(error) = change(RouteNetlinkMessage::SetLink(message), 0) {
        tracing::debug!("cannot turn off the interface's IPv6 address generation: {error}");
    }
    Ok(())
}

/// Replaces one IPv6 link-local address of an interface in our namespace by another, if it has it.
pub(super) fn replace_link_local(index: u32, from: Ipv6Addr, to: Ipv6Addr) {
    let address = |address: Ipv6Addr| {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.header.prefix_len = 64;
        message.header.index = index;
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Address(address.into()));
        message
    };
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let moved = change(RouteNetlinkMessage::DelAddress(address(from)), 0)
        .and_then(|()| change(RouteNetlinkMessage::NewAddress(address(to)), flags));
    // The address is missing while the interface is down, or when another program manages the addresses.
    if let Err(error) = moved {
        tracing::debug!("cannot replace the interface's link-local address {from} by {to}: {error}");
    }
}

/// Bounds the super-packets that the network stack makes for the interface to `len` bytes.
pub(super) fn set_gso_max_size(index: u32, len: u32) -> io::Result<()> {
    let mut message = own_interface(index);
    message.attributes.push(LinkAttribute::GsoMaxSize(len));
    change(RouteNetlinkMessage::SetLink(message), 0)
}

/// Configures a new TAP interface: this MTU in bytes, and the settings for a link whose addresses are assigned by
/// configuration. There is no duplicate address detection, which nobody would answer; prefixes and routers that peers
/// advertise are ignored; no redirects are sent.
pub(super) fn set_up_tap(index: u32, name: &str, mtu: usize) -> io::Result<()> {
    let mut message = own_interface(index);
    message.attributes.push(mtu_attribute(mtu));
    change(RouteNetlinkMessage::SetLink(message), 0)?;
    for (setting, value) in [
        ("ipv6/conf/{}/addr_gen_mode", "0"),
        ("ipv6/conf/{}/accept_dad", "0"),
        ("ipv6/conf/{}/accept_ra", "0"),
        ("ipv4/conf/{}/send_redirects", "0"),
    ] {
        let path = format!("/proc/sys/net/{}", setting.replace("{}", name));
        // On a machine without IPv6, or in a container with read-only settings, the interface works without it.
        if let Err(error) = fs::write(&path, value) {
            tracing::warn!("cannot set {path} to {value}: {error}");
        }
    }
    Ok(())
}

/// Gives the interface the alias by which [`was_left`] knows it, unless the agent has given it its own.
pub(super) fn mark_as_ours(index: u32) -> io::Result<()> {
    if get(own_interface(index))?.is_some_and(|present| has_our_alias(&present)) {
        return Ok(());
    }
    let mut message = own_interface(index);
    message.attributes.push(LinkAttribute::IfAlias(DEVICE_ALIAS.to_owned()));
    change(RouteNetlinkMessage::SetLink(message), 0)
}

/// Whether there is an interface of this name that has our alias and no process. Without the second condition, we could
/// attach to an interface with several queues beside its process, and take packets away from it. The carrier tells
/// whether it has one (`__tun_detach` in drivers/net/tun.c).
pub(super) fn was_left(name: &str) -> io::Result<bool> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    let no_carrier = |present: &LinkMessage| present.attributes.contains(&LinkAttribute::Carrier(0));
    Ok(get(message)?.is_some_and(|present| has_our_alias(&present) && no_carrier(&present)))
}

fn has_our_alias(message: &LinkMessage) -> bool {
    message.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => alias == AGENT_ALIAS || alias == DEVICE_ALIAS,
        _ => false,
    })
}

/// The interface that the message asks for; `None` when there is none, or can be none of that name.
fn get(message: LinkMessage) -> io::Result<Option<LinkMessage>> {
    match Client::open(Protocol::Route)?.get(&RouteNetlinkMessage::GetLink(message)) {
        Ok(RouteNetlinkMessage::NewLink(message)) => Ok(Some(message)),
        Ok(_) => Ok(None),
        Err(error) if matches!(error.errno(), Some(Errno::ENODEV | Errno::EINVAL)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A message about an interface of our own namespace, without attributes. Only such a one is changed: of a change, the
/// attribute for the namespace says where the interface is to be moved (`rtnl_setlink` in net/core/rtnetlink.c).
fn own_interface(index: u32) -> LinkMessage {
    interface(Place { namespace: None, index })
}

/// A question about an interface, without attributes but for the namespace.
pub(super) fn interface(place: Place) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = place.index;
    message.attributes.extend(place.namespace.map(LinkAttribute::IfNetnsId));
    message
}

/// The interface of this name in a namespace that ours has this number for; `None` is our own.
pub(super) fn find_by_name(name: &str, namespace: Option<i32>) -> io::Result<Option<(Place, TunState)>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    message.attributes.extend(namespace.map(LinkAttribute::IfNetnsId));
    let found = get(message)?;
    Ok(found.and_then(|link| Some((Place { namespace, index: link.header.index }, state(&link)?))))
}

/// The state that a message about an interface shows.
pub(super) fn state(link: &LinkMessage) -> Option<TunState> {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => usize::try_from(*mtu).ok(),
        _ => None,
    })?;
    Some(TunState { up: link.header.flags.contains(LinkFlags::Up), mtu })
}

fn mtu_attribute(mtu: usize) -> LinkAttribute {
    LinkAttribute::Mtu(u32::try_from(mtu).unwrap_or(u32::MAX))
}

/// Makes one change.
fn change(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    Ok(Client::open(Protocol::Route)?.change(&Request { message, flags })?)
}
