//! The control part: ties peers, handshakes, timers and the transport together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;

use crate::allowed_ips::AllowedIps;
use crate::endpoint::Endpoint;
use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::message::{self, DATA_HEADER_LEN, MessageKind};
use crate::path::{PeerId, PeerPath};
use crate::signal::Signal;
use crate::time::{Instant, Now, UnixTime};
use crate::transport::{Routes, Transport};
use crate::verdict::DropReason;

/// A WireGuard device without its sockets: the crate's documentation says how to drive it.
#[derive(Debug)]
pub struct Device {
    private_key: Option<PrivateKey>,
    transport: Arc<Transport>,
    peers: BTreeMap<PeerId, Peer>,
    ids: BTreeMap<PublicKey, PeerId>,
    next_id: u64,
    routes: AllowedIps<Arc<PeerPath>>,
}

#[derive(Debug)]
struct Peer {
    path: Arc<PeerPath>,
    preshared_key: Option<PresharedKey>,
    persistent_keepalive: Option<NonZeroU16>,
    allowed_ips: BTreeSet<IpNet>,
    last_handshake: Option<UnixTime>,
    staged: VecDeque<Vec<u8>>,
}

/// Packets that wait for one peer's session, at most; the kernel's `MAX_STAGED_PACKETS`.
const STAGED_MAX: usize = 128;

/// A datagram to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub endpoint: Endpoint,
    /// How many bytes at the start of the caller's buffer.
    pub len: usize,
}

/// Why a configuration change is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigureError {
    /// A peer with the device's own public key would be the device itself.
    #[error("the public key is this device's own: a device is not its own peer")]
    OwnPublicKey,
    /// No more than 2^20 peers fit, as in the kernel.
    #[error("too many peers: a device has at most 1048576")]
    TooManyPeers,
}

/// What can be read back of a peer.
#[derive(Debug)]
pub struct PeerStatus<'a> {
    /// The peer's name inside the device.
    pub id: PeerId,
    /// Its identity.
    pub public_key: &'a PublicKey,
    /// The symmetric key mixed into handshakes: a secret.
    pub preshared_key: Option<&'a PresharedKey>,
    /// Where it was last heard from, or is configured to be.
    pub endpoint: Option<Endpoint>,
    /// Seconds between keepalives.
    pub persistent_keepalive: Option<NonZeroU16>,
    /// Its allowed IPs, in the order of addresses.
    pub allowed_ips: &'a BTreeSet<IpNet>,
    /// When the last handshake was done.
    pub last_handshake: Option<UnixTime>,
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// The protocol's version: 1, the only one there is.
    pub protocol_version: u32,
}

impl Device {
    /// A device without keys and peers. All its randomness comes from the seed, which must be drawn
    /// from the operating system's generator, once for each device.
    #[must_use]
    pub fn new(_seed: [u8; 32]) -> Self {
        Self {
            private_key: None,
            transport: Arc::new(Transport::new()),
            peers: BTreeMap::new(),
            ids: BTreeMap::new(),
            next_id: 0,
            routes: AllowedIps::default(),
        }
    }

    /// The data part.
    #[must_use]
    pub fn transport(&self) -> &Arc<Transport> {
        &self.transport
    }

    /// The device's identity: a secret.
    #[must_use]
    pub fn private_key(&self) -> Option<&PrivateKey> {
        self.private_key.as_ref()
    }

