//! UDP sockets of Linux: one for each family, on the same port.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use nix::{
    cmsg_space,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, getsockopt, recvmsg, setsockopt, sockopt},
};
use socket2::{Domain, Protocol, Socket, Type};
use wireloom_proto::Endpoint;

use super::{
    Inbound, Network, Outbound, Udp,
    mmsg::{Receiver, Sender},
};

/// Size of the socket's buffers in bytes. With 2 MB, bursts of one fast TCP stream overflow them.
const SOCKET_BUFFER: usize = 8 << 20;
/// How often the system may pick a port that turns out to be taken for the other family.
const PICK_ATTEMPTS: usize = 100;
/// How long a full send buffer is waited for in vain, once in a batch, in milliseconds. It drains at
/// the speed of the network card; when it does not, waiting would only stop everything else.
const SEND_PATIENCE: u8 = 20;

/// Datagrams that the kernel takes as one: `UDP_MAX_SEGMENTS` in include/linux/udp.h was 64 when it came
/// and never less.
const RUN_DATAGRAMS: usize = 64;

/// The machine's network, as this process's network namespace sees it.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinuxNetwork {
    /// Whether [`Udp::poll_path_mtu`] has news. Datagrams then may not be fragmented on their way ("don't
    /// fragment" is set), so that routers tell where they are too big; one that is too big for what the
    /// kernel knows of the path is sent again in fragments.
    pub discover_path_mtu: bool,
}

/// A UDP port, open for both families, or for IPv4 alone where the machine has no IPv6.
pub struct LinuxUdp {
    port: u16,
    sockets: Sockets,
    receiver: Receiver,
    sender: Sender,
    /// How many datagrams the kernel takes as one, 1 when it has no segmentation offload.
    run_max: usize,
    /// Which family is asked first: they take turns, so that a flood of one does not starve the other.
    v6_first: bool,
    discovers_path_mtu: bool,
    /// Local addresses that peers were answered from and that are no longer ours.
    gone: Vec<IpAddr>,
}

/// One socket for each family, on the same port.
struct Sockets {
    v4: Socket,
    v6: Option<Socket>,
}

impl Sockets {
    /// The one that sends there.
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
            let v4 = self.open(Ipv4Addr::UNSPECIFIED.into(), port, mark, Share::WithNobody)?;
            let bound = v4.local_addr()?.as_socket().map_or(port, |address| address.port());
            let v6 = match self.open(Ipv6Addr::UNSPECIFIED.into(), bound, mark, Share::WithNobody) {
                Ok(socket) => Some(socket),
                Err(error) if has_no_ipv6(&error) => None,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts > 0 => continue,
                Err(error) => return Err(error),
            };
            return Ok(LinuxUdp::new(bound, Sockets { v4, v6 }, self.discover_path_mtu));
        }
    }

    fn join(&self, first: &LinuxUdp, mark: u32) -> io::Result<LinuxUdp> {
        // Now that the port is ours: set before, the option would have let us into a port that somebody
        // else has open in the same way. The kernel picks the socket by a hash of both addresses and
        // ports (`reuseport_select_sock` in net/core/sock_reuseport.c).
        first.sockets.v4.set_reuse_port(true)?;
        let v4 = self.open(Ipv4Addr::UNSPECIFIED.into(), first.port, mark, Share::WithOurs)?;
        let v6 = match &first.sockets.v6 {
            Some(socket) => {
                socket.set_reuse_port(true)?;
                Some(self.open(Ipv6Addr::UNSPECIFIED.into(), first.port, mark, Share::WithOurs)?)
            }
            None => None,
        };
        Ok(LinuxUdp::new(first.port, Sockets { v4, v6 }, self.discover_path_mtu))
    }
}

/// With whom a socket shares its port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Share {
    WithNobody,
    /// With sockets of the same user that allow it.
    WithOurs,
}

/// Whether an error of socket(2) or bind(2) says that IPv6 is not built in or disabled.
fn has_no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

impl LinuxNetwork {
    fn open(self, address: IpAddr, port: u16, mark: u32, share: Share) -> io::Result<Socket> {
        let (address, discover_path_mtu) = (SocketAddr::new(address, port), self.discover_path_mtu);
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            if discover_path_mtu {
                Fragments::Forbidden.set(&socket, false)?;
                setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
            }
        } else {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
            if discover_path_mtu {
                Fragments::Forbidden.set(&socket, true)?;
                setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
            } else {
                // As the kernel's WireGuard does (`send4` in drivers/net/wireguard/socket.c): a tunnel whose
                // MTU is too big for the path is slow, not dead.
                Fragments::Allowed.set(&socket, true)?;
            }
        }
        if mark != 0 {
            socket.set_mark(mark)?;
        }
        grow_buffers(&socket);
        // Without receive offload, datagrams come one by one.
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        if share == Share::WithOurs {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&address.into())?;
        Ok(socket)
    }
}

/// Whether a datagram may travel in fragments (`IP_MTU_DISCOVER` of ip(7), and its like of ipv6(7)).
#[derive(Clone, Copy)]
enum Fragments {
    /// Made here or, with IPv4, on the way.
    Allowed,
    /// One that is too big is refused with `EMSGSIZE`.
    Forbidden,
}

impl Fragments {
    #[expect(unsafe_code, reason = "neither socket2 nor nix know these options")]
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

/// As big as wanted where we may, else as big as `net.core.{r,w}mem_max` lets us.
fn grow_buffers(socket: &Socket) {
    if setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &SOCKET_BUFFER);
    }
    if setsockopt(socket, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::SndBuf, &SOCKET_BUFFER);
    }
}

