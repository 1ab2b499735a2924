//! The sockets of a port that another process has opened.

use std::{io, os::fd::OwnedFd};

use socket2::Socket;

use super::{LinuxUdp, Sockets};
use crate::udp::{route_watch::RouteWatch, sources::Sources};

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

    /// The sockets of all queues, IPv4 and IPv6, with the mark that they have.
    ///
    /// # Errors
    /// When one is no bound socket.
    pub(crate) fn take_over(sockets: Vec<(OwnedFd, Option<OwnedFd>)>, mark: u32) -> io::Result<Vec<Self>> {
        let sources = Sources::default();
        let mut watch = RouteWatch::open(&sources)
            .inspect_err(|error| tracing::warn!("changes of routes are not followed: {error}"))
            .ok();
        let mut queues = Vec::with_capacity(sockets.len());
        for (v4, v6) in sockets {
            let sockets = Sockets { v4: v4.into(), v6: v6.map(Socket::from) };
            let bound = sockets.v4.local_addr()?.as_socket();
            let port = bound.ok_or_else(|| io::Error::other("a UDP socket has no address"))?.port();
            queues.push(Self { watch: watch.take(), ..Self::new(port, sockets, mark, sources.clone()) });
        }
        Ok(queues)
    }
}
