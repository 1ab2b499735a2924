//! Delivery: packets and super-packets to the network stack.

use std::io::IoSlice;

use nix::libc;

use crate::{
    offload::{segment::Segments, virtio::VirtioHeader},
    packet::MAX_PACKET,
    tun::TunQueue,
};

/// Gives a packet, or a super-packet of several `packets`, to the network stack, with the parts that
/// [`TunQueue::send`] takes. Returns how many packets are lost.
///
/// Some kernels refuse super-packets that they have agreed to take, with EINVAL. Such a one is split again, and no more
/// of its kind are made.
pub(super) fn deliver(tun: &mut impl TunQueue, packets: u64, parts: &[IoSlice<'_>]) -> u64 {
    match tun.send(parts) {
        Ok(()) => 0,
        Err(error) if packets > 1 && error.raw_os_error() == Some(libc::EINVAL) => {
            deliver_split(tun, parts).unwrap_or(packets)
        }
        Err(_) => packets,
    }
}

/// Gives the packets of a super-packet to the network stack one by one. Returns how many are lost. `None` when it is no
/// super-packet.
#[cold]
fn deliver_split(tun: &mut impl TunQueue, parts: &[IoSlice<'_>]) -> Option<u64> {
    let (header, rest) = parts.split_first()?;
    let (ethernet, rest) = rest.split_first()?;
    let header = VirtioHeader::parse(header.first_chunk()?)?;
    tun.stop_joining(header.segmentation?.kind);
    let packet: Vec<u8> = rest.iter().flat_map(|part| part.iter().copied()).collect();
    let mut segments = Segments::new(header, ethernet.len(), &packet)?;
    let whole = VirtioHeader::default().to_bytes();
    let mut room = vec![0; MAX_PACKET];
    let mut lost = 0;
    while let Some(len) = segments.write_next(&packet, &mut room) {
        let parts = [IoSlice::new(&whole), IoSlice::new(ethernet), IoSlice::new(&room[..len])];
        lost += u64::from(tun.send(&parts).is_err());
    }
    Some(lost)
}
