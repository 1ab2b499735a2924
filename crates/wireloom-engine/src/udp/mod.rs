//! Datagrams to and from the other ends of the tunnels.

mod batch;
mod linux;
mod memory;
mod mmsg;

use std::{io, net::IpAddr};

pub(crate) use batch::Pending;
pub use batch::{Inbound, Outbound};
pub use linux::{LinuxNetwork, LinuxUdp};
pub use memory::{MemoryNetwork, MemoryUdp};

/// Opens the UDP port. The port is open only while the interface is up, so it comes and goes.
pub trait Network {
    /// What it opens.
    type Udp: Udp;

    /// Opens `port` for IPv4 and IPv6 alike; 0 lets the system pick one. `mark` is the firewall mark
    /// of what is sent, 0 for none.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] when somebody else has the port; whatever else the system says.
    fn bind(&self, port: u16, mark: u32) -> io::Result<Self::Udp>;

    /// Opens the same port once more, for another thread. Datagrams are spread over all that have it
    /// open; those of one sender always come to the same one.
    ///
    /// # Errors
    /// Whatever the system says.
    fn join(&self, first: &Self::Udp, mark: u32) -> io::Result<Self::Udp>;
}

/// An open UDP port. Every call returns at once, or nearly: see [`Udp::send`].
pub trait Udp {
    /// The port's number.
    fn port(&self) -> u16;

    /// Sets the firewall mark of what is sent from now on; 0 is none.
    ///
    /// # Errors
    /// What the system says: it lets administrators alone set marks.
    fn set_mark(&mut self, mark: u32) -> io::Result<()>;

    /// Replaces the batch's datagrams by those that have arrived, as many as it holds; none when
    /// there are none.
    fn receive(&mut self, batch: &mut Inbound);

    /// Sends the batch's datagrams in their order and empties it. A send buffer that is full is
    /// waited for, for a short time: the sender is slowed down instead of losing what it sends.
    /// Returns how many could not be sent and are lost.
    fn send(&mut self, batch: &mut Outbound) -> u64;

    /// The next path MTU that the network told of: to where, and the bytes of an IP packet. `None` when
    /// there is no news, or nobody wants it.
    fn poll_path_mtu(&mut self) -> Option<(IpAddr, u16)>;
}
