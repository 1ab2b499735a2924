//! Changes as differences to the known allowed-IPs, in an order in which no allowed-IP that stays or moves is
//! ever missing. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
};

use ipnet::IpNet;
use wireloom_types::{KEY_LEN, PresharedKey, PrivateKey, PublicKey};

use crate::wireguard::{Change, DeviceState};

/// The owners of all allowed-IPs. A peer that is not in here may have any.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct AllowedIps {
    peers: BTreeMap<PublicKey, BTreeSet<IpNet>>,
    owners: HashMap<IpNet, PublicKey>,
}

/// The differences to send.
#[derive(Default)]
pub(super) struct Transaction<'a> {
    pub(super) configure: Option<Configure<'a>>,
    pub(super) steps: Vec<Step>,
    /// Allowed-IPs that peers lose and nobody gets; removed after everything else.
    pub(super) lost: Vec<(PublicKey, IpNet)>,
}

/// The device's own settings.
pub(super) struct Configure<'a> {
    pub(super) key: &'a PrivateKey,
    pub(super) listen_port: u16,
    pub(super) fwmark: u32,
}

/// A change of one peer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Set(SetPeer),
    Remove(PublicKey),
}

/// The settings of a peer to change.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SetPeer {
    pub(super) public_key: PublicKey,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) persistent_keepalive: u16,
    /// Of zeros for none; absent: unchanged.
    pub(super) preshared_key: Option<PresharedKey>,
    /// Whether an absent peer stays absent.
    pub(super) update_only: bool,
    /// Whether all allowed-IPs that the peer has are removed first, because they are not known.
    pub(super) replace: bool,
    /// Allowed-IPs that it gets in addition; their owners lose them.
    pub(super) gained: Vec<IpNet>,
}

impl SetPeer {
    /// A peer that gains nothing yet.
    pub(super) fn new(public_key: PublicKey, persistent_keepalive: u16) -> Self {
        Self {
            public_key,
            endpoint: None,
            persistent_keepalive,
            preshared_key: None,
            update_only: false,
            replace: false,
            gained: Vec::new(),
        }
    }
}

impl AllowedIps {
    pub(super) fn of(device: &DeviceState) -> Self {
        let peers = device.peers.iter().map(|(key, peer)| (*key, peer.allowed_ips.clone())).collect();
        let owned = device.peers.iter().flat_map(|(key, peer)| peer.allowed_ips.iter().map(|ip| (*ip, *key)));
        Self { owners: owned.collect(), peers }
    }

    fn remove(&mut self, key: PublicKey) {
        for ip in self.peers.remove(&key).unwrap_or_default() {
            self.owners.remove(&ip);
        }
    }

    /// Returns the allowed-IPs that the peer gains and those that it loses.
    fn set(&mut self, key: PublicKey, new: &BTreeSet<IpNet>) -> (Vec<IpNet>, Vec<IpNet>) {
        let old = self.peers.insert(key, new.clone()).unwrap_or_default();
        let lost: Vec<_> = old.difference(new).copied().collect();
        let gained: Vec<_> = new.difference(&old).copied().collect();
        for ip in &lost {
            self.owners.remove(ip);
        }
        for ip in &gained {
            if let Some(before) = self.owners.insert(*ip, key)
                && let Some(ips) = self.peers.get_mut(&before)
            {
                ips.remove(ip);
            }
        }
        (gained, lost)
    }
}

impl<'a> Transaction<'a> {
    /// Also updates what is known.
    pub(super) fn new(changes: &[Change<'a>], known: &mut AllowedIps) -> Self {
        let mut transaction = Self::default();
        for change in changes {
            transaction.append(change, known);
        }
        // Those that another peer gained meanwhile are lost already.
        transaction.lost.retain(|(_, ip)| !known.owners.contains_key(ip));
        transaction
    }

    fn append(&mut self, change: &Change<'a>, known: &mut AllowedIps) {
        match change {
            Change::Configure { key, listen_port, fwmark, .. } => {
                self.configure = Some(Configure { key, listen_port: *listen_port, fwmark: *fwmark });
            }
            Change::RemovePeer(key) => {
                known.remove(*key);
                self.lost.retain(|(loser, _)| loser != key);
                self.steps.push(Step::Remove(*key));
            }
            Change::SetPeer { peer, preshared_key } => {
                let replace = !known.peers.contains_key(&peer.public_key);
                let (gained, lost) = known.set(peer.public_key, &peer.allowed_ips);
                self.lost.extend(lost.into_iter().map(|ip| (peer.public_key, ip)));
                self.steps.push(Step::Set(SetPeer {
                    endpoint: peer.endpoint,
                    preshared_key: Some(
                        (*preshared_key).cloned().unwrap_or(PresharedKey::from_bytes([0; KEY_LEN])),
                    ),
                    replace,
                    gained,
                    ..SetPeer::new(peer.public_key, peer.persistent_keepalive)
                }));
            }
            Change::SetKeepalive { public_key, endpoint, seconds } => {
                self.steps.push(Step::Set(SetPeer {
                    endpoint: *endpoint,
                    update_only: true,
                    ..SetPeer::new(*public_key, *seconds)
                }));
            }
        }
    }
}
