//! IP packets to and from this machine's network stack.

mod link;
mod linux;
mod memory;

use std::io;

pub use linux::{LinuxTun, OpenTunError};
pub use memory::{MemoryTun, MemoryTunHost, memory_tun};

/// Longest packet that an interface hands over, in bytes: IPv4 and IPv6 lengths have 16 bits.
pub const MAX_PACKET: usize = 65_535;

/// A point-to-point interface whose far end is this process.
///
/// Every call returns at once; [`io::ErrorKind::WouldBlock`] means "nothing now".
pub trait Tun {
    /// Reads the next packet that the network stack routed into the interface to the start of
    /// `buffer`, which has room for [`MAX_PACKET`] bytes, and returns its length.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; any other error when the interface cannot be read.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Gives one packet to the network stack, as received through the interface.
    ///
    /// # Errors
    /// The packet is lost: the stack refused it, or the interface is down.
    fn send(&mut self, packet: &[u8]) -> io::Result<()>;

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
