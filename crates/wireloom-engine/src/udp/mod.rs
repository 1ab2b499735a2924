//! The UDP port: datagrams to and from the peers.

mod linux;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), expect(dead_code, reason = "fuzzing needs only some of it"))]
mod memory;
mod mmsg;
mod route_watch;
mod routing;
mod sources;

use std::{io, net::IpAddr};

use wireloom_proto::Endpoint;

pub(crate) use linux::{LinuxNetwork, LinuxUdp};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use memory::{MemoryNetwork, MemoryUdp};
pub(crate) use route_watch::FollowedRoutes;

use crate::batch::{InboundBatch, SealedBatch};

/// Whether sending may wait for room in a full send buffer in the present turn. Once there was none in time, nothing
/// waits for the rest of the turn: the buffer drains at the speed of the network card, and if it does not, waiting
/// would only hold up everything else, as often as there are batches.
#[derive(Debug)]
pub(crate) struct Patience {
    is_left: bool,
}

impl Default for Patience {
    fn default() -> Self {
        Self { is_left: true }
    }
}

impl Patience {
    /// Waits with `wait`, which returns whether there is room, if there is patience left.
    fn wait(&mut self, wait: impl FnOnce() -> bool) {
        if self.is_left {
            self.is_left = wait();
        }
    }
}

/// Opens the UDP port, which is open only while the interface is up.
pub(crate) trait Network {
    /// The type of an open port.
    type Udp: Udp;

    /// Opens `port` for IPv4 and IPv6 alike; 0 lets the system choose one. `mark` is the firewall mark of the datagrams
    /// sent, 0 for none.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] when another socket has the port, or another error of the system.
    fn bind(&self, port: u16, mark: u32) -> io::Result<Self::Udp>;

    /// Opens the port of `first` once more, for another thread. Datagrams are spread over all that have it open; those
    /// of one sender always arrive at the same one.
    ///
    /// # Errors
    /// When the system refuses.
    fn join(&self, first: &Self::Udp, mark: u32) -> io::Result<Self::Udp>;

    /// The sockets of `first` once more, for another thread that sends by them and never receives. From now on it
    /// follows routes in place of `first`. The port stays open as long as either is, and a mark that is set on one
    /// counts for both.
    ///
    /// # Errors
    /// When the system refuses.
    fn sender(&self, first: &mut Self::Udp) -> io::Result<Self::Udp>;
}

/// An open UDP port. No call blocks, except that [`Udp::send`] may wait for a short time.
pub(crate) trait Udp {
    /// The port's number.
    fn port(&self) -> u16;

    /// Sets the firewall mark of the datagrams sent from now on; 0 is none.
    ///
    /// # Errors
    /// When the system refuses, as it does for users who are not administrators.
    fn set_mark(&mut self, mark: u32) -> io::Result<()>;

    /// Replaces the content of the batch by datagrams that have arrived, as many as it holds. It is empty afterwards
    /// when there are none.
    fn receive(&mut self, batch: &mut InboundBatch);

    /// Sends the datagrams of the batch in order, and empties it. Those that probe the path MTU are sent once more,
    /// unless that needs fragments. When the send buffer is full, this waits for a short time, as long as there is
    /// patience, so the sender slows down instead of losing datagrams. Returns how many could not be sent and are lost.
    fn send(&mut self, batch: SealedBatch<'_>, patience: &mut Patience) -> u64;

    /// Follows changes of routing: datagrams to those of these endpoints whose routes have moved to another interface
    /// leave from the address that routing chooses, by whichever queue. Returns whether there is more to do. Only one
    /// of those that have a port open does so: the [sender](Network::sender), or the first one where there is none.
    fn follow_routes(&mut self, endpoints: impl FnOnce() -> Vec<Endpoint>) -> bool;

    /// Takes the path MTUs that the network reported: for which destination, and the size of an IP packet in bytes.
    /// Reads at most this many messages of each family, of which some may report other things.
    fn path_mtus(&mut self, at_most: usize, take: impl FnMut(IpAddr, usize));
}
