//! The interface by rtnetlink(7): set up once, then followed.

use std::{
    fs::{self, File},
    io,
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
use wireloom_netlink::{Client, Messages, Protocol, Received, Request, Subscription};
use wireloom_types::interface::{AGENT_ALIAS, DEVICE_ALIAS};

use super::{
    TunEvent, TunState,
    place::{Place, is_here, locate},
};
use crate::packet::ipv6;

/// `RTNLGRP_LINK` of rtnetlink(7): the group that gets the changes of every interface.
const LINK_GROUP: u32 = 1;
/// Room for notifications that wait to be read, in bytes: what the kernel gives a socket by default
/// (`net.core.rmem_default`). When it is full, the monitor asks for the current state instead.
const RECEIVE_BUFFER: usize = 208 << 10;

/// Follows the state of one interface, also into other network namespaces.
///
/// An index names an interface only as long as it is in its namespace: afterwards, another one may get it. So what
/// follows a message that the interface has gone is not taken for its own, and where it is now is learnt from its
/// descriptor, which always leads to it.
pub(super) struct InterfaceMonitor {
    notifications: Subscription,
    /// The notifications of all namespaces, from when the interface leaves ours. It is opened in advance, because that
    /// needs a privilege; absent where the process never had it.
    of_all: Option<Subscription>,
    /// Whether these are the notifications of all namespaces. Where we do not see when the interface comes up, it
    /// counts as up.
    follows_all: bool,
    /// `None` when it is not known where the interface is.
    place: Option<Place>,
}

impl InterfaceMonitor {
    /// Begins to follow the interface with this index in our namespace. The current state is the first event.
    pub(super) fn open(index: u32) -> io::Result<Self> {
        let notifications = Subscription::open(Protocol::Route, &[LINK_GROUP], RECEIVE_BUFFER)?;
        notifications.set_nonblocking(true)?;
        let of_all = Subscription::open(Protocol::Route, &[], RECEIVE_BUFFER).and_then(|mut of_all| {
            of_all.set_nonblocking(true)?;
            of_all.listen_to_all_namespaces()?;
            Ok(of_all)
        });
        let of_all = of_all.inspect_err(|error| {
            tracing::debug!("the interface cannot be followed into other network namespaces: {error}");
        });
        let place = Some(Place { namespace: None, index });
        let monitor = Self { notifications, of_all: of_all.ok(), follows_all: false, place };
        monitor.request_state()?;
        Ok(monitor)
    }

    /// Where the interface is, if that is known.
    pub(super) fn place(&self) -> Option<Place> {
        self.place
    }

    /// Whether the interface is in our namespace.
    pub(super) fn is_here(&self) -> bool {
        self.place.is_some_and(|place| place.namespace.is_none())
    }

    /// Asks for the current state. The answer is an event.
    fn request_state(&self) -> io::Result<()> {
        let Some(place) = self.place else { return Ok(()) };
        self.notifications.request(RouteNetlinkMessage::GetLink(interface(place)))
    }

    /// The next event that concerns the interface, to which the descriptor leads. `mtu` is its last known one.
    pub(super) fn poll(&mut self, file: &File, mtu: usize) -> io::Result<Option<TunEvent>> {
        loop {
            let is_here = self.is_here();
            let seen = match self.notifications.receive() {
                Ok(Received::Messages(messages)) => newest(self.place, messages),
                // Events were lost because we were slow: the present state makes up for them. Before Linux 5.0 nobody
                // can say where the interface is; it is most likely where it was.
                Ok(Received::Overrun) if is_here && locate(file).is_err() => Some(Seen::Unknown),
                Ok(Received::Overrun) => Some(Seen::HasGone),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            match seen {
                None => {}
                Some(Seen::Unknown) => self.request_state()?,
                Some(Seen::State(state)) => return Ok(Some(TunEvent::State(state))),
                Some(Seen::HasGone) => return self.find(file, mtu).map(Some),
            }
        }
    }

    /// Looks where the interface is, and how.
    fn find(&mut self, file: &File, mtu: usize) -> io::Result<TunEvent> {
        // Before it looks, so that no change after the look is missed.
        if !is_here(file)
            && let Some(mut of_all) = self.of_all.take()
        {
            of_all.join(LINK_GROUP)?;
            self.notifications = of_all;
            self.follows_all = true;
        }
        match locate(file) {
            Ok(Some((place, state))) => {
                let can_follow = place.namespace.is_none() || self.follows_all;
                self.place = Some(place);
                Ok(TunEvent::State(TunState { up: state.up || !can_follow, ..state }))
            }
            Ok(None) => Ok(TunEvent::Gone),
            Err(error) => {
                tracing::warn!(
                    "cannot see the interface in its new network namespace, so it counts as up: {error}"
                );
                self.place = None;
                Ok(TunEvent::State(TunState { up: true, mtu }))
            }
        }
    }

    /// Replaces one IPv6 link-local address by another, if the interface has it. Not in another network namespace,
    /// whose addresses we cannot change.
    pub(super) fn replace_link_local(&self, from: Ipv6Addr, to: Ipv6Addr) {
        let Some(Place { namespace: None, index }) = self.place else { return };
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
}

impl AsFd for InterfaceMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notifications.as_fd()
    }
}

/// What messages say about the interface at a place.
enum Seen {
    State(TunState),
    /// It may have changed.
    Unknown,
    /// It is not there any more; later messages are about another one.
    HasGone,
}

/// The newest of what messages say about the interface at this place.
fn newest(place: Option<Place>, messages: Messages<'_>) -> Option<Seen> {
    let Place { namespace, index } = place?;
    // The answer to a request comes from our own namespace, whichever it is about.
    let is_from_there = messages.namespace() == namespace;
    let mut newest = None;
    // An unreadable message ends the datagram.
    for message in messages.map_while(Result::ok) {
        match message.parse().ok() {
            Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)))
                if is_from_there && link.header.index == index =>
            {
                newest = state(&link).map(Seen::State).or(newest);
            }
            // Not that it left a bridge, which is a message of that family.
            Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)))
                if is_from_there
                    && link.header.index == index
                    && link.header.interface_family == AddressFamily::Unspec =>
            {
                return Some(Seen::HasGone);
            }
            // The answer to `request_state` when the interface is gone.
            Some(NetlinkPayload::Error(error)) if error.raw_code() == -libc::ENODEV => {
                return Some(Seen::HasGone);
            }
            _ => {}
        }
    }
    newest
}

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
fn interface(place: Place) -> LinkMessage {
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
fn state(link: &LinkMessage) -> Option<TunState> {
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