impl LinuxUdp {
    fn new(port: u16, sockets: Sockets, discovers_path_mtu: bool) -> Self {
        Self {
            port,
            run_max: if getsockopt(&sockets.v4, sockopt::UdpGsoSegment).is_ok() { RUN_DATAGRAMS } else { 1 },
            sockets,
            receiver: Receiver::default(),
            sender: Sender::default(),
            v6_first: false,
            discovers_path_mtu,
            gone: Vec::new(),
        }
    }

    /// Readable when [`Udp::receive`] has datagrams.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(&self.sockets.v4).chain(&self.sockets.v6).map(AsFd::as_fd)
    }

    /// Sends the datagram at `next`, which goes to `to`, and those after it that go by the same
    /// family, as far as they go, up to `most` at a time as one; returns how many went.
    fn send_some(&mut self, batch: &Outbound, next: usize, to: Endpoint, most: usize) -> io::Result<usize> {
        let socket = self.sockets.towards(to)?;
        let same_family = |other: Endpoint| other.remote.is_ipv4() == to.remote.is_ipv4();
        let gone = &self.gone;
        let runs = batch.runs_from(next, most).take_while(|run| same_family(run.to)).map(|mut run| {
            run.to.local = run.to.local.filter(|local| gone.is_empty() || !gone.contains(&local.address));
            run
        });
        let sent = self.sender.send(socket.as_fd(), runs)?;
        Ok(batch.runs_from(next, most).take(sent).map(|run| run.count).sum())
    }

    /// Sends the datagram at `next` in fragments. The refusal that came before is in the error queue,
    /// from where the path MTU is learnt, so that this remains rare.
    fn send_in_fragments(&mut self, batch: &Outbound, next: usize, to: Endpoint) -> io::Result<usize> {
        let is_v4 = to.remote.is_ipv4();
        Fragments::Allowed.set(self.sockets.towards(to)?, is_v4)?;
        let datagram = batch.runs_from(next, 1).take(1);
        let sent = self.sender.send(self.sockets.towards(to)?.as_fd(), datagram);
        Fragments::Forbidden.set(self.sockets.towards(to)?, is_v4)?;
        sent
    }

    /// Waits for room in the send buffer; false when there is none in time.
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
        self.sockets.v6.as_ref().map_or(Ok(()), |v6| v6.set_mark(mark))
    }

    fn receive(&mut self, batch: &mut Inbound) {
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
        if !self.gone.is_empty() {
            // What comes in for an address proves that it is ours (again).
            for from in batch.sources() {
                self.gone.retain(|gone| from.local.is_none_or(|local| local.address != *gone));
            }
        }
    }

    fn send(&mut self, batch: &mut Outbound) -> u64 {
        let mut next = 0;
        let mut tried_again = None;
        let mut lost = 0;
        let mut patient = true;
        let mut most = self.run_max;
        while let Some(to) = batch.destination(next) {
            let error = match self.send_some(batch, next, to, most) {
                Ok(sent) => {
                    next += sent;
                    continue;
                }
                Err(error) => error,
            };
            match (error.raw_os_error(), to.local) {
                (Some(libc::EINTR), _) => continue,
                (Some(libc::EAGAIN), _) if patient => {
                    patient = self.wait_for_room(to);
                    continue;
                }
                (Some(libc::EMSGSIZE), _)
                    if self.discovers_path_mtu && self.send_in_fragments(batch, next, to).is_ok() =>
                {
                    next += 1;
                    continue;
                }
                // It may be an error that ICMP raised about an earlier datagram, of whichever peer.
                (Some(number), _)
                    if self.discovers_path_mtu && number != libc::EAGAIN && tried_again != Some(next) =>
                {
                    tried_again = Some(next);
                    continue;
                }
                // What leaves through a device without checksum offload (before Linux 6.11), or does not
                // fit the path's MTU and is to be fragmented, cannot be sent as one (`udp_send_skb` in
                // net/ipv4/udp.c). The device stays as it is; paths change.
                (Some(libc::EIO), _) if most > 1 => {
                    (self.run_max, most) = (1, 1);
                    continue;
                }
                (Some(libc::EINVAL | libc::EMSGSIZE), _) if most > 1 => {
                    most = 1;
                    continue;
                }
                // The address that the peer talked to is not ours any more: let routing choose.
                (Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH), Some(local))
                    if !self.gone.contains(&local.address) =>
                {
                    self.gone.push(local.address);
                    continue;
                }
                _ => tracing::debug!("cannot send to {}: {error}", to.remote),
            }
            next += 1;
            lost += 1;
        }
        batch.clear();
        lost
    }

    fn poll_path_mtu(&mut self) -> Option<(IpAddr, u16)> {
        if !self.discovers_path_mtu {
            return None;
        }
        std::iter::once(&self.sockets.v4).chain(&self.sockets.v6).find_map(|socket| {
            loop {
                match next_error(socket) {
                    Ok(Some(news)) => return Some(news),
                    // About something else.
                    Ok(None) => {}
                    Err(_) => return None,
                }
            }
        })
    }
}

/// Takes the next message off a socket's error queue (`IP_RECVERR` of ip(7)); `None` when it is not about
/// a path MTU.
fn next_error(socket: &Socket) -> nix::Result<Option<(IpAddr, u16)>> {
    // Of the datagram that the message is about, only where it went matters.
    let mut datagram = [0; 1];
    let mut datagram = [IoSliceMut::new(&mut datagram)];
    let mut notes = cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6, libc::in6_pktinfo);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut datagram, Some(&mut notes), flags)?;
    let remote = message.address.as_ref().and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    let path_mtu = message.cmsgs()?.find_map(|note| match note {
        ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
            (error.ee_errno == libc::EMSGSIZE as u32).then(|| u16::try_from(error.ee_info).ok())?
        }
        _ => None,
    });
    Ok(remote.zip(path_mtu))
}
