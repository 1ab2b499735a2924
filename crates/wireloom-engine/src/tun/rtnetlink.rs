//! The interface by rtnetlink(7): set up once, then followed.

use std::{
    fs, io,
    net::Ipv6Addr,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use wireloom_types::interface::{AGENT_ALIAS, DEVICE_ALIAS};

use super::{TunEvent, TunState};
use crate::packet::ipv6;

/// `RTMGRP_LINK` of rtnetlink(7): the group that gets the changes of every interface.
const LINK_GROUP: u32 = 1;
/// Room for one netlink datagram, in bytes; the kernel makes them of up to 32 KiB.
const BUFFER_LEN: usize = 32 << 10;

/// Follows the state of one interface.
pub(super) struct InterfaceMonitor {
    socket: Socket,
    index: u32,
    buffer: Vec<u8>,
}

impl InterfaceMonitor {
    /// Begins to follow the interface with this index. The current state is the first event.
    pub(super) fn open(index: u32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, LINK_GROUP))?;
        socket.set_non_blocking(true)?;
        let monitor = Self { socket, index, buffer: vec![0; BUFFER_LEN] };
        monitor.request_state()?;
        Ok(monitor)
    }

    /// Asks for the current state. The answer is an event.
    fn request_state(&self) -> io::Result<()> {
        send(&self.socket, RouteNetlinkMessage::GetLink(interface(self.index)), NLM_F_REQUEST)
    }

    /// The next event that concerns the interface.
    pub(super) fn poll(&mut self) -> io::Result<Option<TunEvent>> {
        loop {
            let len = match self.socket.recv(&mut &mut self.buffer[..], 0) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                // Events were lost because we were slow: the present state makes up for them.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.request_state()?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let event = messages(&self.buffer[..len]).filter_map(|message| self.event(message)).last();
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
        let create = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let moved = request(RouteNetlinkMessage::DelAddress(address(from)))
            .and_then(|()| exchange(RouteNetlinkMessage::NewAddress(address(to)), create));
        // The address is missing while the interface is down, or when another program manages the addresses.
        if let Err(error) = moved {
            tracing::debug!("cannot replace the interface's link-local address {from} by {to}: {error}");
        }
    }

    fn event(&self, message: NetlinkMessage<RouteNetlinkMessage>) -> Option<TunEvent> {
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))
                if link.header.index == self.index =>
            {
                let mtu = link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::Mtu(mtu) => usize::try_from(*mtu).ok(),
                    _ => None,
                })?;
                Some(TunEvent::State(TunState { up: link.header.flags.contains(LinkFlags::Up), mtu }))
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))
                if link.header.index == self.index =>
            {
                Some(TunEvent::Gone)
            }
            // The answer to `request_state` when the interface is gone.
            NetlinkPayload::Error(error) if error.raw_code() == -libc::ENODEV => Some(TunEvent::Gone),
            _ => None,
        }
    }
}

impl AsFd for InterfaceMonitor {
    #[expect(unsafe_code, reason = "netlink_sys::Socket lends its descriptor as a number only")]
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket owns the descriptor and lives as long as the returned borrow of `self`.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
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
    request(RouteNetlinkMessage::SetLink(message))?;

    let mut message = interface(index);
    message.attributes.push(mtu_attribute(mtu));
    request(RouteNetlinkMessage::SetLink(message))?;

    // A separate request, because a machine without IPv6 refuses it. It does no harm there.
    let mut message = interface(index);
    let none = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(none)]));
    if let Err(error) = request(RouteNetlinkMessage::SetLink(message)) {
        tracing::debug!("cannot turn off the interface's IPv6 address generation: {error}");
    }
    Ok(())
}

/// Bounds the super-packets that the network stack makes for the interface to `len` bytes.
pub(super) fn set_gso_max_size(index: u32, len: u32) -> io::Result<()> {
    let mut message = interface(index);
    message.attributes.push(LinkAttribute::GsoMaxSize(len));
    request(RouteNetlinkMessage::SetLink(message))
}

/// Configures a new TAP interface: this MTU in bytes, the alias that marks it as ours, and the settings for a link
/// whose addresses are assigned by configuration. There is no duplicate address detection, which nobody would answer;
/// prefixes and routers that peers advertise are ignored; no redirects are sent.
pub(super) fn set_up_tap(index: u32, name: &str, mtu: usize) -> io::Result<()> {
    let mut message = interface(index);
    message.attributes.push(mtu_attribute(mtu));
    message.attributes.push(LinkAttribute::IfAlias(DEVICE_ALIAS.to_owned()));
    request(RouteNetlinkMessage::SetLink(message))?;
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

/// Whether there is an interface of this name that has our alias and no process. Without the second condition, we could
/// attach to an interface with several queues beside its process, and take packets away from it. The carrier tells
/// whether it has one (`__tun_detach` in drivers/net/tun.c).
pub(super) fn was_left(name: &str) -> io::Result<bool> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    match exchange(RouteNetlinkMessage::GetLink(message), 0) {
        Ok(Some(RouteNetlinkMessage::NewLink(message))) => {
            let has = |wanted: fn(&LinkAttribute) -> bool| message.attributes.iter().any(wanted);
            let our_alias = |attribute: &LinkAttribute| match attribute {
                LinkAttribute::IfAlias(alias) => alias == AGENT_ALIAS || alias == DEVICE_ALIAS,
                _ => false,
            };
            Ok(has(our_alias) && has(|attribute| *attribute == LinkAttribute::Carrier(0)))
        }
        Ok(_) => Ok(false),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL)) => Ok(false),
        Err(error) => Err(error),
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

/// Sends one request and waits for its acknowledgement.
fn request(message: RouteNetlinkMessage) -> io::Result<()> {
    exchange(message, NLM_F_ACK).map(drop)
}

/// Sends one request and waits for the answer: a message, or `None` for an acknowledgement.
fn exchange(message: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    send(&socket, message, NLM_F_REQUEST | flags)?;
    let mut buffer = vec![0; BUFFER_LEN];
    let len = socket.recv(&mut &mut buffer[..], 0)?;
    for message in messages(&buffer[..len]) {
        match message.payload {
            NetlinkPayload::InnerMessage(message) => return Ok(Some(message)),
            NetlinkPayload::Error(error) if error.code.is_none() => return Ok(None),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            _ => {}
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "rtnetlink did not answer"))
}

fn send(socket: &Socket, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).map(drop)
}

/// The messages of one datagram, up to the first that cannot be parsed.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = NetlinkMessage<RouteNetlinkMessage>> {
    std::iter::from_fn(move || {
        let len = NetlinkBuffer::new_checked(bytes).ok()?.length() as usize;
        let message = NetlinkMessage::deserialize(bytes).ok()?;
        // Messages are aligned to 4 bytes (NLMSG_ALIGN).
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}
