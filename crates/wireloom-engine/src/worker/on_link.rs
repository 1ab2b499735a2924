//! What a worker does on a link with the frames that do not go to one peer.

use std::{iter, mem, sync::Arc};

use wireloom_proto::{Now, message};

use super::{Landed, Worker};
use crate::{
    crew::Work as _,
    link::LinkEnd,
    offload::virtio::VirtioHeader,
    punt::LinkPunt,
    slow_path::SlowPath,
    tun::TunQueue,
    udp::{Pending, Udp},
};

impl Worker {
    /// Hands the frame that has landed to the engine's worker, which has the whole link.
    pub(super) fn punt(&self, offload: VirtioHeader, len: usize) {
        if let Some(LinkEnd::Queue(end)) = &self.link {
            end.punting.punt_frame(offload, &self.landed.memory[..len]);
        }
    }

    /// Does what another queue's worker left to the one who has the link. Returns what [`Self::forward`] does.
    pub(crate) fn take_over(
        &mut self,
        now: Now,
        mtu: usize,
        punt: LinkPunt,
        device: &mut impl SlowPath,
        tun: &mut impl TunQueue,
        udp: &mut impl Udp,
    ) -> usize {
        match punt {
            LinkPunt::Frame { offload, frame } => {
                let len = frame.len();
                let landed = Landed { memory: frame, packet: 0..0, left: None };
                // A packet of our own may wait there, sent in part.
                let own = mem::replace(&mut self.landed, landed);
                let aside = self.forward(now, mtu, offload, len, &self.tables(), device, tun, udp);
                loop {
                    let is_done = self.cut(now, mtu, device);
                    self.depart(now, mtu, device);
                    self.send_batches(udp);
                    if is_done {
                        break;
                    }
                }
                self.landed = own;
                aside
            }
            LinkPunt::PathMtu { remote, path_mtu } => {
                if let Some(link) = &mut self.link {
                    link.learn_path_mtu(now.monotonic, remote, path_mtu);
                }
                0
            }
        }
    }

    /// Sends the packet of `len` bytes in `self.flood` to every peer, and returns to how many; the train has
    /// departed.
    pub(super) fn flood(
        &mut self,
        now: Now,
        mtu: usize,
        len: usize,
        device: &mut impl SlowPath,
        udp: &mut impl Udp,
    ) -> usize {
        let Some(table) = self.link().map(|link| Arc::clone(link.table())) else { return 0 };
        let mut copies = 0;
        // These are sealed at once, and stand behind what helpers might have sealed.
        self.departure.work();
        for path in table.peers().filter(|path| path.endpoint().is_some()) {
            if self.departure.outbound.room(Pending::default()).is_none() {
                self.send_batches(udp);
            }
            let packet = &self.flood[..len];
            let Some(room) = self.departure.outbound.room(Pending::default()) else { break };
            copies += 1;
            room[message::DATA_HEADER_LEN..][..len].copy_from_slice(packet);
            let message = message::frame(room, len, mtu);
            let framed = message.len();
            match path.seal(now.monotonic, iter::once(message)) {
                Ok(sealed) => {
                    self.departure.outbound.push(sealed.endpoint, framed);
                    if let Some(signal) = sealed.signal {
                        device.handle_signal(now, signal);
                    }
                }
                // A peer that comes back wants none of the greetings that it has missed.
                Err(_) if !path.is_reachable() => device.seek(now, path.id()),
                Err(_) => {
                    if let Err(reason) = device.handle_outgoing(now, path.id(), packet, mtu) {
                        self.drops.count(reason);
                    }
                }
            }
        }
        copies
    }
}
