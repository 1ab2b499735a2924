//! Handing the state over to a successor, and being one.

use std::sync::Arc;

use wireloom_types::{PresharedKey, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::Device;
use super::peer::{Attempt, Peer, PendingHandshake, PersistentKeepalive};
use super::sessions::Sessions;
use crate::handover::{DeviceState, PeerState, PendingState, StagedPacket};
use crate::handshake::cookie::{CookieJar, CookieMaker, MacKeys};
use crate::handshake::index_table::IndexTable;
use crate::handshake::noise::{Identity, InitiatorHandshake, StaticStatic};
use crate::handshake::timestamp::{InitiationFilter, OwnTimestamps};
use crate::index_permutation::IndexPermutation;
use crate::limits::REKEY_TIMEOUT_JITTER_MAX;
use crate::peer_id::PeerId;
use crate::time::Now;
use crate::transport::peer_path::PeerPath;
use crate::transport::signal::Signal;
use crate::transport::{Routes, Transport};
use crate::wiped_stack::on_wiped_stack;

impl Device {
    /// What belongs to no peer, to be handed over.
    ///
    /// Before the last time, stop all threads that seal or open, and poll the device until it has nothing to send: what
    /// it has not sent is not handed over, but for staged packets.
    #[must_use]
    pub fn state(&self) -> DeviceState {
        let (timestamps_floor, timestamps_greatest) = self.timestamps.state();
        DeviceState {
            private_key: self.private_key().map(|key| Zeroizing::new(*key.expose_bytes())),
            index_permutation: self.indices.permutation().state(),
            index_generations: self.indices.generations(),
            timestamps_floor,
            timestamps_greatest,
            cookie_secret: self.cookies.state(),
            next_id: self.next_id,
            timed_out_packets: self.timed_out_packets,
        }
    }

    /// The peers, in the order in which they were added, to be handed over.
    pub fn peer_states(&self) -> impl Iterator<Item = PeerState> {
        self.peers.values().map(|peer| peer.state())
    }

    /// Copies of the packets that wait for a session, to be handed over.
    #[must_use]
    pub fn staged_packets(&self) -> Vec<StagedPacket> {
        self.transport.staging.state()
    }
}

impl Peer {
    fn state(&self) -> PeerState {
        let [previous, current, next] = self.sessions.state();
        PeerState {
            id: self.path.id().0,
            public_key: *self.path.public_key().as_bytes(),
            preshared_key: self.preshared_key.as_ref().map(|key| Zeroizing::new(*key.expose_bytes())),
            static_static: self.static_static.state(),
            persistent_keepalive: self.persistent_keepalive.map(|on| (on.interval, on.since)),
            allowed_ips: self.allowed_ips.iter().copied().collect(),
            path: self.path.state(),
            cookie: self.cookies.cookie(),
            last_mac1: self.cookies.last_mac1(),
            previous,
            current,
            next,
            pending: self.pending.as_ref().map(PendingHandshake::state),
            attempt: self.attempt.map(|attempt| (attempt.since, attempt.retry_at)),
            handshake_sent: self.handshake_sent,
            last_handshake: self.last_handshake,
            timestamp_sent: self.timestamp_sent,
            timestamp_received: self.initiations.state(),
            keepalive_wanted: self.keepalive_wanted,
            handshake_wanted: self.handshake_wanted,
            wipe_at: self.wipe_at,
            jitter: self.jitter,
        }
    }

    fn from_state(state: &PeerState) -> Self {
        let id = PeerId(state.id);
        let public_key = PublicKey::from_bytes(state.public_key);
        let sessions = [&state.previous, &state.current, &state.next].map(Option::as_ref);
        Self {
            path: Arc::new(PeerPath::from_state(id, public_key, &state.path)),
            preshared_key: state.preshared_key.as_ref().map(|key| PresharedKey::from_bytes(**key)),
            static_static: StaticStatic::from_state(state.static_static.as_ref()),
            persistent_keepalive: state
                .persistent_keepalive
                .map(|(interval, since)| PersistentKeepalive { interval, since }),
            allowed_ips: state.allowed_ips.iter().map(ipnet::IpNet::trunc).collect(),
            cookies: CookieJar::from_state(state.cookie, state.last_mac1),
            sessions: Sessions::from_state(sessions),
            pending: state.pending.as_ref().map(PendingHandshake::from_state),
            attempt: state.attempt.map(|(since, retry_at)| Attempt { since, retry_at }),
            handshake_sent: state.handshake_sent,
            last_handshake: state.last_handshake,
            timestamp_sent: state.timestamp_sent,
            initiations: InitiationFilter::from_state(state.timestamp_received),
            keepalive_wanted: state.keepalive_wanted,
            handshake_wanted: state.handshake_wanted,
            wipe_at: state.wipe_at,
            ..Self::new(id, public_key, state.jitter.min(REKEY_TIMEOUT_JITTER_MAX))
        }
    }
}

impl PendingHandshake {
    fn state(&self) -> PendingState {
        let [chaining_key, hash, ephemeral] = self.noise.parts();
        PendingState { chaining_key, hash, ephemeral, index: self.index }
    }

    fn from_state(state: &PendingState) -> Self {
        let parts = [&*state.chaining_key, &*state.hash, &*state.ephemeral];
        Self { noise: InitiatorHandshake::from_parts(parts), index: state.index, failed: 0 }
    }
}

/// The greatest number that a peer can have: no device adds as many. A peer with a greater one is left out.
const NUMBER_MAX: u64 = u64::MAX / 2;

/// A device that is being made from what another one hands over. The stack that its methods use is wiped.
#[derive(Debug)]
pub struct Successor(Device);

impl Successor {
    /// A successor without peers. The seed is as for [`Device::new`].
    #[must_use]
    pub fn new(seed: &[u8; 32], state: &DeviceState) -> Self {
        let permutation = IndexPermutation::from_state(state.index_permutation);
        let mut device = Device::new(seed);
        device.indices = IndexTable::new(permutation);
        device.transport = Arc::new(Transport::new(permutation));
        Self(device)
    }

    /// The data path of the device, which nobody may use yet.
    #[must_use]
    pub fn transport(&self) -> &Arc<Transport> {
        self.0.transport()
    }

    /// Takes over a peer. One with the same number, or the same key, that it has taken before is replaced.
    pub fn take_peer(&mut self, state: &PeerState) {
        if state.id > NUMBER_MAX {
            return;
        }
        on_wiped_stack(|| {
            self.remove_peer(state.id);
            // Nobody could name it any more, to remove it.
            if let Some(same) = self.0.ids.get(&PublicKey::from_bytes(state.public_key)).copied() {
                self.remove_peer(same.0);
            }
            let peer = Peer::from_state(state);
            let device = &mut self.0;
            let id = peer.path.id();
            for network in &peer.allowed_ips {
                device.routes.insert(*network, Arc::clone(&peer.path));
            }
            for session in peer.sessions.iter() {
                device.transport.insert(Arc::clone(session), Arc::clone(&peer.path));
            }
            device.ids.insert(*peer.path.public_key(), id);
            device.peers.insert(id, Box::new(peer));
            device.transport.staging.add_peer(id);
        });
    }

    /// Forgets a peer with this number that it has taken, because the other device has removed it since.
    pub fn remove_peer(&mut self, number: u64) {
        let device = &mut self.0;
        let Some(mut peer) = device.peers.remove(&PeerId(number)) else { return };
        for network in &peer.allowed_ips {
            // It may be another peer's by now.
            if let Some(owner) = device.routes.remove(*network).filter(|owner| owner.id() != PeerId(number)) {
                device.routes.insert(*network, owner);
            }
        }
        for session in peer.sessions.end().into_iter().flatten() {
            device.transport.remove(session.local_index());
        }
        device.ids.remove(peer.path.public_key());
        device.transport.staging.remove_peer(PeerId(number));
    }

    /// The device, which takes up its work from here on, with what belongs to no peer and the packets that wait for a
    /// session. The other device must have stopped for good.
    #[must_use]
    pub fn finish(self, now: Now, state: &DeviceState, staged: &[StagedPacket]) -> Device {
        let Self(mut device) = self;
        on_wiped_stack(|| {
            let identity = state.private_key.as_ref().map(|key| Identity::new(PrivateKey::from_bytes(**key)));
            device.own_mac_keys =
                identity.as_ref().map(|identity| MacKeys::of_receiver(&identity.public_key));
            device.identity = identity;
            device.cookies = CookieMaker::from_state(&state.cookie_secret);
        });
        device.timestamps = OwnTimestamps::from_state((state.timestamps_floor, state.timestamps_greatest));
        // A number belongs to one peer, whatever the state says.
        let after = device.peers.last_key_value().map_or(0, |(last, _)| last.0 + 1);
        device.next_id = state.next_id.min(NUMBER_MAX).max(after);
        device.timed_out_packets = state.timed_out_packets;
        let owned = device.peers.iter().flat_map(|(id, peer)| {
            let pending = peer.pending.as_ref().map(|pending| pending.index);
            let sessions = peer.sessions.iter().map(|session| session.local_index());
            sessions.chain(pending).map(|index| (index, *id))
        });
        let permutation = device.indices.permutation();
        device.indices = IndexTable::from_state(permutation, &state.index_generations, owned);
        device.transport.publish(Routes::new(device.routes.clone()));
        staged.iter().for_each(|packet| device.transport.staging.restore(packet));
        let ids: Vec<PeerId> = device.peers.keys().copied().collect();
        for id in ids {
            device.take_up(now, id);
        }
        device
    }
}

impl Device {
    /// Takes up the work for a peer that was handed over.
    fn take_up(&mut self, now: Now, id: PeerId) {
        let Some(peer) = self.peers.get(&id) else { return };
        // Where it was taken, it is not to be taken again.
        let last_minute = peer.path.activity.last_minute.get();
        self.use_current(id);
        let Some(peer) = self.peers.get(&id) else { return };
        peer.path.activity.last_minute.set(last_minute);
        if peer.keepalive_wanted || peer.handshake_wanted {
            self.queue(now.monotonic, id);
        }
        self.handle_signal(now, Signal { peer: id });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::time::{Instant, UnixTime};

    #[test]
    fn a_number_and_a_key_belong_to_one_peer() {
        let now = Now {
            monotonic: Instant::from_nanos(1_000_000_000_000),
            unix: UnixTime::from_epoch(Duration::from_secs(1_767_225_600)),
        };
        let key = |number| PublicKey::from_bytes([number; 32]);
        for next_id in [0, 9, u64::MAX] {
            let mut state = Device::new(&[1; 32]).state();
            state.next_id = next_id;
            let mut successor = Successor::new(&[2; 32], &state);
            for (number, owner) in [(3, key(1)), (9, key(1)), (u64::MAX, key(2))] {
                successor.take_peer(&Peer::new(PeerId(number), owner, Duration::ZERO).state());
            }
            let mut device = successor.finish(now, &state, &[]);
            assert_eq!(device.peers().map(|peer| peer.id).collect::<Vec<_>>(), [PeerId(9)]);
            device.configure(now, |configuration| {
                configuration.add_peer(key(2)).expect("there is room");
                configuration.add_peer(key(3)).expect("there is room");
            });
            assert_eq!(device.peer_count(), 3);
            device.configure(now, |configuration| {
                assert!(configuration.peer(&key(1)).is_some());
                configuration.remove_all_peers();
            });
            assert_eq!(device.peer_count(), 0);
        }
    }

    /// It is added to a timeout, which must not overflow.
    #[test]
    fn a_jitter_that_no_device_draws_is_shortened() {
        let key = PublicKey::from_bytes([2; 32]);
        let mut state = Peer::new(PeerId(1), key, Duration::ZERO).state();
        state.jitter = Duration::MAX;
        assert_eq!(Peer::from_state(&state).jitter, REKEY_TIMEOUT_JITTER_MAX);
    }
}
