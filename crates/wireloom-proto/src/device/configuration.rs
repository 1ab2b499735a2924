//! Changing the keys, the peers and their allowed-IPs.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;
use wireloom_types::{PresharedKey, PrivateKey, PublicKey, limits::MAX_PEERS};

use super::Device;
use super::peer::{Peer, PersistentKeepalive};
use crate::handshake::cookie::MacKeys;
use crate::handshake::noise::Identity;
use crate::peer_id::PeerId;
use crate::time::{Instant, Now};
use crate::transport::Routes;
use crate::wiped_stack::on_wiped_stack;

/// Why a configuration change is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigureError {
    /// The public key is the device's own.
    #[error("the public key is the device's own, and a device cannot be its own peer")]
    OwnPublicKey,
    /// There are [`MAX_PEERS`] peers already.
    #[error("a device has at most {MAX_PEERS} peers; remove one first")]
    TooManyPeers,
}

/// Changes a device. [`Device::configure`] lends it.
#[derive(Debug)]
pub struct Configuration<'a> {
    device: &'a mut Device,
    now: Instant,
    /// Whether the routes changed, so that a new snapshot must be published.
    routes_changed: bool,
}

/// Changes one peer of a device.
#[derive(Debug)]
pub struct PeerConfiguration<'a> {
    device: &'a mut Device,
    now: Instant,
    routes_changed: &'a mut bool,
    id: PeerId,
}

impl Device {
    /// Changes the keys, the peers and their allowed-IPs, and returns what `change` returns. The part of the stack that
    /// `change` used is wiped.
    ///
    /// This is not a transaction: each change takes effect at once, and stays when a later one is refused. Only the
    /// [`Routes`] wait: the data path uses the old ones until `change` returns. Then the new ones are published as a
    /// whole, so that no packet sees half of a change.
    pub fn configure<R>(&mut self, now: Now, change: impl FnOnce(&mut Configuration<'_>) -> R) -> R {
        let mut configuration = Configuration { device: self, now: now.monotonic, routes_changed: false };
        let outcome = on_wiped_stack(|| change(&mut configuration));
        if configuration.routes_changed {
            self.transport.publish(Routes::new(self.routes.clone()));
        }
        outcome
    }
}

impl Configuration<'_> {
    /// Sets or removes the device's private key. All sessions end, because they belong to the old key. A peer that
    /// has the new key's public key is removed. Setting the same key again changes nothing.
    pub fn set_private_key(&mut self, private_key: Option<PrivateKey>) {
        if self.device.private_key() == private_key.as_ref() {
            return;
        }
        let identity = private_key.map(Identity::new);
        if let Some(identity) = &identity {
            self.remove_peer(&identity.public_key);
            self.device.own_mac_keys = Some(MacKeys::of_receiver(&identity.public_key));
        } else {
            self.device.own_mac_keys = None;
        }
        self.device.identity = identity;
        let ids: Vec<PeerId> = self.device.peers.keys().copied().collect();
        for id in ids {
            self.device.forget_sessions(id);
            if let Some(peer) = self.device.peers.get_mut(&id) {
                peer.static_static.forget();
            }
            self.device.reschedule(self.now, id);
        }
    }

    /// The peer with this public key, which is added if there is none.
    ///
    /// # Errors
    /// [`ConfigureError`], when it cannot be added. Nothing is changed then.
    pub fn add_peer(&mut self, public_key: PublicKey) -> Result<PeerConfiguration<'_>, ConfigureError> {
        let own = self.device.identity.as_ref();
        if own.is_some_and(|own| own.public_key == public_key) {
            return Err(ConfigureError::OwnPublicKey);
        }
        let known = self.device.ids.get(&public_key).copied();
        let id = match known {
            Some(id) => id,
            None if self.device.peers.len() >= MAX_PEERS => {
                return Err(ConfigureError::TooManyPeers);
            }
            None => self.device.insert_peer(public_key),
        };
        Ok(self.peer_by_id(id))
    }

    /// The peer with this public key, if there is one.
    pub fn peer(&mut self, public_key: &PublicKey) -> Option<PeerConfiguration<'_>> {
        let id = *self.device.ids.get(public_key)?;
        Some(self.peer_by_id(id))
    }

    /// Removes a peer with its sessions and allowed-IPs. Returns false when there is no such peer.
    pub fn remove_peer(&mut self, public_key: &PublicKey) -> bool {
        let Some(id) = self.device.ids.get(public_key).copied() else {
            return false;
        };
        self.peer_by_id(id).clear_allowed_ips();
        self.device.remove_peer(id);
        true
    }

    /// Removes every peer.
    pub fn remove_all_peers(&mut self) {
        let keys: Vec<PublicKey> = self.device.ids.keys().copied().collect();
        for key in keys {
            self.remove_peer(&key);
        }
    }

    fn peer_by_id(&mut self, id: PeerId) -> PeerConfiguration<'_> {
        PeerConfiguration { device: self.device, now: self.now, routes_changed: &mut self.routes_changed, id }
    }
}

