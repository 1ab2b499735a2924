//! Peers. A prefix is in the allowed-IPs of one peer at a time: a peer that gets it takes it from its
//! previous owner.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use ipnet::IpNet;
use wireloom_types::{PublicKey, limits::REJECT_AFTER_TIME};

use crate::{
    desired::{Desired, DesiredPeer},
    observed::{Observed, Peer},
    op::{DeviceOp, SetPeer},
};

/// Two transactions, so that nothing that a route or rule still leads to is removed too early.
#[derive(Default)]
pub(super) struct PeerChanges {
    /// New peers, and everything that existing peers gain.
    pub(super) grow: Vec<DeviceOp>,
    /// Allowed-IPs that no peer gets instead, and peers that are removed.
    pub(super) shrink: Vec<DeviceOp>,
}

/// The key of every present and every desired peer.
pub(super) fn all(observed: &Observed, desired: &Desired) -> BTreeSet<PublicKey> {
    let device = observed.device.iter().flat_map(|device| device.peers.keys());
    device.chain(desired.peers.keys()).copied().collect()
}

pub(super) fn changes(
    observed: &Observed,
    desired: &Desired,
    keys: impl IntoIterator<Item = PublicKey> + Clone,
) -> PeerChanges {
    let none = BTreeMap::new();
    let present = observed.device.as_ref().map_or(&none, |device| &device.peers);

    // These move to the peer that gets them; their previous owner need not give them up first.
    let moving: BTreeSet<IpNet> = keys
        .clone()
        .into_iter()
        .filter_map(|key| Some((present.get(&key), desired.peers.get(&key)?)))
        .flat_map(|(old, new)| gained(old, new))
        .collect();

    let mut changes = PeerChanges::default();
    let mut going = Vec::new();
    for key in keys {
        match (present.get(&key), desired.peers.get(&key)) {
            (None, Some(new)) => {
                changes.grow.push(set(key, new, new.endpoint, new.allowed_ips.clone()));
            }
            (Some(old), Some(new)) => changes.adjust(key, old, new, &moving),
            (Some(_), None) => going.push(DeviceOp::RemovePeer { public_key: key }),
            (None, None) => {}
        }
    }
    changes.shrink.extend(going);
    changes
}

impl PeerChanges {
    fn adjust(&mut self, key: PublicKey, old: &Peer, new: &DesiredPeer, moving: &BTreeSet<IpNet>) {
        let endpoint = new.endpoint.filter(|declared| must_set_endpoint(old, *declared));
        let keepalive_differs = old.persistent_keepalive != new.persistent_keepalive;
        let key_differs = old.preshared_key != new.preshared_key;
        let grows = gained(Some(old), new).next().is_some();
        let lost: BTreeSet<IpNet> = old
            .allowed_ips
            .difference(&new.allowed_ips)
            .filter(|lost| !moving.contains(lost))
            .copied()
            .collect();

        if grows || keepalive_differs || key_differs || endpoint.is_some() {
            self.grow.push(set(key, new, endpoint, &new.allowed_ips | &lost));
        }
        if !lost.is_empty() {
            self.shrink.push(set(key, new, None, new.allowed_ips.clone()));
        }
    }
}

fn gained<'a>(old: Option<&'a Peer>, new: &'a DesiredPeer) -> impl Iterator<Item = IpNet> + use<'a> {
    let had = move |prefix: &&IpNet| old.is_some_and(|old| old.allowed_ips.contains(*prefix));
    new.allowed_ips.iter().filter(move |prefix| !had(prefix)).copied()
}

fn set(
    public_key: PublicKey,
    new: &DesiredPeer,
    endpoint: Option<SocketAddr>,
    allowed_ips: BTreeSet<IpNet>,
) -> DeviceOp {
    DeviceOp::SetPeer(SetPeer {
        public_key,
        endpoint,
        allowed_ips,
        persistent_keepalive: new.persistent_keepalive,
        preshared_key: new.preshared_key,
    })
}

/// A newly declared endpoint is set. Otherwise the device knows better, because peers roam; unless nobody
/// remembers the previous declaration and there is no live session to trust.
fn must_set_endpoint(old: &Peer, declared: SocketAddr) -> bool {
    match old.configured_endpoint {
        Some(configured) => configured != declared,
        None => {
            let alive = old.handshake_age.is_some_and(|age| age <= REJECT_AFTER_TIME);
            old.endpoint != Some(declared) && !alive
        }
    }
}
