//! `recvmmsg` and `sendmmsg`: many datagrams with one system call, the local address of each (`IP_PKTINFO` of ip(7),
//! `IPV6_PKTINFO` of ipv6(7)), and whole runs of datagrams in place of one (`UDP_SEGMENT` and `UDP_GRO` of udp(7)).
#![expect(
    unsafe_code,
    reason = "neither nix nor socket2 sends batches whose datagrams differ in control messages"
)]

use std::{
    io,
    mem::{offset_of, zeroed},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use wireloom_proto::{Endpoint, LocalAddress};

use crate::{
    batch::{GsoRun, INBOUND_MAX, InboundBatch, OUTBOUND_MAX},
    packet::ecn::Ecn,
};

/// Room for three control messages, in bytes: one with a local address of the larger family, one with the size of a
/// run's datagrams, which is an int when received and shorter when sent, and one with the class, an int or shorter.
const CONTROL_LEN: usize = space(size_of::<libc::in6_pktinfo>()) + 2 * space(size_of::<libc::c_int>());

/// The room that a control message with `len` bytes of data takes.
const fn space(len: usize) -> usize {
    // SAFETY: CMSG_SPACE only computes.
    unsafe { libc::CMSG_SPACE(len as u32) as usize }
}

/// The memory that the header of one datagram points to.
#[derive(Clone, Copy)]
#[repr(C)]
struct Targets {
    /// The first field of a `repr(C)` struct, so it is aligned like the struct, which suffices for `cmsghdr`.
    control: [u8; CONTROL_LEN],
    address: libc::sockaddr_storage,
    memory: libc::iovec,
}

const _: () = assert!(align_of::<Targets>() >= align_of::<libc::cmsghdr>());

/// Headers and their targets, allocated once. The pointers are written anew before each call.
struct Headers {
    headers: Box<[libc::mmsghdr]>,
    targets: Box<[Targets]>,
}

// SAFETY: the pointers in the headers are written before each call, from a unique borrow of their targets, and are not
// used after it: whichever thread calls next writes its own.
unsafe impl Send for Headers {}

impl Headers {
    fn new(len: usize) -> Self {
        // SAFETY: all zeroes is a valid value of both C structs: no addresses, no lengths.
        let (header, targets) = unsafe { (zeroed(), zeroed()) };
        Self { headers: vec![header; len].into(), targets: vec![targets; len].into() }
    }

    /// Points header `at` to its targets, with all their room. The caller sets `memory`.
    fn connect(&mut self, at: usize) -> (&mut libc::msghdr, &mut Targets) {
        let targets = &mut self.targets[at];
        let header = &mut self.headers[at].msg_hdr;
        header.msg_name = (&raw mut targets.address).cast();
        header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        header.msg_iov = &raw mut targets.memory;
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut targets.control).cast();
        header.msg_controllen = CONTROL_LEN as _;
        header.msg_flags = 0;
        (header, targets)
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
    /// Adds the datagrams that have arrived at the socket to the batch, as far as there is room.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>, batch: &mut InboundBatch) {
        let mut wanted = 0;
        for room in batch.rooms() {
            let (_, targets) = self.0.connect(wanted);
            targets.memory = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
            wanted += 1;
        }
        if wanted == 0 {
            return;
        }
        // SAFETY: the first `wanted` headers point to targets in `self.0` and to the batch's rooms. All of these live
        // and stay in place until the call returns, and nobody else accesses them.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.0.headers.as_mut_ptr(),
                wanted as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        // An error means that nothing has arrived, or was raised by ICMP, which does not affect later calls.
        let received = usize::try_from(received).unwrap_or(0);
        for (header, targets) in self.0.headers[..received].iter().zip(&self.0.targets) {
            let control_len: usize = header.msg_hdr.msg_controllen as _;
            let control = targets.control.get(..control_len);
            let Received { local, size, ecn } = control_messages(control.unwrap_or_default());
            // A source that is no IP address cannot occur. The datagram would be dropped as a message of length 0.
            let remote = remote_address(&targets.address);
            let len = if remote.is_some() { header.msg_len as usize } else { 0 };
            let remote = remote.unwrap_or_else(|| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
            // Nothing can be sent to port 0, which the kernel refuses as it does a source address that is gone.
            let local = local.filter(|_| remote.port() != 0);
            batch.push(Endpoint { remote, local }, len, size.unwrap_or(len), ecn);
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
    /// Sends these runs, at most as many as a batch has datagrams, until the kernel takes no more. Returns how many
    /// were sent.
    ///
    /// # Errors
    /// Why the first run was not sent.
    pub(super) fn send<'d>(
        &mut self,
        socket: BorrowedFd<'_>,
        runs: impl Iterator<Item = GsoRun<'d>>,
    ) -> io::Result<usize> {
        let mut count = 0;
        for run in runs.take(OUTBOUND_MAX) {
            let (header, targets) = self.0.connect(count);
            // `sendmmsg` only reads this memory.
            targets.memory =
                libc::iovec { iov_base: run.bytes.as_ptr().cast_mut().cast(), iov_len: run.bytes.len() };
            header.msg_namelen = write_address(&mut targets.address, run.to.remote);
            let mut control = Control { bytes: &mut targets.control, used: 0 };
            if let Some(local) = run.to.local {
                control.write_local(local);
            }
            if run.class != 0 {
                control.write_class(run.to.remote.is_ipv4(), run.class.into());
            }
            if run.count > 1 {
                control.write(libc::SOL_UDP, libc::UDP_SEGMENT, run.size as u16);
            }
            header.msg_controllen = control.used as _;
            count += 1;
        }
        // SAFETY: the first `count` headers point to targets in `self.0` and to the caller's datagrams, all of which
        // live and stay in place until the call returns.
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
    // SAFETY: a `sockaddr_storage` is large and aligned enough for the address of either family, and its family says
    // which one the kernel wrote.
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
                // The flow label is the sender's and does not belong into an answer.
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

/// What the control messages of a received datagram say.
#[derive(Default)]
struct Received {
    /// Its local address.
    local: Option<LocalAddress>,
    /// The size of the datagrams, if it is a run of them.
    size: Option<usize>,
    ecn: Ecn,
}

/// Reads the control messages of a received datagram. One that is too short for its kind is passed over.
fn control_messages(mut control: &[u8]) -> Received {
    let mut received = Received::default();
    while let Some((level, kind, data)) = next_message(&mut control) {
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                let address = field::<4>(data, offset_of!(libc::in_pktinfo, ipi_spec_dst));
                let interface = field(data, offset_of!(libc::in_pktinfo, ipi_ifindex));
                received.local = local_address(address.map(IpAddr::from), interface).or(received.local);
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let address = field::<16>(data, offset_of!(libc::in6_pktinfo, ipi6_addr));
                let interface = field(data, offset_of!(libc::in6_pktinfo, ipi6_ifindex));
                received.local = local_address(address.map(IpAddr::from), interface).or(received.local);
            }
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let len = field(data, 0).map(libc::c_int::from_ne_bytes);
                received.size = len.and_then(|len| usize::try_from(len).ok()).filter(|size| *size > 0);
            }
            // One byte (`ip_cmsg_recv_tos` in net/ipv4/ip_sockglue.c).
            (libc::IPPROTO_IP, libc::IP_TOS) => {
                received.ecn = data.first().map_or(received.ecn, |class| Ecn::of_class(*class));
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                let class = field(data, 0).map(libc::c_int::from_ne_bytes);
                received.ecn = class.map_or(received.ecn, |class| Ecn::of_class(class as u8));
            }
            _ => {}
        }
    }
    received
}

fn local_address(address: Option<IpAddr>, interface: Option<[u8; 4]>) -> Option<LocalAddress> {
    Some(LocalAddress { address: address?, interface: u32::from_ne_bytes(interface?) })
}

/// The next control message, which is taken off: its level, kind and data. `None` at the end, and when it is cut.
fn next_message<'c>(control: &mut &'c [u8]) -> Option<(libc::c_int, libc::c_int, &'c [u8])> {
    let header = control.first_chunk::<{ size_of::<libc::cmsghdr>() }>()?;
    // SAFETY: these are as many bytes as a `cmsghdr` has, which consists of integers: any bytes are one. It is read
    // unaligned.
    let header: libc::cmsghdr = unsafe { ptr::read_unaligned(header.as_ptr().cast()) };
    let data = control.get(space(0)..header.cmsg_len as usize)?;
    *control = control.get(space(data.len())..).unwrap_or_default();
    Some((header.cmsg_level, header.cmsg_type, data))
}

