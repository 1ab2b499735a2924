//! One datagram in, one datagram out, from the address that was called.
//!
//! A host has several addresses. Left to itself, the kernel would send the answer from the one that the route to the
//! client prefers: to a pod on the same node, the bridge's. Clients and connection tracking accept it only from the
//! address that was called, so the answer names its source (`IPV6_PKTINFO`, RFC 3542, section 6).

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv6Addr, UdpSocket},
    os::fd::AsRawFd as _,
};

use nix::{
    cmsg_space,
    libc::in6_pktinfo,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg, setsockopt, sockopt,
    },
};

use crate::answer;

/// The largest UDP payload, in bytes (RFC 768: a length of 16 bits).
const LARGEST: usize = 1 << 16;

/// Binds a port of all addresses. Such a socket takes IPv4 as well, and shows its addresses as `::ffff:0:0/96`.
pub(super) fn bind(port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    Ok(socket)
}

/// Answers every datagram. A client that cannot be reached gets no answer.
pub(super) fn serve(socket: &UdpSocket, name: &str) {
    loop {
        let _ = exchange(socket, name);
    }
}

/// Waits for one datagram and answers it.
fn exchange(socket: &UdpSocket, name: &str) -> nix::Result<()> {
    let mut request = vec![0; LARGEST];
    let mut control = cmsg_space!(in6_pktinfo);
    let mut buffer = [IoSliceMut::new(&mut request)];
    let flags = MsgFlags::empty();
    let message = recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut buffer, Some(&mut control), flags)?;
    let Some(client) = message.address else { return Ok(()) };
    let called = message.cmsgs()?.find_map(|control| match control {
        // Without the interface: the route to the client chooses it.
        ControlMessageOwned::Ipv6PacketInfo(called) => Some(in6_pktinfo { ipi6_ifindex: 0, ..called }),
        _ => None,
    });
    let answer = answer(name, IpAddr::V6(client.ip()), message.bytes);
    let source: Vec<_> = called.iter().map(ControlMessage::Ipv6PacketInfo).collect();
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(answer.as_bytes())], &source, flags, Some(&client))?;
    Ok(())
}
