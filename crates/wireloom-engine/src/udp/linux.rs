//! UDP sockets of Linux: one for each address family, on the same port.

mod handover;
mod tries;

use std::{
    fs,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::{Arc, PoisonError, RwLock},
};

use nix::{
    cmsg_space,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, getsockopt, recvmsg, setsockopt, sockopt},
};
use socket2::{Domain, Protocol, Socket, Type};
use wireloom_proto::{Endpoint, LocalAddress};

use self::tries::Tries;
use super::{
    Network, Patience, Udp,
    mmsg::{Receiver, Sender},
    route_watch::{FollowedRoutes, RouteWatch},
    routing::{Origin, Refusals},
    sources::Sources,
};
use crate::{
    batch::{GsoRun, InboundBatch, SealedBatch},
    packet::MAX_PACKET,
};

/// The size of the socket's buffers, in bytes. Bursts of one fast TCP stream overflow buffers of 2 MB.
const SOCKET_BUFFER: usize = 8 << 20;
/// How often the system may choose a port that turns out to be taken for the other family.
const PICK_ATTEMPTS: usize = 100;
/// How long to wait for room in a full send buffer, in milliseconds.
const SEND_PATIENCE: u8 = 20;

/// The most datagrams in one GSO run: `UDP_MAX_SEGMENTS` in include/linux/udp.h has never been less than 64.
const RUN_DATAGRAMS: usize = 64;

/// The network of this process's network namespace.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LinuxNetwork;

/// A UDP port, open for both families, or for IPv4 alone on a machine without IPv6.
pub(crate) struct LinuxUdp {
    port: u16,
    sockets: Sockets,
    receiver: Receiver,
    sender: Sender,
    /// The most datagrams in one GSO run; 1 when the kernel has no segmentation offload.
    run_max: usize,
    /// Which family is received from first: they alternate, so that a flood of one does not starve the other.
    v6_first: bool,
    /// Whether IPv4 paths are probed.
    probes_v4: bool,
    /// The source addresses that are left to routing.
    sources: Sources,
    /// Finds these, in one of those that have the port open.
    watch: Option<RouteWatch>,
    refusals: Refusals,
    mark: u32,
    /// Held for writing while the sockets forbid fragments, and for reading by whoever sends datagrams that may need
    /// them: a sender shares the option with the queue whose sockets it has.
    fragments: Arc<RwLock<()>>,
}

/// One socket for each family, on the same port.
struct Sockets {
    v4: Socket,
    v6: Option<Socket>,
}

impl Sockets {
    /// The socket for this destination.
    fn towards(&self, to: Endpoint) -> io::Result<&Socket> {
        let socket = if to.remote.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() };
        socket.ok_or_else(|| io::ErrorKind::NetworkUnreachable.into())
    }
}

impl Network for LinuxNetwork {
    type Udp = LinuxUdp;

    fn bind(&self, port: u16, mark: u32) -> io::Result<LinuxUdp> {
        let mut attempts = if port == 0 { PICK_ATTEMPTS } else { 1 };
        loop {
            attempts -= 1;
            let v4 = self.open(Ipv4Addr::UNSPECIFIED.into(), port, mark, Share::Nobody)?;
            let bound = v4.local_addr()?.as_socket().map_or(port, |address| address.port());
            let v6 = match self.open(Ipv6Addr::UNSPECIFIED.into(), bound, mark, Share::Nobody) {
                Ok(socket) => Some(socket),
                Err(error) if has_no_ipv6(&error) => None,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts > 0 => continue,
                Err(error) => return Err(error),
            };
            let FollowedRoutes { sources, watch } = FollowedRoutes::open();
            return Ok(LinuxUdp { watch, ..LinuxUdp::new(bound, Sockets { v4, v6 }, mark, sources) });
        }
    }

    fn join(&self, first: &LinuxUdp, mark: u32) -> io::Result<LinuxUdp> {
        // Only now that the port is ours: if the option had been set before, we could have joined a port of another
        // process. The kernel picks the socket by a hash of both addresses and ports (`reuseport_select_sock` in
        // net/core/sock_reuseport.c).
        first.sockets.v4.set_reuse_port(true)?;
        let v4 = self.open(Ipv4Addr::UNSPECIFIED.into(), first.port, mark, Share::Ourselves)?;
        let v6 = match &first.sockets.v6 {
            Some(socket) => {
                socket.set_reuse_port(true)?;
                Some(self.open(Ipv6Addr::UNSPECIFIED.into(), first.port, mark, Share::Ourselves)?)
            }
            None => None,
        };
        Ok(LinuxUdp::new(first.port, Sockets { v4, v6 }, mark, first.sources.clone()))
    }

