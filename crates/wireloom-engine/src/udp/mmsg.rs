//! `recvmmsg` and `sendmmsg`: many datagrams with one system call, and the local address of each
//! (`IP_PKTINFO` of ip(7), `IPV6_PKTINFO` of ipv6(7)).
#![expect(
    unsafe_code,
    reason = "neither nix nor socket2 send batches whose datagrams differ in control messages"
)]

use std::{
    io,
    mem::zeroed,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use wireloom_proto::{Endpoint, LocalAddress};

use super::batch::{INBOUND_MAX, Inbound, OUTBOUND_MAX};

/// Bytes for one control message with a local address: `CMSG_SPACE` of the larger kind.
// SAFETY: CMSG_SPACE only computes.
const CONTROL_LEN: usize = unsafe { libc::CMSG_SPACE(size_of::<libc::in6_pktinfo>() as u32) } as usize;

/// What the headers of one datagram point to.
#[derive(Clone, Copy)]
#[repr(C)]
struct Places {
    /// First and in a `repr(C)`, so that it is aligned for `cmsghdr` as the struct is.
    control: [u8; CONTROL_LEN],
    address: libc::sockaddr_storage,
    memory: libc::iovec,
}

const _: () = assert!(align_of::<Places>() >= align_of::<libc::cmsghdr>());

/// Headers and what they point to, allocated once. The pointers are set anew for each call.
struct Headers {
    headers: Box<[libc::mmsghdr]>,
    places: Box<[Places]>,
}

impl Headers {
    fn new(len: usize) -> Self {
        // SAFETY: all zeroes is a valid value of both C structs: no addresses, no lengths.
        let (header, places) = unsafe { (zeroed(), zeroed()) };
        Self { headers: vec![header; len].into(), places: vec![places; len].into() }
    }

    /// Points header `at` to its places, with all their room; the memory is for the caller to set.
    fn wire(&mut self, at: usize) -> (&mut libc::msghdr, &mut Places) {
        let places = &mut self.places[at];
        let header = &mut self.headers[at].msg_hdr;
        header.msg_name = (&raw mut places.address).cast();
        header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        header.msg_iov = &raw mut places.memory;
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut places.control).cast();
        header.msg_controllen = CONTROL_LEN as _;
        header.msg_flags = 0;
        (header, places)
    }
}

/// Receives into batches.
pub(super) struct Receiver(Headers);

impl Default for Receiver {
    fn default() -> Self {
        Self(Headers::new(INBOUND_MAX))
    }
}

impl Receiver {
    /// Adds what has arrived at the socket to the batch, as far as there is room.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>, batch: &mut Inbound) {
        let mut wanted = 0;
        for room in batch.rooms() {
            let (_, places) = self.0.wire(wanted);
            places.memory = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
            wanted += 1;
        }
        if wanted == 0 {
            return;
        }
        // SAFETY: the first `wanted` headers point to places in `self.0` and to the batch's rooms, all
        // of which live and stay where they are until the call returns; no one else accesses them.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.0.headers.as_mut_ptr(),
                wanted as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        // An error means that nothing has come, or is one that ICMP raised, which UDP outlives.
        let received = usize::try_from(received).unwrap_or(0);
        for (header, places) in self.0.headers[..received].iter().zip(&self.0.places) {
            let local = local_address(&header.msg_hdr);
            // Not from an IP address, which cannot be: it will be refused as a message of length 0.
            let remote = remote_address(&places.address);
            let len = if remote.is_some() { header.msg_len as usize } else { 0 };
            let remote = remote.unwrap_or_else(|| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
            batch.push(Endpoint { remote, local }, len);
        }
    }
}

/// Sends batches.
pub(super) struct Sender(Headers);

impl Default for Sender {
    fn default() -> Self {
        Self(Headers::new(OUTBOUND_MAX))
    }
}

