//! Segmentation offload: what the network stack hands over, and takes, in one piece instead of fifty.
//!
//! With a virtio-net header before each packet ([`virtio`]), the kernel leaves to us what a network card would do for
//! it. The stack then handles one *super-packet* of up to 64 KB instead of many packets:
//!
//! * [`segment`] splits a super-packet into the packets that go through the tunnel;
//! * [`coalesce`] joins packets from the tunnel into super-packets.
//!
//! Both are pure: bytes in, bytes out, without allocation. An Ethernet header may precede a packet, as on a TAP
//! interface: the offsets in virtio-net headers count it, and the tunnel does not carry it.

pub mod coalesce;
pub mod segment;
pub mod virtio;

#[cfg(test)]
pub(crate) mod tests;
