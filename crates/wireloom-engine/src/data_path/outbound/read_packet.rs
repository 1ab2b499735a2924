//! The packet that was read from the interface last.

use std::{io, ops::Range, sync::Arc};

use wireloom_proto::PeerPath;

use crate::{
    offload::{segment::Segments, virtio::VirtioHeader},
    packet::{MAX_PACKET, ethernet},
    tun::TunQueue,
};

/// A packet or super-packet, and the segments of it that are still to be sent.
pub(super) struct ReadPacket {
    memory: Box<[u8]>,
    pub(super) header: VirtioHeader,
    /// The length of the frame, with the Ethernet header if there is one.
    len: usize,
    /// Where the IP packet stands, once there are unsent segments.
    ip: Range<usize>,
    /// The segments to be sent, and to whom.
    pub(super) unsent: Option<(Segments, Arc<PeerPath>)>,
}

impl Default for ReadPacket {
    fn default() -> Self {
        let memory = vec![0; ethernet::HEADER_LEN + MAX_PACKET].into_boxed_slice();
        Self { memory, header: VirtioHeader::default(), len: 0, ip: 0..0, unsent: None }
    }
}

impl ReadPacket {
    /// Reads the next packet, which has an Ethernet header of `ethernet_len` bytes.
    ///
    /// # Errors
    /// See [`TunQueue::receive`].
    #[inline]
    pub(super) fn read(&mut self, tun: &mut impl TunQueue, ethernet_len: usize) -> io::Result<()> {
        (self.header, self.len) = tun.receive(&mut self.memory[..ethernet_len + MAX_PACKET])?;
        Ok(())
    }

    /// The frame, or the bare packet, as it was read.
    #[inline]
    pub(super) fn frame(&self) -> &[u8] {
        &self.memory[..self.len]
    }

    /// Notes the segments that are to be sent to a peer.
    #[inline]
    pub(super) fn send_later(&mut self, ethernet_len: usize, segments: Segments, path: Arc<PeerPath>) {
        self.ip = ethernet_len..ethernet_len + segments.len();
        self.unsent = Some((segments, path));
    }

    /// The IP packet that has unsent segments.
    #[inline]
    pub(super) fn ip(&self) -> &[u8] {
        &self.memory[self.ip.clone()]
    }
}
