//! IP packets to and from this machine's network stack.

mod flow;
mod link;
mod linux;
mod memory;
mod offload;

use std::io::{self, IoSlice};

use wireloom_types::LinkAddress;

use crate::offload::{coalesce::Joinable, virtio::VirtioHeader};

pub use linux::{LinuxQueue, LinuxTun, OpenTunError};
pub use memory::{
    MemoryQueue, MemoryTun, MemoryTunHost, memory_tap, memory_tap_of, memory_tun, memory_tun_of,
};

/// Longest packet that an interface hands over, in bytes: IPv4 and IPv6 lengths have 16 bits.
pub const MAX_PACKET: usize = 65_535;

/// A queue of an interface whose far end is this process. What it carries, called a packet here, is a
/// frame with an Ethernet header where the interface has a link address.
///
/// An interface may have several queues. The network stack puts all packets of one flow into one of
/// them, and a packet may be sent by way of any.
///
/// Every call returns at once; [`io::ErrorKind::WouldBlock`] means "nothing now".
pub trait TunQueue {
    /// Reads the next packet, or super-packet, that the network stack routed into the interface to the
    /// start of `buffer`, which has room for [`MAX_PACKET`] bytes and a link header, and returns its
    /// length and what is left to be done with it.
    ///
    /// # Errors
    /// `WouldBlock` when there is none, `InvalidData` when it cannot be understood and is lost; any
    /// other error when the interface cannot be read.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<(VirtioHeader, usize)>;

    /// Gives one packet, or super-packet, to the network stack, as received through the interface. The
    /// first part is its virtio-net header; the others, one after the other, are the packet.
    ///
    /// # Errors
    /// The packet is lost: the stack refused it, or the interface is down.
    fn send(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()>;

    /// Which super-packets [`Self::send`] takes.
    fn joinable(&self) -> Joinable;
}

/// An interface: what concerns all of it, and its first queue. Every call returns at once.
pub trait Tun {
    /// Its queues.
    type Queue: TunQueue;

    /// The first of them, which every interface has.
    fn first(&mut self) -> &mut Self::Queue;

    /// The interface's own link address; `None` when it carries bare packets.
    fn link_address(&self) -> Option<LinkAddress>;

    /// Sets the interface's own link address, which must have one. Every neighbour of the network stack's
    /// that is not permanent is forgotten, unless the address is the same as before.
    ///
    /// # Errors
    /// What the system says; the address is as it was then.
    fn set_link_address(&mut self, address: LinkAddress) -> io::Result<()>;

    /// The next change of the interface's state, `None` when nothing has changed since the last call.
    ///
    /// # Errors
    /// When the state cannot be read; a retry may help.
    fn poll_event(&mut self) -> io::Result<Option<TunEvent>>;
}

/// What happened to the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunEvent {
    /// Its state as it is now; not necessarily different from the last one told.
    State(TunState),
    /// It was deleted: nothing can be sent or received any more.
    Gone,
}

/// What the engine follows of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunState {
    /// Whether it is administratively up.
    pub up: bool,
    /// Largest packet in bytes; it bounds the padding of what is sent.
    pub mtu: usize,
}