impl PeerConfiguration<'_> {
    /// Sets or removes the preshared key. It takes effect with the next handshake. The key is lent, so that its owner's
    /// copy is wiped where it lies.
    pub fn set_preshared_key(&mut self, preshared_key: Option<&PresharedKey>) -> &mut Self {
        self.peer().preshared_key = preshared_key.cloned();
        self
    }

    /// Sets the peer's address and port, and leaves the choice of our own address to routing.
    pub fn set_endpoint(&mut self, remote: SocketAddr) -> &mut Self {
        let path = &self.peer().path;
        path.set_endpoint(Some(remote.into()));
        path.set_reachable(true);
        self.device.reschedule(self.now, self.id);
        self
    }

    /// Sets the interval of persistent keepalives in seconds, or turns them off. When they are turned on, the first
    /// one is due at once, and is sent even if they are turned off before that (`set_peer` in
    /// drivers/net/wireguard/netlink.c).
    pub fn set_persistent_keepalive(&mut self, interval: Option<NonZeroU16>) -> &mut Self {
        let now = self.now;
        let peer = self.peer();
        let since = match peer.persistent_keepalive {
            Some(keepalive) => keepalive.since,
            None => {
                peer.path.activity.last_traffic.clear();
                now
            }
        };
        let first_is_due =
            peer.persistent_keepalive.is_some() && peer.path.activity.last_traffic.get().is_none();
        peer.persistent_keepalive = interval.map(|interval| PersistentKeepalive { interval, since });
        if interval.is_none() && first_is_due {
            peer.keepalive_wanted = true;
            self.device.queue(now, self.id);
        }
        self.device.reschedule(self.now, self.id);
        self
    }

    /// Sets the largest IP packet that the underlay carries to the peer, in bytes; `None` removes the setting.
    pub fn set_path_mtu(&mut self, bytes: Option<u16>) -> &mut Self {
        self.peer().path.set_path_mtu(bytes);
        self
    }

    /// Adds a network to this peer's allowed-IPs. Another peer that had it loses it. Host bits are ignored.
    pub fn add_allowed_ip(&mut self, network: IpNet) -> &mut Self {
        let network = network.trunc();
        let path = Arc::clone(&self.peer().path);
        if let Some(owner) = self.device.routes.insert(network, path)
            && let Some(owner) = self.device.peers.get_mut(&owner.id())
        {
            owner.allowed_ips.remove(&network);
        }
        self.peer().allowed_ips.insert(network);
        *self.routes_changed = true;
        self
    }

    /// Removes a network from this peer's allowed-IPs, if it is one of them. Host bits are ignored.
    pub fn remove_allowed_ip(&mut self, network: IpNet) -> &mut Self {
        let network = network.trunc();
        if self.peer().allowed_ips.remove(&network) {
            self.device.routes.remove(network);
            *self.routes_changed = true;
        }
        self
    }

    /// Removes all of this peer's allowed-IPs.
    pub fn clear_allowed_ips(&mut self) -> &mut Self {
        for network in std::mem::take(&mut self.peer().allowed_ips) {
            self.device.routes.remove(network);
            *self.routes_changed = true;
        }
        self
    }

    fn peer(&mut self) -> &mut Peer {
        self.device.peers.get_mut(&self.id).expect("no peer is removed while it is configured")
    }
}

impl Device {
    fn insert_peer(&mut self, public_key: PublicKey) -> PeerId {
        let id = PeerId(self.next_id);
        self.next_id += 1;
        let peer = Peer::new(id, public_key, self.jitter());
        self.ids.insert(public_key, id);
        self.peers.insert(id, Box::new(peer));
        self.transport.staging.add_peer(id);
        id
    }

    /// Removes a peer that has no allowed-IPs any more.
    fn remove_peer(&mut self, id: PeerId) {
        self.forget_sessions(id);
        self.unschedule(id);
        self.forgotten_packets += self.transport.staging.remove_peer(id);
        if let Some(peer) = self.peers.remove(&id) {
            // It may be added again, and the clock be set back until then.
            self.timestamps.raise_floor(peer.timestamp_sent);
            self.ids.remove(peer.path.public_key());
        }
    }
}
