//! The messages of a hand-over, and machines that take over from another one.

use std::net::IpAddr;

use wireloom_proto::Now;
use wireloom_types::PeerLookup;

use super::{Machine, Wire};
use crate::{
    engine::{Engine, by_hand::ByHand},
    handover::{
        envelope::{Message, Role},
        state::{InterfaceState, Prepared},
    },
    tun::{memory_tap, memory_tun},
    udp::Network,
};

/// What is transferred, as bytes: the copy, and the changes since.
pub type State = [Vec<u8>; 2];

/// Reads a message and writes it again. `None` when something in it is of a later release, which this one cannot write.
///
/// # Errors
/// Why the bytes are no message.
pub fn rewrite_message(datagram: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let message = Message::decode(datagram).map_err(|error| error.to_string())?;
    let is_known = match &message {
        Message::Unknown { .. } => false,
        Message::Descriptors(roles) => !roles.contains(&Role::Unknown),
        _ => true,
    };
    Ok(is_known.then(|| message.encode()))
}

impl Machine {
    /// A machine that goes on where another one has stopped. `None` when it refuses what the other hands over.
    #[must_use]
    pub fn take_over(
        now: Now,
        wire: &Wire,
        address: IpAddr,
        seed: &[u8; 32],
        [copy, changes]: &State,
    ) -> Option<Self> {
        let prepared = Prepared::new(seed, copy).ok()?;
        // As the process does, by the copy.
        let (tun, queues, stack) = match prepared.engine().peer_lookup {
            PeerLookup::Destination => memory_tun(),
            PeerLookup::Gateway => memory_tap(),
        };
        let received = prepared.with_changes(changes).ok()?;
        let network = wire.0.host(address);
        let sockets = received.shared.engine.up.then(|| network.bind(0, 0).expect("a free port"));
        let workers = ByHand::default();
        let runner = Box::new(workers.clone());
        let sockets = sockets.into_iter().collect();
        let mut engine =
            Engine::take_over(now, received, (tun, queues), network, sockets, runner, None).ok()?;
        engine.resume();
        Some(Self { engine, workers, stack })
    }

    /// Stops, and says what it hands over. Then it goes on.
    ///
    /// # Panics
    /// When the system has no descriptor left.
    pub fn hand_over(&mut self, now: Now) -> State {
        let interface = InterfaceState::default();
        let copied = self.engine.snapshot(interface);
        self.engine.stop(now, || false).expect("memory does not fail");
        let changes = self.engine.changes_since(&copied, interface);
        self.engine.resume();
        [copied.copy().to_vec(), changes.to_vec()]
    }
}