    fn sender(&self, first: &mut LinuxUdp) -> io::Result<LinuxUdp> {
        let v4 = first.sockets.v4.try_clone()?;
        let v6 = first.sockets.v6.as_ref().map(Socket::try_clone).transpose()?;
        Ok(LinuxUdp {
            watch: first.watch.take(),
            fragments: Arc::clone(&first.fragments),
            ..LinuxUdp::new(first.port, Sockets { v4, v6 }, first.mark, first.sources.clone())
        })
    }
}

/// Who else may use the port of a socket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Share {
    Nobody,
    /// Sockets of the same user that allow it, too.
    Ourselves,
}

/// Whether an error of socket(2) or bind(2) means that IPv6 is disabled or not built in.
fn has_no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

impl LinuxNetwork {
    fn open(self, address: IpAddr, port: u16, mark: u32, share: Share) -> io::Result<Socket> {
        let address = SocketAddr::new(address, port);
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
            socket.set_recv_tclass_v6(true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
            socket.set_recv_tos_v4(true)?;
        }
        // Like the kernel's WireGuard (`send4` in drivers/net/wireguard/socket.c): a tunnel whose MTU is too big for
        // the path is slow, not dead, even where ICMP is filtered.
        Fragments::Allowed.set(&socket, address.is_ipv4())?;
        if mark != 0 {
            socket.set_mark(mark)?;
        }
        grow_buffers(&socket);
        // It fails on kernels without receive offload, where datagrams arrive one by one.
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        if share == Share::Ourselves {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&address.into())?;
        Ok(socket)
    }
}

/// Whether the kernel discovers IPv4 path MTUs. With 1 in `ip_no_pmtu_disc` (ip-sysctl.rst), it takes every report of a
/// path that is too narrow for one of the smallest path MTU.
fn has_v4_discovery() -> bool {
    fs::read_to_string("/proc/sys/net/ipv4/ip_no_pmtu_disc").is_ok_and(|mode| mode.trim() != "1")
}

/// Whether datagrams may be fragmented (`IP_MTU_DISCOVER` of ip(7), `IPV6_MTU_DISCOVER` of ipv6(7)).
#[derive(Clone, Copy)]
enum Fragments {
    /// They may, here and, with IPv4, on the way.
    Allowed,
    /// They may not: one that is too big is refused with `EMSGSIZE`.
    Forbidden,
}

impl Fragments {
    #[expect(unsafe_code, reason = "neither socket2 nor nix has these options")]
    fn set(self, socket: &Socket, is_v4: bool) -> io::Result<()> {
        let (level, option) = if is_v4 {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
        };
        let value: libc::c_int = match self {
            Self::Allowed if is_v4 => libc::IP_PMTUDISC_DONT,
            Self::Allowed => libc::IPV6_PMTUDISC_WANT,
            Self::Forbidden if is_v4 => libc::IP_PMTUDISC_DO,
            Self::Forbidden => libc::IPV6_PMTUDISC_DO,
        };
        // SAFETY: the option's value is one int, whose address and size are given.
        let done = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of_val(&value) as libc::socklen_t,
            )
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Sets the size of both buffers: exceeding `net.core.{r,w}mem_max` if we may, else up to that.
fn grow_buffers(socket: &Socket) {
    if setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &SOCKET_BUFFER);
    }
    if setsockopt(socket, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::SndBuf, &SOCKET_BUFFER);
    }
}

impl LinuxUdp {
    fn new(port: u16, sockets: Sockets, mark: u32, sources: Sources) -> Self {
        Self {
            port,
            run_max: if getsockopt(&sockets.v4, sockopt::UdpGsoSegment).is_ok() { RUN_DATAGRAMS } else { 1 },
            sockets,
            receiver: Receiver::default(),
            sender: Sender::default(),
            v6_first: false,
            probes_v4: has_v4_discovery(),
            sources,
            watch: None,
            refusals: Refusals::default(),
            mark,
            fragments: Arc::default(),
        }
    }

