//! Doors for `fuzz/`: whole engines on the in-memory twins of an interface and of a network.

pub mod handover;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use wireloom_proto::{Now, Transmit};
use wireloom_types::{Mode, PeerLookup};

use crate::{
    batch::OutboundBatch,
    control::{Parser, Reply},
    engine::{Engine, by_hand::ByHand},
    offload::virtio::VirtioHeader,
    runtime::turn::{Backlog, NextTurn},
    tun::{MemoryTun, MemoryTunHost, TunEvent, TunState, memory_tap, memory_tun},
    udp::{MemoryNetwork, Network, Patience, Udp},
};

/// A network that an eavesdropper sees all of.
pub struct Wire(MemoryNetwork);

/// An engine and the network stack of its machine.
pub struct Machine {
    engine: Engine<MemoryTun, MemoryNetwork>,
    workers: ByHand,
    stack: MemoryTunHost,
}

impl Default for Wire {
    fn default() -> Self {
        Self(MemoryNetwork::new(Ipv4Addr::UNSPECIFIED.into()))
    }
}

impl Wire {
    /// Sends a datagram, from a port that no [`Machine`] has.
    pub fn send(&self, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        let Ok(mut udp) = self.0.host(from.ip()).bind(from.port(), 0) else { return };
        let mut batch = OutboundBatch::default();
        batch.push_transmit(&Transmit { endpoint: to.into(), datagram, ecn: 0 });
        udp.send(batch.seal(), &mut Patience::default());
    }

    /// Every datagram sent since the last call: source, destination, content.
    #[must_use]
    pub fn take_seen(&self) -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
        self.0.take_seen()
    }
}

impl Machine {
    /// A machine at this address. Its interface is down.
    ///
    /// # Panics
    /// When the system has no descriptor left.
    #[must_use]
    pub fn new(wire: &Wire, address: IpAddr, seed: &[u8; 32], mode: Mode) -> Self {
        let (tun, queues, stack) = match mode.peer_lookup() {
            PeerLookup::Destination => memory_tun(),
            PeerLookup::Gateway => memory_tap(),
        };
        let workers = ByHand::default();
        let runner = Box::new(workers.clone());
        let engine = Engine::new(seed, mode, (tun, queues), wire.0.host(address), runner, None);
        Self { engine: engine.expect("a descriptor"), workers, stack }
    }

    /// Changes the configuration by lines of the control socket. Returns whether they are accepted.
    pub fn set(&mut self, now: Now, lines: &str) -> bool {
        let mut parser = Parser::default();
        let request = ["set=1"]
            .into_iter()
            .chain(lines.lines())
            .chain([""])
            .find_map(|line| parser.line(line.as_bytes(), &|_| None).ok().flatten());
        request.is_some_and(|request| self.engine.handle(now, request) == Reply::Done)
    }

    /// Brings the interface up, with an MTU in bytes.
    pub fn up(&mut self, mtu: usize) {
        self.stack.tell(TunEvent::State(TunState { up: true, mtu }));
    }

    /// Does all that can be done now.
    pub fn turn(&mut self, now: Now) {
        loop {
            let control = self.engine.turn(now, true).expect("memory does not fail");
            let worker = self.workers.turn(now, 0);
            if control != NextTurn::Now && worker != Some(Backlog::More) {
                break;
            }
        }
        // It has what the worker punted last.
        let _ = self.engine.turn(now, true);
    }

    /// Routes a packet, or a frame in link mode, into the interface.
    pub fn send(&self, header: VirtioHeader, packet: &[u8]) {
        self.stack.send_super(header, packet);
    }

    /// The next packet or super-packet that came out of the interface.
    #[must_use]
    pub fn receive(&self) -> Option<(VirtioHeader, Vec<u8>)> {
        self.stack.receive_super()
    }

    /// How many packets were dropped, for any reason.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.engine.drops().iter().map(|(_, count)| count).sum()
    }
}
