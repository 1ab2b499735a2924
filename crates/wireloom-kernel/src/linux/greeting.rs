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
    wireguard::{Change, DeviceState},
};

/// The peers in a session, and those to greet.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    /// The peers in a session with us when the device was last read.
    in_session: BTreeMap<PublicKey, Place>,
    /// The peers that a device recreated since then must greet as soon as it is up.
    due: BTreeMap<PublicKey, Place>,
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

    /// Sends the scheduled greetings once the interface is up. Turning keepalives on sends one at once
    /// (`set_peer` in drivers/net/wireguard/netlink.c, and the userspace engine likewise), which takes a
    /// handshake.
    pub(super) fn greet(&mut self) -> Result<(), Error> {
        if self.greeting.due.is_empty() {
            return Ok(());
        }
        let Some(found) = self.find_interface()?.filter(|found| found.interface.up) else { return Ok(()) };
        let backend = found.backend;
        let Some(device) = self.read_device(backend)? else { return Ok(()) };
        let (mut turned, mut turned_back) = (Vec::new(), Vec::new());
        for (public_key, place) in std::mem::take(&mut self.greeting.due) {
            let Some(peer) = device.peers.get(&public_key) else { continue };
            // An endpoint that the mesh changed meanwhile is better.
            let moved = peer.endpoint == place.configured && peer.endpoint != Some(place.last_heard);
            let endpoint = moved.then_some(place.last_heard);
            let seconds = peer.persistent_keepalive;
            // A peer with keepalives got one as the interface came up, if its endpoint was right.
            if seconds == 0 || moved {
                let other = u16::from(seconds == 0);
                turned.push(Change::SetKeepalive { public_key, endpoint, seconds: other });
                turned_back.push(Change::SetKeepalive { public_key, endpoint: None, seconds });
            }
        }
        // Two transactions: in a single one the last value would win and nothing be sent.
        for changes in [turned, turned_back].iter().filter(|changes| !changes.is_empty()) {
            self.wireguard(backend).change(changes).attempt(|| "start handshakes with the peers".into())?;
        }
        Ok(())
    }
}