    /// Readable when [`Udp::receive`] has datagrams.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(&self.sockets.v4).chain(&self.sockets.v6).map(AsFd::as_fd)
    }

    /// Readable when [`Udp::follow_routes`] has something to do, which the control thread asks.
    pub(crate) fn routes(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }

    /// Sends the datagram at position `next`, whose destination is `to`, and those after it of the same family, until
    /// the kernel takes no more. `most` is the most datagrams in one GSO run. Returns how many were sent.
    fn send_some(
        &mut self,
        batch: &SealedBatch<'_>,
        next: usize,
        to: Endpoint,
        most: usize,
    ) -> io::Result<usize> {
        let socket = self.sockets.towards(to)?;
        let same_family = |other: Endpoint| other.remote.is_ipv4() == to.remote.is_ipv4();
        let unusable = self.sources.unusable();
        let goes_along = |run: &GsoRun<'_>| same_family(run.to) && !run.lone_probe;
        let runs = batch.runs_from(next, most).take_while(goes_along).map(|mut run| {
            let remote = run.to.remote.ip();
            run.to.local = run.to.local.filter(|local| unusable.allow(remote, *local));
            run
        });
        let may_fragment = self.fragments.read().unwrap_or_else(PoisonError::into_inner);
        let sent = self.sender.send(socket.as_fd(), runs)?;
        drop(may_fragment);
        Ok(batch.runs_from(next, most).take(sent).map(|run| run.count).sum())
    }

    /// Sends copies of the datagrams that probe the path MTU over one family. They must not be fragmented. Their
    /// receivers know them already, and drop them as replays. Lone probes, which anybody behind the interface can make,
    /// cost two more system calls a batch, and one more for each that is too long.
    ///
    /// If one is longer than the path MTU that the kernel knows, that is put on the error queue. If a router reports
    /// that it is too long, the kernel notes the path MTU and, except for IPv4 sockets that allow fragments by then
    /// (`__udp4_lib_err` in net/ipv4/udp.c), puts it on the error queue; of these, the next probe learns it.
    fn probe(&mut self, batch: &SealedBatch<'_>, is_v4: bool) {
        let goes_there = |to: Endpoint| to.remote.is_ipv4() == is_v4;
        let there = batch.probes().filter(|position| batch.destination(*position).is_some_and(goes_there));
        let positions: Vec<usize> = there.collect();
        let socket = if is_v4 { Some(&self.sockets.v4) } else { self.sockets.v6.as_ref() };
        let (Some(socket), false) = (socket, positions.is_empty()) else { return };
        if !self.probes_v4 && is_v4 {
            return;
        }
        let _forbidden = self.fragments.write().unwrap_or_else(PoisonError::into_inner);
        if Fragments::Forbidden.set(socket, is_v4).is_ok() {
            let mut left = &positions[..];
            while !left.is_empty() {
                let runs = left.iter().flat_map(|position| batch.runs_from(*position, 1).take(1));
                // Whatever prevents one does not matter: there will be another probe.
                let done = self.sender.send(socket.as_fd(), runs).unwrap_or(1);
                left = &left[done.max(1)..];
            }
            let _ = Fragments::Allowed.set(socket, is_v4);
        }
    }

    /// What routing sees of our datagrams.
    fn origin(&self) -> Origin {
        Origin { port: self.port, mark: self.mark }
    }

    /// Whether a datagram that the kernel did not take could go if it had another source address. There is only one way
    /// from an IPv6 link-local address.
    fn is_refused_for_source(&mut self, to: Endpoint, local: LocalAddress) -> bool {
        let is_link_local = matches!(local.address, IpAddr::V6(address) if address.is_unicast_link_local());
        let origin = self.origin();
        !is_link_local && self.refusals.are_for_the_source(to.remote, local.address, origin)
    }

    /// Waits for room in the send buffer. Returns false when there is none in time.
    fn wait_for_room(&self, to: Endpoint) -> bool {
        let Ok(socket) = self.sockets.towards(to) else { return false };
        let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        poll(&mut wanted, PollTimeout::from(SEND_PATIENCE)).is_ok_and(|ready| ready > 0)
    }
}

impl Udp for LinuxUdp {
    fn port(&self) -> u16 {
        self.port
    }

    fn set_mark(&mut self, mark: u32) -> io::Result<()> {
        self.sockets.v4.set_mark(mark)?;
        self.mark = mark;
        self.sockets.v6.as_ref().map_or(Ok(()), |v6| v6.set_mark(mark))
    }

