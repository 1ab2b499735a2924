//! The interface by rtnetlink(7): set up once, then followed.

use std::{
    fs, io,
    net::Ipv6Addr,
    os::fd::{AsFd, BorrowedFd},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage},
};
use nix::errno::Errno;
use wireloom_netlink::{Client, Protocol, RawMessage, Received, Request, Subscription};
use wireloom_types::interface::{AGENT_ALIAS, DEVICE_ALIAS};

use super::{TunEvent, TunState};
use crate::packet::ipv6;

/// `RTNLGRP_LINK` of rtnetlink(7): the group that gets the changes of every interface.
const LINK_GROUP: u32 = 1;
/// Room for notifications that wait to be read, in bytes: what the kernel gives a socket by default
/// (`net.core.rmem_default`). When it is full, the monitor asks for the current state instead.
const RECEIVE_BUFFER: usize = 208 << 10;

/// Follows the state of one interface.
pub(super) struct InterfaceMonitor {
    notifications: Subscription,
    index: u32,
}

impl InterfaceMonitor {
    /// Begins to follow the interface with this index. The current state is the first event.
    pub(super) fn open(index: u32) -> io::Result<Self> {
        let notifications = Subscription::open(Protocol::Route, &[LINK_GROUP], RECEIVE_BUFFER)?;
        notifications.set_nonblocking(true)?;
        let monitor = Self { notifications, index };
        monitor.request_state()?;
        Ok(monitor)
    }

    /// Asks for the current state. The answer is an event.
    fn request_state(&self) -> io::Result<()> {
        self.notifications.request(RouteNetlinkMessage::GetLink(interface(self.index)))
    }

    /// The next event that concerns the interface.
    pub(super) fn poll(&mut self) -> io::Result<Option<TunEvent>> {
        let index = self.index;
        loop {
            let event = match self.notifications.receive() {
                // An unreadable message ends the datagram.
                Ok(Received::Messages(messages)) => {
                    messages.map_while(Result::ok).filter_map(|message| event(index, &message)).last()
                }
                // Events were lost because we were slow: the present state makes up for them.
                Ok(Received::Overrun) => {
                    self.request_state()?;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// Replaces one IPv6 link-local address by another, if the interface has it.
    pub(super) fn replace_link_local(&self, from: Ipv6Addr, to: Ipv6Addr) {
        let address = |address: Ipv6Addr| {
            let mut message = AddressMessage::default();
            message.header.family = AddressFamily::Inet6;
            message.header.prefix_len = 64;
            message.header.index = self.index;
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
}

impl AsFd for InterfaceMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notifications.as_fd()
    }
}

/// What a message says about the interface with this index.
fn event(index: u32, message: &RawMessage<'_>) -> Option<TunEvent> {
    match message.parse().ok()? {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) if link.header.index == index => {
            let mtu = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Mtu(mtu) => usize::try_from(*mtu).ok(),
                _ => None,
            })?;
            Some(TunEvent::State(TunState { up: link.header.flags.contains(LinkFlags::Up), mtu }))
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) if link.header.index == index => {
            Some(TunEvent::Gone)
        }
        // The answer to `request_state` when the interface is gone.
        NetlinkPayload::Error(error) if error.raw_code() == -libc::ENODEV => Some(TunEvent::Gone),
        _ => None,
    }
}

/// Configures a new TUN interface like the kernel's own WireGuard interfaces (`wg_setup` in
/// drivers/net/wireguard/device.c): with this MTU in bytes, without multicast, and without a generated IPv6 link-local
/// address. The group reports and router solicitations that come with the latter two would start handshakes.
pub(super) fn set_up_tun(index: u32, mtu: usize) -> io::Result<()> {
    // On a machine that forwards, IPv6 joins the all-routers group as soon as it sees a new interface with multicast,
    // and stays in it. An MTU below its minimum makes IPv6 leave the interface; when it comes back, it looks at the
    // flag again (`addrconf_notify` in net/ipv6/addrconf.c).
    let mut message = interface(index);
    message.header.change_mask = LinkFlags::Multicast;
    message.attributes.push(mtu_attribute(ipv6::MTU_MIN - 1));
    change(RouteNetlinkMessage::SetLink(message), 0)?;

    let mut message = interface(index);
    message.attributes.push(mtu_attribute(mtu));
    change(RouteNetlinkMessage::SetLink(message), 0)?;

    // A separate request, because a machine without IPv6 refuses it. It does no harm there.
    let mut message = interface(index);
    let none = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(none)]));
    if let Err(error) = change(RouteNetlinkMessage::SetLink(message), 0) {
        tracing::debug!("cannot turn off the interface's IPv6 address generation: {error}");
    }
    Ok(())
}

/// Bounds the super-packets that the network stack makes for the interface to `len` bytes.
pub(super) fn set_gso_max_size(index: u32, len: u32) -> io::Result<()> {
    let mut message = interface(index);
    message.attributes.push(LinkAttribute::GsoMaxSize(len));
    change(RouteNetlinkMessage::SetLink(message), 0)
}

/// Configures a new TAP interface: this MTU in bytes, and the settings for a link whose addresses are assigned by
/// configuration. There is no duplicate address detection, which nobody would answer; prefixes and routers that peers
/// advertise are ignored; no redirects are sent.
pub(super) fn set_up_tap(index: u32, name: &str, mtu: usize) -> io::Result<()> {
    let mut message = interface(index);
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
    if get(interface(index))?.is_some_and(|present| has_our_alias(&present)) {
        return Ok(());
    }
    let mut message = interface(index);
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

/// A message about an interface, without attributes.
fn interface(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn mtu_attribute(mtu: usize) -> LinkAttribute {
    LinkAttribute::Mtu(u32::try_from(mtu).unwrap_or(u32::MAX))
}

/// Makes one change.
fn change(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    Ok(Client::open(Protocol::Route)?.change(&Request { message, flags })?)
}
