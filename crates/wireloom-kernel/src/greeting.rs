//! Who must hear from a device made anew.
//!
//! What such a device lacks is the sessions of the one before it. A peer that was in one would
//! go on with it, unheard, until its own timers give it up 15 seconds later (KEEPALIVE_TIMEOUT +
//! REKEY_TIMEOUT, section 6.2 of the WireGuard paper); so it is greeted with a handshake at once,
//! where it was heard of last.

use std::{collections::BTreeMap, net::SocketAddr, time::SystemTime};

use wireloom_types::PublicKey;

use super::{
    Linux,
    error::{Attempt, Error},
    wireguard::{Change, DeviceState},
};

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    /// In a session with us when the device was last read.
    in_session: BTreeMap<PublicKey, Place>,
    /// Those of them that the device made since must greet as soon as it is up.
    due: BTreeMap<PublicKey, Place>,
}

/// Where a peer is.
#[derive(Debug)]
struct Place {
    heard_of: SocketAddr,
    /// Where the mesh says that it is.
    configured: Option<SocketAddr>,
}

impl Linux {
    /// The device was read.
    pub(super) fn remember_sessions(&mut self, device: &DeviceState, now: SystemTime) {
        let in_session = device.peers.iter().filter(|(_, peer)| peer.is_in_session(now));
        let place = |key| self.configured_endpoints.get(key).copied();
        self.greeting.in_session = in_session
            .filter_map(|(key, peer)| {
                Some((*key, Place { heard_of: peer.endpoint?, configured: place(key) }))
            })
            .collect();
    }

    /// It was made anew.
    pub(super) fn lose_sessions(&mut self) {
        let Greeting { in_session, due } = &mut self.greeting;
        due.append(in_session);
    }

    /// Greets who is due, once the interface is up. Turning keepalives on sends the first of them
    /// at once (`set_peer` in drivers/net/wireguard/netlink.c, and the userspace engine alike),
    /// which takes a handshake.
    pub(super) fn greet(&mut self) -> Result<(), Error> {
        if self.greeting.due.is_empty() {
            return Ok(());
        }
        let Some(found) = self.link()?.filter(|found| found.link.up) else { return Ok(()) };
        let there = found.implementation;
        let Some(device) = self.read_device(there)? else { return Ok(()) };
        let (mut turned, mut turned_back) = (Vec::new(), Vec::new());
        for (public_key, place) in std::mem::take(&mut self.greeting.due) {
            let Some(peer) = device.peers.get(&public_key) else { continue };
            // A place that the mesh has changed meanwhile is better.
            let moved = peer.endpoint == place.configured && peer.endpoint != Some(place.heard_of);
            let endpoint = moved.then_some(place.heard_of);
            let seconds = peer.persistent_keepalive;
            // Whoever gets keepalives got one as the interface came up, if it could be found.
            if seconds == 0 || moved {
                let other = u16::from(seconds == 0);
                turned.push(Change::SetKeepalive { public_key, endpoint, seconds: other });
                turned_back.push(Change::SetKeepalive { public_key, endpoint: None, seconds });
            }
        }
        // Two transactions: in one nothing would be sent.
        for changes in [turned, turned_back].iter().filter(|changes| !changes.is_empty()) {
            self.backend(there).change(changes).attempt(|| "greet the peers".into())?;
        }
        Ok(())
    }
}
