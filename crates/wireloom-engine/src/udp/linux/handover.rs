//! The sockets of a port that another process has opened.

use std::{io, os::fd::OwnedFd};

use socket2::Socket;

use super::{Fragments, LinuxUdp, Sockets};
use crate::udp::route_watch::FollowedRoutes;

impl LinuxUdp {
    /// A duplicate of the socket of each family, IPv4 first.
    pub(crate) fn duplicates(&self) -> io::Result<Vec<(OwnedFd, bool)>> {
        let v4 = self.sockets.v4.try_clone()?;
        let v6 = self.sockets.v6.as_ref().map(Socket::try_clone).transpose()?;
        Ok([Some(v4), v6]
            .into_iter()
            .zip([false, true])
            .filter_map(|(socket, v6)| Some((socket?.into(), v6)))
            .collect())
    }

    /// The sockets of all queues, IPv4 and IPv6, with the mark that they have. Packets wait meanwhile, so `routes` were
    /// opened before.
    ///
    /// # Errors
    /// When they are not all bound to the same port, as after a process that died while it had another port stored.
    pub(crate) fn take_over(
        sockets: Vec<(OwnedFd, Option<OwnedFd>)>,
        mark: u32,
        routes: FollowedRoutes,
    ) -> io::Result<Vec<Self>> {
        let FollowedRoutes { sources, mut watch } = routes;
        let mut queues = Vec::<Self>::with_capacity(sockets.len());
        for (v4, v6) in sockets {
            let sockets = Sockets { v4: v4.into(), v6: v6.map(Socket::from) };
            let port = bound_port(&sockets.v4)?;
            let first = queues.first().map_or(port, |queue| queue.port);
            for (socket, is_v4) in [Some(&sockets.v4), sockets.v6.as_ref()].into_iter().zip([true, false]) {
                let Some(socket) = socket else { continue };
                if bound_port(socket)? != first {
                    return Err(io::Error::other("the UDP sockets have different ports"));
                }
                // That process may have died while it probed.
                Fragments::Allowed.set(socket, is_v4)?;
            }
            queues.push(Self { watch: watch.take(), ..Self::new(port, sockets, mark, sources.clone()) });
        }
        Ok(queues)
    }
}

fn bound_port(socket: &Socket) -> io::Result<u16> {
    let bound = socket.local_addr()?.as_socket();
    bound.map(|address| address.port()).ok_or_else(|| io::Error::other("a UDP socket has no address"))
}

#[cfg(test)]
mod tests {
    use rustix::net::sockopt::{
        Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, ip_mtu_discover, ipv6_mtu_discover, set_ip_mtu_discover,
        set_ipv6_mtu_discover,
    };

    use super::*;
    use crate::udp::{LinuxNetwork, Network as _};

    /// Sockets of a port, as they go to another process.
    fn port() -> (OwnedFd, Option<OwnedFd>) {
        let duplicates = LinuxNetwork.bind(0, 0).expect("a port").duplicates().expect("descriptors");
        let mut duplicates = duplicates.into_iter().map(|(socket, _)| socket);
        (duplicates.next().expect("IPv4"), duplicates.next())
    }

    fn take_over(sockets: Vec<(OwnedFd, Option<OwnedFd>)>) -> io::Result<Vec<LinuxUdp>> {
        LinuxUdp::take_over(sockets, 0, FollowedRoutes::open())
    }

    #[test]
    fn sockets_of_several_ports_are_refused() {
        let [(v4, v6), other] = [port(), port()];
        let duplicate = |socket: &OwnedFd| socket.try_clone().expect("a descriptor");
        let queue = || (duplicate(&v4), v6.as_ref().map(duplicate));
        assert_eq!(take_over(vec![queue(), queue()]).expect("the same port").len(), 2);
        take_over(vec![queue(), other]).err().expect("two ports");
        if v6.is_some() {
            take_over(vec![(port().0, v6)]).err().expect("two ports");
        }
    }

    #[test]
    fn sockets_that_forbid_fragments_allow_them_again() {
        let (v4, v6) = port();
        set_ip_mtu_discover(&v4, Ipv4PathMtuDiscovery::DO).expect("an option");
        let witness = v4.try_clone().expect("a descriptor");
        let witness_v6 = v6.as_ref().map(|socket| {
            set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::DO).expect("an option");
            socket.try_clone().expect("a descriptor")
        });
        take_over(vec![(v4, v6)]).expect("a port");
        assert_eq!(ip_mtu_discover(&witness), Ok(Ipv4PathMtuDiscovery::DONT));
        if let Some(witness) = witness_v6 {
            assert_eq!(ipv6_mtu_discover(&witness), Ok(Ipv6PathMtuDiscovery::WANT));
        }
    }
}
