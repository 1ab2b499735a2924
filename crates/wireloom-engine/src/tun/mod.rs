//! The interface: IP packets, or Ethernet frames, from and to this machine's network stack.

mod descriptor;
mod linux;
mod locate;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), expect(dead_code, reason = "fuzzing needs only some of it"))]
mod memory;
mod monitor;
mod offloads;
mod place;
mod rtnetlink;

use std::io::{self, IoSlice};

use wireloom_types::LinkAddress;

use crate::offload::{
    coalesce::Joinable,
    virtio::{SegmentationKind, VirtioHeader},
};

pub use linux::OpenTunError;
pub(crate) use linux::{LinuxQueue, LinuxTun};
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), expect(unused_imports, reason = "fuzzing needs only some of them"))]
pub(crate) use memory::{
    MemoryQueue, MemoryTun, MemoryTunHost, memory_tap, memory_tap_of, memory_tun, memory_tun_of,
};
pub use offloads::Offload;

/// A queue of an interface whose far end is this process. In link mode, what is called a packet here is a frame with an
/// Ethernet header.
///
/// An interface may have several queues. The network stack puts all packets of a flow into one of them. Packets may be
/// sent through any.
///
/// No call blocks: [`io::ErrorKind::WouldBlock`] means that there is nothing now.
pub(crate) trait TunQueue {
    /// Reads the next packet or super-packet that the network stack routed into the interface to the start of `buffer`.
    /// The buffer must have room for [`MAX_PACKET`](crate::packet::MAX_PACKET) bytes and, in link mode, for an Ethernet
    /// header. Returns what is left to be done with the packet, and its length in bytes.
    ///
    /// # Errors
    /// `WouldBlock` when there is none, `InvalidData` when one was malformed and is lost; any other error when the
    /// interface cannot be read.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<(VirtioHeader, usize)>;

    /// Gives one packet or super-packet to the network stack, as received through the interface. The first part is its
    /// virtio-net header; the others, one after the other, are the packet.
    ///
    /// # Errors
    /// The packet is lost: the stack refused it, or the interface is down.
    fn send(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()>;

    /// The kinds of super-packets that [`Self::send`] takes.
    fn joinable(&self) -> Joinable;

    /// Takes note that the network stack refused a super-packet of this kind as invalid: [`Self::joinable`] has it no
    /// more.
    fn stop_joining(&mut self, kind: SegmentationKind);
}

/// Sends a packet of our own to the network stack, in link mode a frame. While the interface is down, the stack refuses
/// it and does not need it.
pub(crate) fn tell_stack(tun: &mut impl TunQueue, frame: &[u8]) {
    let header = VirtioHeader::default().to_bytes();
    let _ = tun.send(&[IoSlice::new(&header), IoSlice::new(frame)]);
}

/// An interface: its state, and what does not belong to one queue. No call blocks.
pub(crate) trait Tun {
    /// The type of its queues.
    type Queue: TunQueue;

    /// A queue for packets that this process makes itself. It is only written to: another thread may read the packets
    /// of any queue.
    fn writer(&self) -> Self::Queue;

    /// The interface's own link address, in link mode.
    fn link_address(&self) -> Option<LinkAddress>;

    /// Sets the interface's own link address, in link mode. Unless it is the same as before, the network stack forgets
    /// every neighbour that is not permanent.
    ///
    /// # Errors
    /// When the system refuses; the address is unchanged then.
    fn set_link_address(&mut self, address: LinkAddress) -> io::Result<()>;

    /// The next change of the interface's state. `None` when nothing has changed since the last call.
    ///
    /// # Errors
    /// When the state cannot be read; a retry may help.
    fn poll_event(&mut self) -> io::Result<Option<TunEvent>>;
}

/// A change of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TunEvent {
    /// Its present state, which may be the same as the last one reported.
    State(TunState),
    /// It was deleted: nothing can be sent or received any more.
    Gone,
}

/// The state of an interface, as far as the engine follows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TunState {
    /// Whether it is administratively up.
    pub(crate) up: bool,
    /// The MTU in bytes. It bounds the padding of messages.
    pub(crate) mtu: usize,
}