/// The bytes of a field of a C struct that `data` begins with.
fn field<const LEN: usize>(data: &[u8], at: usize) -> Option<[u8; LEN]> {
    data.get(at..)?.first_chunk().copied()
}

/// The control messages of a datagram to be sent, as they are written.
struct Control<'p> {
    bytes: &'p mut [u8; CONTROL_LEN],
    used: usize,
}

impl Control<'_> {
    /// Sets the datagram's source address.
    ///
    /// The interface is left to routing, so that it can change with the routes. Only an IPv6 link-local address is
    /// meaningless without it.
    fn write_local(&mut self, local: LocalAddress) {
        match local.address {
            IpAddr::V4(address) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: address.to_bits().to_be() },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                self.write(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            IpAddr::V6(address) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: address.octets() },
                    ipi6_ifindex: if address.is_unicast_link_local() { local.interface } else { 0 },
                };
                self.write(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
        }
    }

    /// Sets the datagram's type of service, or traffic class.
    fn write_class(&mut self, is_v4: bool, class: libc::c_int) {
        if is_v4 {
            self.write(libc::IPPROTO_IP, libc::IP_TOS, class);
        } else {
            self.write(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, class);
        }
    }

    /// Adds a control message. `data` must have the type that the kernel expects for its level and kind.
    fn write<T: Copy>(&mut self, level: libc::c_int, kind: libc::c_int, data: T) {
        let room = &mut self.bytes[self.used..][..space(size_of::<T>())];
        room.fill(0);
        // SAFETY: `room` is large enough for the header and this data. It is aligned for a `cmsghdr`, because the first
        // one is (see `Targets`) and every length is a multiple of that alignment. The data is written unaligned.
        unsafe {
            let message = room.as_mut_ptr().cast::<libc::cmsghdr>();
            (*message).cmsg_level = level;
            (*message).cmsg_type = kind;
            (*message).cmsg_len = libc::CMSG_LEN(size_of::<T>() as u32) as _;
            ptr::write_unaligned(libc::CMSG_DATA(message).cast(), data);
        }
        self.used += space(size_of::<T>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_are_read_as_they_are_written_and_not_beyond_their_end() {
        let mut bytes = [0; CONTROL_LEN];
        let mut control = Control { bytes: &mut bytes, used: 0 };
        let local = LocalAddress { address: "fe80::7".parse().unwrap(), interface: 7 };
        control.write_local(local);
        control.write(libc::SOL_UDP, libc::UDP_GRO, 1400 as libc::c_int);
        control.write_class(false, 3);
        let used = control.used;
        let read = |len: usize| {
            let received = control_messages(&bytes[..len]);
            (received.local, received.size, received.ecn)
        };
        assert_eq!(read(used), (Some(local), Some(1400), Ecn::of_class(3)));
        let ends = [space(size_of::<libc::in6_pktinfo>()), space(4), space(4)];
        for len in 0..used {
            // The last bytes of each are padding.
            let is_whole = |message: usize| len + 8 > ends[..=message].iter().sum();
            let (local, size, ecn) = read(len);
            assert!(local.is_none() || is_whole(0), "{len}");
            assert!(size.is_none() || is_whole(1), "{len}");
            assert!(ecn == Ecn::default() || is_whole(2), "{len}");
        }
        // A message that says that it is longer, or shorter than its header.
        for len in [used + 1, 3, 0] {
            bytes[..size_of::<usize>()].copy_from_slice(&len.to_ne_bytes());
            assert!(control_messages(&bytes[..used]).local.is_none(), "{len}");
        }
    }
}
