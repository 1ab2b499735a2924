//! What is transferred of the interface, and how the next process goes on with it.
//!
//! The interface's queues keep their length: while it changes, the kernel drops what is sent (`dev_deactivate` in
//! net/sched/sch_generic.c, by `dev_qdisc_change_tx_queue_len`), for longer than a hand-over takes.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::Arc,
};

use wireloom_types::PeerLookup;

use super::{DEFAULT_MTU, LinuxQueue, LinuxTun};
use crate::{
    handover::state::InterfaceState,
    offload::coalesce::Joinable,
    packet::ethernet,
    tun::{
        descriptor::{hardware_address, interface_name, precedes_packets_with_headers},
        monitor::InterfaceMonitor,
        offloads::{self, Offloads},
    },
};

impl LinuxTun {
    /// Goes on with the queues of an interface that another process has opened. `mtu` is the last MTU that it knew, in
    /// bytes.
    ///
    /// # Errors
    /// When the system refuses, or there are no queues.
    pub(crate) fn take_over(
        queues: Vec<File>,
        peer_lookup: PeerLookup,
        state: &InterfaceState,
        mtu: usize,
    ) -> io::Result<(Self, Vec<LinuxQueue>)> {
        let file = queues.first().ok_or_else(|| io::Error::other("no queue of the interface has come"))?;
        let link_address = match peer_lookup {
            PeerLookup::Destination => None,
            PeerLookup::Gateway => Some(hardware_address(file)?),
        };
        let monitor = InterfaceMonitor::follow(file, mtu)?;
        let joinable = Joinable { tcp: state.joins_tcp, udp: state.joins_udp };
        let offloads = Offloads { headers: state.headers, joinable };
        let ethernet_len = link_address.map_or(0, |_| ethernet::HEADER_LEN);
        let files: Arc<[File]> = queues.into();
        let queues: Vec<_> = (0..files.len())
            .map(|own| LinuxQueue { queues: Arc::clone(&files), own, offloads, ethernet_len })
            .collect();
        let writer = queues[0].clone();
        Ok((Self { writer, monitor, link_address, mtu, persists_here: state.persists_here }, queues))
    }

    /// The same when it is not known what the other process had agreed on with the kernel.
    pub(crate) fn take_over_unknown(
        queues: Vec<File>,
        peer_lookup: PeerLookup,
    ) -> io::Result<(Self, Vec<LinuxQueue>)> {
        let mut state = InterfaceState::default();
        if let Some(file) = queues.first().filter(|file| precedes_packets_with_headers(file)) {
            let Offloads { headers, joinable } = offloads::enable(file);
            state = InterfaceState { headers, joins_tcp: joinable.tcp, joins_udp: joinable.udp, ..state };
        }
        Self::take_over(queues, peer_lookup, &state, DEFAULT_MTU)
    }

    /// Whether the interface has this name, wherever it is.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        interface_name(self.file()).is_some_and(|own| own == name)
    }

    /// What the next process must know.
    pub(crate) fn state(&self) -> InterfaceState {
        let Offloads { headers, joinable } = self.writer.offloads;
        InterfaceState {
            headers,
            joins_tcp: joinable.tcp,
            joins_udp: joinable.udp,
            persists_here: self.persists_here,
        }
    }

    /// The queues, in their order.
    pub(crate) fn queues(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.writer.queues.iter().map(|file| file.as_fd())
    }
}
