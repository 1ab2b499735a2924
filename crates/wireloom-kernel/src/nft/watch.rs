//! Notifications of nftables: says when somebody else changed our table.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use netlink_packet_core::NetlinkHeader;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};

use super::{
    super::netlink::for_each_message,
    TABLE,
    netlink::{INET, SUBSYSTEM, first_attribute},
};

/// `NFNLGRP_NFTABLES` of include/uapi/linux/netfilter/nfnetlink.h.
const GROUP: u32 = 7;

/// Bytes; a full buffer is no loss: it means that something changed. Our own transactions of
/// thousands of elements should not fill it.
const RECEIVE_BUFFER: usize = 16 << 20;

/// Bytes of one read (`NLMSG_GOODSIZE` for a batch of notifications, at most a page or two).
const READ: usize = 64 << 10;

/// Our last `nft` processes: their changes are no news. A netlink socket that asks for no port gets
/// its process's number (`netlink_autobind`, net/netlink/af_netlink.c), and notifications carry it.
#[derive(Debug, Clone, Default)]
pub(super) struct OwnProcesses(Arc<Mutex<VecDeque<u32>>>);

impl OwnProcesses {
    /// More than can have notifications under way.
    const REMEMBERED: usize = 32;

    pub(super) fn remember(&self, process: u32) {
        let mut processes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        processes.truncate(Self::REMEMBERED - 1);
        processes.push_front(process);
    }

    fn has(&self, process: u32) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&process)
    }
}

/// Listens in a thread of its own, for as long as the process lives.
pub(super) fn start(own: OwnProcesses, changed: impl Fn() + Send + 'static) -> io::Result<()> {
    let mut socket = match Socket::new(NETLINK_NETFILTER) {
        // A kernel without netfilter has nothing to tell.
        Err(error) if error.raw_os_error() == Some(Errno::EPROTONOSUPPORT as i32) => return Ok(()),
        socket => socket?,
    };
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.add_membership(GROUP)?;
    thread::Builder::new().name("nftables".into()).spawn(move || listen(&socket, &own, changed))?;
    Ok(())
}

fn listen(socket: &Socket, own: &OwnProcesses, changed: impl Fn()) {
    let mut datagram = Vec::with_capacity(READ);
    loop {
        datagram.clear();
        match socket.recv(&mut datagram, 0) {
            Ok(_) if concerns(&datagram, own) => changed(),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Notifications were lost: they may have been of our table.
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => changed(),
            Err(error) => {
                tracing::error!("nftables' notifications end here, only the periodic pass remains: {error}");
                return;
            }
        }
    }
}

fn concerns(datagram: &[u8], own: &OwnProcesses) -> bool {
    let mut any = false;
    let whole = for_each_message(datagram, |header, message| {
        any |= is_of_our_table(header, message) && !own.has(header.port_number);
    });
    any || whole.is_err()
}

fn is_of_our_table(header: NetlinkHeader, message: &[u8]) -> bool {
    let name = first_attribute(message).and_then(|name| name.strip_suffix(b"\0"));
    header.message_type >> 8 == SUBSYSTEM && message.get(16) == Some(&INET) && name == Some(TABLE.as_bytes())
}
