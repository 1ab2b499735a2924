//! The peers that must hear from a recreated device.
//!
//! A recreated device lacks the sessions of the one before it. A peer that was in a session would keep using
//! it, unheard, until its own timers give the session up after 15 seconds (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT,
//! section 6.2 of the WireGuard paper). So the new device starts a handshake with each such peer at once, at
//! the endpoint where the peer was last heard of.

use std::{collections::BTreeMap, net::SocketAddr, time::SystemTime};

use wireloom_types::PublicKey;

use super::Linux;
use crate::{
    error::{Attempt, Error},
    wireguard::{Backend, Change, DeviceState},
};

/// The peers in a session, and those to greet.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    /// The peers in a session with us when the device was last read.
    in_session: BTreeMap<PublicKey, Place>,
    /// The peers that a device recreated since then must greet as soon as it is up.
    due: BTreeMap<PublicKey, Place>,
}

/// A peer to start a handshake with.
pub(super) struct Greeted {
    pub(super) public_key: PublicKey,
    /// Where it is greeted; absent: where the device knows it to be.
    pub(super) endpoint: Option<SocketAddr>,
    /// Its keepalive interval, which stays.
    pub(super) seconds: u16,
}

/// Where a peer is.
#[derive(Debug)]
struct Place {
    last_heard: SocketAddr,
    /// The endpoint that the mesh declares.
    configured: Option<SocketAddr>,
}

impl Linux {
    /// Records the peers in a session, after the device was read.
    pub(super) fn remember_sessions(&mut self, device: &DeviceState, now: SystemTime) {
        let in_session = device.peers.iter().filter(|(_, peer)| peer.is_in_session(now));
        let place = |key| self.configured_endpoints.get(key).copied();
        self.greeting.in_session = in_session
            .filter_map(|(key, peer)| {
                Some((*key, Place { last_heard: peer.endpoint?, configured: place(key) }))
            })
            .collect();
    }

    /// Schedules the greetings, after the device was recreated.
    pub(super) fn lose_sessions(&mut self) {
        let Greeting { in_session, due } = &mut self.greeting;
        due.append(in_session);
    }

    /// Sends the scheduled greetings once the interface is up.
    pub(super) fn greet(&mut self) -> Result<(), Error> {
        if self.greeting.due.is_empty() {
            return Ok(());
        }
        let Some(found) = self.find_interface()?.filter(|found| found.interface.up) else { return Ok(()) };
        let backend = found.backend;
        let Some(device) = self.read_device(backend)? else { return Ok(()) };
        let mut greeted = Vec::new();
        for (public_key, place) in std::mem::take(&mut self.greeting.due) {
            let Some(peer) = device.peers.get(&public_key) else { continue };
            // An endpoint that the mesh changed meanwhile is better.
            let moved = peer.endpoint == place.configured && peer.endpoint != Some(place.last_heard);
            let endpoint = moved.then_some(place.last_heard);
            let seconds = peer.persistent_keepalive;
            // A peer with keepalives got one as the interface came up, if its endpoint was right.
            if seconds == 0 || moved {
                greeted.push(Greeted { public_key, endpoint, seconds });
            }
        }
        self.start_handshakes(backend, &greeted)
    }

    /// Starts a handshake with each of these peers. Turning keepalives on sends one at once (`set_peer` in
    /// drivers/net/wireguard/netlink.c, and the userspace engine likewise), which takes a handshake unless the peer is
    /// in a session.
    pub(super) fn start_handshakes(&mut self, backend: Backend, peers: &[Greeted]) -> Result<(), Error> {
        let changes = |turned_back: bool| {
            let change = move |peer: &Greeted| Change::SetKeepalive {
                public_key: peer.public_key,
                endpoint: peer.endpoint.filter(|_| !turned_back),
                seconds: if turned_back { peer.seconds } else { u16::from(peer.seconds == 0) },
            };
            peers.iter().map(change).collect::<Vec<_>>()
        };
        // Two transactions: in a single one the last value would win and nothing be sent.
        for changes in [changes(false), changes(true)].iter().filter(|changes| !changes.is_empty()) {
            self.wireguard(backend).change(changes).attempt(|| "start handshakes with the peers".into())?;
        }
        Ok(())
    }
}