    /// The peers, in the order in which they were added.
    pub fn peers(&self) -> impl Iterator<Item = PeerStatus<'_>> {
        self.peers.values().map(Peer::status)
    }

    /// One peer.
    #[must_use]
    pub fn peer(&self, public_key: &PublicKey) -> Option<PeerStatus<'_>> {
        let id = self.ids.get(public_key)?;
        self.peers.get(id).map(Peer::status)
    }

    /// Begins a transaction of configuration changes. Each takes effect at once, but the routes of
    /// the data path are published when the returned value is dropped, all together.
    pub fn configure(&mut self, _now: Now) -> Configuration<'_> {
        Configuration { device: self }
    }

    /// Handles an initiation, a response or a cookie reply.
    ///
    /// # Errors
    /// The reason why the datagram is dropped.
    pub fn handle_handshake(
        &mut self,
        _now: Now,
        _from: Endpoint,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        if MessageKind::classify(datagram)? == MessageKind::Data {
            return Err(DropReason::BadType);
        }
        match self.private_key {
            None => Err(DropReason::NoPrivateKey),
            Some(_) => Err(DropReason::UnknownPeer),
        }
    }

    /// Takes a packet that could not be sealed and keeps it until there is a session, for which it
    /// begins a handshake when none is under way. `mtu` bounds its padding.
    ///
    /// # Errors
    /// A packet that is lost: this one, when the peer is gone or has no endpoint; the oldest that
    /// waited ([`DropReason::QueueFull`]), when too many do.
    pub fn handle_outgoing(
        &mut self,
        _now: Now,
        peer: PeerId,
        packet: &[u8],
        mtu: usize,
    ) -> Result<(), DropReason> {
        let peer = self.peers.get_mut(&peer).ok_or(DropReason::NoPeerForDestination)?;
        if peer.path.endpoint().is_none() {
            return Err(DropReason::NoEndpoint);
        }
        let mut message = vec![0; message::data_len(packet.len(), mtu)];
        message[DATA_HEADER_LEN..][..packet.len()].copy_from_slice(packet);
        peer.staged.push_back(message);
        if peer.staged.len() > STAGED_MAX {
            peer.staged.pop_front();
            return Err(DropReason::QueueFull);
        }
        Ok(())
    }

    /// Handles what the data path found out.
    pub fn handle_signal(&mut self, _now: Now, _signal: Signal) {}

    /// Does what is due; call it when the moment of [`Self::poll_timeout`] has come. Early and late
    /// calls are harmless.
    pub fn handle_timeout(&mut self, _now: Now) {}

    /// Writes the next datagram that is to be sent to the start of `buffer`, which has room for the
    /// longest packet given to [`Self::handle_outgoing`] and [`message::DATA_OVERHEAD`] more (at
    /// least [`message::INITIATION_LEN`]).
    pub fn poll_transmit(&mut self, _now: Now, _buffer: &mut [u8]) -> Option<Transmit> {
        None
    }

    /// When [`Self::handle_timeout`] is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}

impl Peer {
    fn status(&self) -> PeerStatus<'_> {
        PeerStatus {
            id: self.path.id(),
            public_key: self.path.public_key(),
            preshared_key: self.preshared_key.as_ref(),
            endpoint: self.path.endpoint(),
            persistent_keepalive: self.persistent_keepalive,
            allowed_ips: &self.allowed_ips,
            last_handshake: self.last_handshake,
            received_bytes: self.path.received_bytes(),
            sent_bytes: self.path.sent_bytes(),
            protocol_version: 1,
        }
    }
}

/// A transaction of configuration changes: see [`Device::configure`].
#[derive(Debug)]
pub struct Configuration<'a> {
    device: &'a mut Device,
}

/// One peer in a transaction.
#[derive(Debug)]
pub struct PeerConfiguration<'a> {
    device: &'a mut Device,
    id: PeerId,
}