    fn receive(&mut self, batch: &mut InboundBatch) {
        batch.clear();
        let mut order = [Some(&self.sockets.v4), self.sockets.v6.as_ref()];
        if self.v6_first {
            order.reverse();
        }
        self.v6_first = !self.v6_first;
        for socket in order.into_iter().flatten() {
            if batch.is_empty() {
                self.receiver.receive(socket.as_fd(), batch);
            }
        }
        let locals = batch.sources().filter_map(|from| from.local);
        self.sources.note_arrivals(locals.map(|local| local.address));
    }

    fn send(&mut self, batch: SealedBatch<'_>, patience: &mut Patience) -> u64 {
        let mut next = 0;
        let mut tries = Tries::default();
        let mut lost = 0;
        let mut most = self.run_max;
        while let Some(to) = batch.destination(next) {
            if batch.is_lone_probe(next) {
                next += 1;
                continue;
            }
            let error = match self.send_some(&batch, next, to, most) {
                Ok(sent) => {
                    next += sent;
                    continue;
                }
                Err(error) => error,
            };
            match (error.raw_os_error(), to.local) {
                (Some(libc::EINTR), _) => continue,
                (Some(libc::EAGAIN), _) if patience.is_left => {
                    patience.wait(|| self.wait_for_room(to));
                    continue;
                }
                (Some(number), _)
                    if number != libc::EAGAIN && tries.allow_another(next, to.remote, number) =>
                {
                    continue;
                }
                // The kernel refuses GSO runs that leave through a device without checksum offload (EIO, before Linux
                // 6.11), and runs whose datagrams exceed the path MTU and have to be fragmented (`udp_send_skb` in
                // net/ipv4/udp.c). A device stays as it is, but paths change.
                (Some(libc::EIO), _) if most > 1 => {
                    (self.run_max, most) = (1, 1);
                    continue;
                }
                (Some(libc::EINVAL | libc::EMSGSIZE), _) if most > 1 => {
                    most = 1;
                    continue;
                }
                // This machine no longer has the address that the peer sent to: let routing choose one.
                (Some(libc::EINVAL | libc::EADDRNOTAVAIL), Some(local))
                    if self.sources.note_gone(local.address) =>
                {
                    continue;
                }
                // There may be no way with this source address, as rules may say: let routing choose one here, too. Or
                // one more ICMP error has arrived.
                (Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES), Some(local))
                    if self.is_refused_for_source(to, local)
                        && self.sources.note_ways(&[((to.remote.ip(), local), true)]) =>
                {
                    continue;
                }
                (number, _) => {
                    tries.note_refused(to.remote, number);
                    tracing::debug!("cannot send to {}: {error}", to.remote);
                }
            }
            next += 1;
            lost += 1;
        }
        // Last, so that no probe overtakes the datagram that it is a copy of.
        self.probe(&batch, true);
        self.probe(&batch, false);
        batch.clear();
        lost
    }

    fn follow_routes(&mut self, endpoints: impl FnOnce() -> Vec<Endpoint>) -> bool {
        let origin = self.origin();
        self.watch.as_mut().is_some_and(|watch| watch.follow(endpoints, origin))
    }

    fn path_mtus(&mut self, at_most: usize, mut take: impl FnMut(IpAddr, usize)) {
        for socket in std::iter::once(&self.sockets.v4).chain(&self.sockets.v6) {
            let messages = std::iter::repeat_with(|| next_error(socket)).take(at_most).map_while(Result::ok);
            // Others are errors of another kind.
            messages.flatten().for_each(|(remote, path_mtu)| take(remote, path_mtu));
        }
    }
}

/// Takes the next message from a socket's error queue (`IP_RECVERR` of ip(7)). `None` when it does not report a path
/// MTU.
fn next_error(socket: &Socket) -> nix::Result<Option<(IpAddr, usize)>> {
    // The content of the datagram in question does not matter, only its destination.
    let mut datagram = [0; 1];
    let mut datagram = [IoSliceMut::new(&mut datagram)];
    let mut control = cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6, libc::in6_pktinfo);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut datagram, Some(&mut control), flags)?;
    let remote = message.address.as_ref().and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    let path_mtu = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
            let path_mtu = usize::try_from(error.ee_info).ok()?;
            (error.ee_errno == libc::EMSGSIZE as u32 && path_mtu <= MAX_PACKET).then_some(path_mtu)
        }
        _ => None,
    });
    Ok(remote.zip(path_mtu))
}
