//! The interface as rtnetlink shows it: set up once, then followed.

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

/// `RTMGRP_LINK` of rtnetlink(7): the group that hears of every link's changes.
const LINK_GROUP: u32 = 1;
/// One netlink datagram with a link's attributes; the kernel sizes its own at 8 to 32 KiB.
const BUFFER_LEN: usize = 32 << 10;

/// Follows one interface.
pub(super) struct LinkMonitor {
    socket: Socket,
    index: u32,
    buffer: Vec<u8>,
}

impl LinkMonitor {
    /// Begins to follow; the current state is the first event.
    pub(super) fn open(index: u32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, LINK_GROUP))?;
        socket.set_non_blocking(true)?;
        let monitor = Self { socket, index, buffer: vec![0; BUFFER_LEN] };
        monitor.ask()?;
        Ok(monitor)
    }

    /// Asks for the current state; the answer comes as an event.
    fn ask(&self) -> io::Result<()> {
        send(&self.socket, RouteNetlinkMessage::GetLink(link(self.index)), NLM_F_REQUEST)
    }

    /// The next event that concerns the interface.
    pub(super) fn poll(&mut self) -> io::Result<Option<TunEvent>> {
        loop {
            let len = match self.socket.recv(&mut &mut self.buffer[..], 0) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                // News was lost because we were slow: the present state makes up for it.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.ask()?;
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

    /// Puts one IPv6 link-local address in the place of another, if that is there.
    pub(super) fn move_link_local(&self, from: Ipv6Addr, to: Ipv6Addr) {
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
        // It is not there while the interface is down, or when others manage the addresses.
        if let Err(error) = moved {
            tracing::debug!("the interface's link-local address stays: {error}");
        }
    }

    fn event(&self, message: NetlinkMessage<RouteNetlinkMessage>) -> Option<TunEvent> {
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))
                if link.header.index == self.index =>
            {
                let mtu = link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::Mtu(mtu) => Some(*mtu as usize),
                    _ => None,
                })?;
                Some(TunEvent::State(TunState { up: link.header.flags.contains(LinkFlags::Up), mtu }))
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))
                if link.header.index == self.index =>
            {
                Some(TunEvent::Gone)
            }
            // The answer to `ask` when the interface is gone.
            NetlinkPayload::Error(error) if error.raw_code() == -libc::ENODEV => Some(TunEvent::Gone),
            _ => None,
        }
    }
}

impl AsFd for LinkMonitor {
    #[expect(unsafe_code, reason = "netlink_sys::Socket lends its descriptor as a number only")]
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket owns the descriptor and lives as long as the returned borrow of `self`.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}

/// Gives a new interface the MTU and the manners of the kernel's own WireGuard interfaces (`wg_setup`
/// in drivers/net/wireguard/device.c): no multicast and no generated IPv6 link-local address, because
/// the group reports and router solicitations that come with them would start handshakes.
pub(super) fn set_up_tun(index: u32, mtu: u32) -> io::Result<()> {
    // On a machine that forwards, IPv6 has joined the all-routers group the moment it saw a new
    // interface with multicast, and stays in it. An MTU below its minimum makes it leave the interface;
    // when it comes back, it looks at the flag again (`addrconf_notify` in net/ipv6/addrconf.c).
    let mut link = self::link(index);
    link.header.change_mask = LinkFlags::Multicast;
    link.attributes.push(LinkAttribute::Mtu(IPV6_MTU_MIN - 1));
    request(RouteNetlinkMessage::SetLink(link))?;

    let mut link = self::link(index);
    link.attributes.push(LinkAttribute::Mtu(mtu));
    request(RouteNetlinkMessage::SetLink(link))?;

    // On its own: a machine without IPv6 refuses it, and needs it not.
    let mut link = self::link(index);
    let quiet = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
    link.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(quiet)]));
    if let Err(error) = request(RouteNetlinkMessage::SetLink(link)) {
        tracing::debug!("the interface keeps its IPv6 address generation: {error}");
    }
    Ok(())
}

/// Bounds the super-packets that the network stack makes for the interface.
pub(super) fn set_gso_max_size(index: u32, len: u32) -> io::Result<()> {
    let mut link = self::link(index);
    link.attributes.push(LinkAttribute::GsoMaxSize(len));
    request(RouteNetlinkMessage::SetLink(link))
}

/// Gives a new TAP interface the MTU, its mark of ownership and the manners of a link whose neighbours
/// have their addresses by right: no duplicate address detection, which nobody would answer; no
/// advertised prefixes or routers taken over; no redirects sent.
pub(super) fn set_up_tap(index: u32, name: &str, mtu: u32) -> io::Result<()> {
    let mut link = self::link(index);
    link.attributes.push(LinkAttribute::Mtu(mtu));
    link.attributes.push(LinkAttribute::IfAlias(DEVICE_ALIAS.to_owned()));
    request(RouteNetlinkMessage::SetLink(link))?;
    for (setting, value) in [
        ("ipv6/conf/{}/addr_gen_mode", "0"),
        ("ipv6/conf/{}/accept_dad", "0"),
        ("ipv6/conf/{}/accept_ra", "0"),
        ("ipv4/conf/{}/send_redirects", "0"),
    ] {
        let path = format!("/proc/sys/net/{}", setting.replace("{}", name));
        // A machine without IPv6, or a container that shows settings read-only, works without.
        if let Err(error) = fs::write(&path, value) {
            tracing::warn!("cannot set {path} to {value}: {error}");
        }
    }
    Ok(())
}

/// Whether there is an interface of this name that bears our mark and that no process holds. One that can
/// have several queues would let us in beside whoever has it, to take packets away: that somebody has it
/// is told by its carrier (`__tun_detach` in drivers/net/tun.c).
pub(super) fn was_left(name: &str) -> io::Result<bool> {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.into()));
    match exchange(RouteNetlinkMessage::GetLink(link), 0) {
        Ok(Some(RouteNetlinkMessage::NewLink(link))) => {
            let says = |what: fn(&LinkAttribute) -> bool| link.attributes.iter().any(what);
            let is_ours = |said: &LinkAttribute| matches!(said, LinkAttribute::IfAlias(alias) if alias == AGENT_ALIAS || alias == DEVICE_ALIAS);
            Ok(says(is_ours) && says(|said| *said == LinkAttribute::Carrier(0)))
        }
        Ok(_) => Ok(false),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// RFC 8200, section 5.
const IPV6_MTU_MIN: u32 = 1280;

/// A message about an interface, in which nothing is said yet.
fn link(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link
}

/// Sends one request and waits for its acknowledgement.
fn request(message: RouteNetlinkMessage) -> io::Result<()> {
    exchange(message, NLM_F_ACK).map(drop)
}

/// Sends one request and waits for what is said to it: a message, or an acknowledgement.
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
    Err(io::Error::new(io::ErrorKind::InvalidData, "rtnetlink gave no answer"))
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

/// The messages of one datagram; what cannot be parsed ends the walk.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = NetlinkMessage<RouteNetlinkMessage>> {
    std::iter::from_fn(move || {
        let len = NetlinkBuffer::new_checked(bytes).ok()?.length() as usize;
        let message = NetlinkMessage::deserialize(bytes).ok()?;
        // Messages are aligned to 4 bytes (NLMSG_ALIGN).
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}