impl Sender {
    /// Sends these datagrams (no more than a batch has), as far as they go; returns how many went.
    ///
    /// # Errors
    /// Why the first of them did not go.
    pub(super) fn send<'d>(
        &mut self,
        socket: BorrowedFd<'_>,
        datagrams: impl Iterator<Item = (Endpoint, &'d [u8])>,
    ) -> io::Result<usize> {
        let mut count = 0;
        for (to, datagram) in datagrams.take(OUTBOUND_MAX) {
            let (header, places) = self.0.wire(count);
            // The kernel only reads what `sendmmsg` is pointed to.
            places.memory =
                libc::iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: datagram.len() };
            header.msg_namelen = write_address(&mut places.address, to.remote);
            header.msg_controllen = to.local.map_or(0, |local| write_local(&mut places.control, local)) as _;
            count += 1;
        }
        // SAFETY: the first `count` headers point to places in `self.0` and to the caller's datagrams,
        // all of which live and stay where they are until the call returns.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.0.headers.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

fn remote_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let storage: *const _ = storage;
    // SAFETY: a `sockaddr_storage` is large and aligned enough for the address of either family, and
    // the family tells which one the kernel wrote.
    unsafe {
        match libc::c_int::from((*storage).ss_family) {
            libc::AF_INET => {
                let address = &*storage.cast::<libc::sockaddr_in>();
                let ip = Ipv4Addr::from_bits(u32::from_be(address.sin_addr.s_addr));
                Some(SocketAddrV4::new(ip, u16::from_be(address.sin_port)).into())
            }
            libc::AF_INET6 => {
                let address = &*storage.cast::<libc::sockaddr_in6>();
                let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
                // The flow label is the sender's; it names nothing that an answer should carry.
                Some(SocketAddrV6::new(ip, u16::from_be(address.sin6_port), 0, address.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

/// Writes a socket address and returns its length.
fn write_address(storage: &mut libc::sockaddr_storage, address: SocketAddr) -> libc::socklen_t {
    let storage: *mut _ = storage;
    // SAFETY: a `sockaddr_storage` is large and aligned enough for the address of either family.
    unsafe {
        match address {
            SocketAddr::V4(address) => {
                let to = storage.cast::<libc::sockaddr_in>();
                *to = zeroed();
                (*to).sin_family = libc::AF_INET as libc::sa_family_t;
                (*to).sin_port = address.port().to_be();
                (*to).sin_addr.s_addr = address.ip().to_bits().to_be();
                size_of::<libc::sockaddr_in>() as libc::socklen_t
            }
            SocketAddr::V6(address) => {
                let to = storage.cast::<libc::sockaddr_in6>();
                *to = zeroed();
                (*to).sin6_family = libc::AF_INET6 as libc::sa_family_t;
                (*to).sin6_port = address.port().to_be();
                (*to).sin6_addr.s6_addr = address.ip().octets();
                (*to).sin6_scope_id = address.scope_id();
                size_of::<libc::sockaddr_in6>() as libc::socklen_t
            }
        }
    }
}

/// The local address that a received datagram's control messages tell.
fn local_address(header: &libc::msghdr) -> Option<LocalAddress> {
    // SAFETY: the kernel filled the header's control messages, `msg_controllen` bytes of them; the
    // macros walk within these, and the data of a control message is read unaligned as what its level
    // and type say it is.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = ptr::read_unaligned(libc::CMSG_DATA(message).cast());
                    let address = Ipv4Addr::from_bits(u32::from_be(info.ipi_spec_dst.s_addr));
                    return Some(LocalAddress {
                        address: address.into(),
                        interface: info.ipi_ifindex as u32,
                    });
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info: libc::in6_pktinfo = ptr::read_unaligned(libc::CMSG_DATA(message).cast());
                    let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    return Some(LocalAddress { address: address.into(), interface: info.ipi6_ifindex });
                }
                _ => message = libc::CMSG_NXTHDR(header, message),
            }
        }
    }
    None
}

/// Writes the control message that makes a datagram leave from this address; returns its length.
///
/// Only the address is asked for, so that routing stays free to choose another interface when routes
/// change; an IPv6 link-local address alone means nothing without its interface.
fn write_local(control: &mut [u8; CONTROL_LEN], local: LocalAddress) -> usize {
    control.fill(0);
    let control = control.as_mut_ptr();
    let write = |level, kind, len: usize| {
        // SAFETY: `control` is aligned for a `cmsghdr` (see `Places`) and as long as the largest message.
        unsafe {
            let message = control.cast::<libc::cmsghdr>();
            (*message).cmsg_level = level;
            (*message).cmsg_type = kind;
            (*message).cmsg_len = libc::CMSG_LEN(len as u32) as _;
            (libc::CMSG_DATA(message), libc::CMSG_SPACE(len as u32) as usize)
        }
    };
    match local.address {
        IpAddr::V4(address) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: address.to_bits().to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            let (data, len) = write(libc::IPPROTO_IP, libc::IP_PKTINFO, size_of_val(&info));
            // SAFETY: the data of this message has room for an `in_pktinfo`.
            unsafe { ptr::write_unaligned(data.cast(), info) };
            len
        }
        IpAddr::V6(address) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: address.octets() },
                ipi6_ifindex: if address.is_unicast_link_local() { local.interface } else { 0 },
            };
            let (data, len) = write(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, size_of_val(&info));
            // SAFETY: the data of this message has room for an `in6_pktinfo`.
            unsafe { ptr::write_unaligned(data.cast(), info) };
            len
        }
    }
}