impl Configuration<'_> {
    /// Sets or removes the device's identity. All sessions end, as they were made with the old one;
    /// a peer with the new key's public key is removed.
    pub fn set_private_key(&mut self, private_key: Option<PrivateKey>) {
        if let Some(private_key) = &private_key {
            self.remove_peer(&private_key.public_key());
        }
        self.device.private_key = private_key;
    }

    /// The peer with this key, which is added when there is none.
    ///
    /// # Errors
    /// [`ConfigureError`]; nothing has changed then.
    pub fn add_peer(&mut self, public_key: PublicKey) -> Result<PeerConfiguration<'_>, ConfigureError> {
        let own = self.device.private_key.as_ref().map(PrivateKey::public_key);
        if own == Some(public_key) {
            return Err(ConfigureError::OwnPublicKey);
        }
        let id = match self.device.ids.get(&public_key) {
            Some(id) => *id,
            None => self.device.insert_peer(public_key)?,
        };
        Ok(PeerConfiguration { device: self.device, id })
    }

    /// The peer with this key, if there is one.
    pub fn peer(&mut self, public_key: &PublicKey) -> Option<PeerConfiguration<'_>> {
        let id = *self.device.ids.get(public_key)?;
        Some(PeerConfiguration { device: self.device, id })
    }

    /// Removes a peer with its sessions and allowed IPs; false when there is none.
    pub fn remove_peer(&mut self, public_key: &PublicKey) -> bool {
        let Some(id) = self.device.ids.remove(public_key) else {
            return false;
        };
        if let Some(peer) = self.device.peers.remove(&id) {
            for network in peer.allowed_ips {
                self.device.routes.remove(network);
            }
        }
        true
    }

    /// Removes every peer.
    pub fn remove_all_peers(&mut self) {
        let keys: Vec<PublicKey> = self.device.ids.keys().copied().collect();
        for key in keys {
            self.remove_peer(&key);
        }
    }
}

impl Drop for Configuration<'_> {
    fn drop(&mut self) {
        let routes = Routes::new(self.device.routes.clone());
        self.device.transport.publish(routes);
    }
}

impl PeerConfiguration<'_> {
    /// Sets or removes the symmetric key that the next handshake mixes in.
    pub fn set_preshared_key(&mut self, preshared_key: Option<PresharedKey>) -> &mut Self {
        self.peer().preshared_key = preshared_key;
        self
    }

    /// Sets where the peer is.
    pub fn set_endpoint(&mut self, remote: SocketAddr) -> &mut Self {
        self.peer().path.set_endpoint(Some(remote.into()));
        self
    }

    /// Sets the seconds between keepalives, or turns them off.
    pub fn set_persistent_keepalive(&mut self, interval: Option<NonZeroU16>) -> &mut Self {
        self.peer().persistent_keepalive = interval;
        self
    }

    /// Gives a network to this peer; whoever had it loses it.
    pub fn add_allowed_ip(&mut self, network: IpNet) -> &mut Self {
        let network = network.trunc();
        let path = Arc::clone(&self.peer().path);
        if let Some(owner) = self.device.routes.insert(network, path)
            && let Some(owner) = self.device.peers.get_mut(&owner.id())
        {
            owner.allowed_ips.remove(&network);
        }
        self.peer().allowed_ips.insert(network);
        self
    }

    /// Takes a network from this peer, if it is this peer's.
    pub fn remove_allowed_ip(&mut self, network: IpNet) -> &mut Self {
        let network = network.trunc();
        if self.peer().allowed_ips.remove(&network) {
            self.device.routes.remove(network);
        }
        self
    }

    /// Takes every network from this peer.
    pub fn clear_allowed_ips(&mut self) -> &mut Self {
        for network in std::mem::take(&mut self.peer().allowed_ips) {
            self.device.routes.remove(network);
        }
        self
    }

    fn peer(&mut self) -> &mut Peer {
        self.device.peers.get_mut(&self.id).expect("the transaction holds the device, so its peer stays")
    }
}

impl Device {
    fn insert_peer(&mut self, public_key: PublicKey) -> Result<PeerId, ConfigureError> {
        if self.peers.len() >= PEERS_MAX {
            return Err(ConfigureError::TooManyPeers);
        }
        let id = PeerId(self.next_id);
        self.next_id += 1;
        self.ids.insert(public_key, id);
        self.peers.insert(
            id,
            Peer {
                path: Arc::new(PeerPath::new(id, public_key)),
                preshared_key: None,
                persistent_keepalive: None,
                allowed_ips: BTreeSet::new(),
                last_handshake: None,
                staged: VecDeque::new(),
            },
        );
        Ok(id)
    }
}

/// The kernel's `MAX_PEERS_PER_DEVICE`.
const PEERS_MAX: usize = 1 << 20;
