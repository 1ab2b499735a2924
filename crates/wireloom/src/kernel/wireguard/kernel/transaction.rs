//! What a list of changes asks of the kernel, as differences to what its peers are known to have,
//! in the order in which no packet misses what it may have.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
};

use ipnet::IpNet;
use netlink_packet_wireguard::WireguardAttribute;
use nix::errno::Errno;
use wireloom_engine::{PrivateKey, keys};
use wireloom_plan::key::PublicKey;

use super::{
    family::Device,
    message::{self, Removal},
};
use crate::kernel::{
    error::Cause,
    wireguard::{Change, DeviceState},
};

/// Turns changes into what the kernel must be told.
#[derive(Default)]
pub(super) struct Programmer {
    /// As last read, and as changed since.
    known: AllowedIps,
    /// Whether the kernel can take a single allowed-IP away; unknown until that is first tried.
    takes_single_ips_away: Option<bool>,
}

/// Who has which allowed-IPs. A peer that is not in here may have any.
#[derive(Debug, Default, PartialEq, Eq)]
struct AllowedIps {
    peers: BTreeMap<PublicKey, BTreeSet<IpNet>>,
    owners: HashMap<IpNet, PublicKey>,
}

/// What the kernel is told in one go.
#[derive(Default)]
pub(super) struct Transaction<'a> {
    pub(super) configure: Option<Configure<'a>>,
    pub(super) steps: Vec<Step>,
    /// What peers lose and nobody gets: after all else.
    lost: Vec<(PublicKey, IpNet)>,
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

/// What is set of a peer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SetPeer {
    pub(super) public_key: PublicKey,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) persistent_keepalive: u16,
    /// Not made when it is not there.
    pub(super) update_only: bool,
    /// Nothing is known of the allowed-IPs that it has: it loses them.
    pub(super) replace: bool,
    /// Allowed-IPs added to what it has, and taken from whoever has them.
    pub(super) gained: Vec<IpNet>,
}

impl SetPeer {
    /// A peer that gets nothing yet.
    pub(super) fn new(public_key: PublicKey, persistent_keepalive: u16) -> Self {
        Self {
            public_key,
            endpoint: None,
            persistent_keepalive,
            update_only: false,
            replace: false,
            gained: Vec::new(),
        }
    }
}

impl Programmer {
    /// What was read; `None` when there is no device.
    pub(super) fn observe(&mut self, device: Option<&DeviceState>) {
        self.known = device.map(AllowedIps::of).unwrap_or_default();
    }

    pub(super) fn change(&mut self, device: &mut impl Device, changes: &[Change<'_>]) -> Result<(), Cause> {
        let transaction = Transaction::new(changes, &mut self.known);
        let outcome = send(device, message::changes(&transaction))
            .and_then(|()| self.take_away(device, &transaction.lost));
        if outcome.is_err() {
            // Some of it may be done.
            self.known = AllowedIps::default();
        }
        outcome
    }

    /// Takes allowed-IPs away that nobody else gets, one by one: to write what a peer keeps anew
    /// would leave it without any for a moment.
    fn take_away(&mut self, device: &mut impl Device, lost: &[(PublicKey, IpNet)]) -> Result<(), Cause> {
        if lost.is_empty() {
            return Ok(());
        }
        if self.takes_single_ips_away != Some(false) {
            match send(device, message::removal(lost, &Removal::Flag)) {
                Ok(()) => {
                    self.takes_single_ips_away = Some(true);
                    return Ok(());
                }
                // Before Linux 6.16 an allowed-IP has no flags, and what is unknown is refused.
                // Before Linux 6.16 an allowed-IP has no flags, and an attribute too many is EINVAL; flags
                // that a kernel does not know are EOPNOTSUPP.
                Err(Cause::Refused { errno: Errno::EINVAL | Errno::EOPNOTSUPP, .. })
                    if self.takes_single_ips_away.is_none() =>
                {
                    tracing::debug!("this kernel cannot take a single allowed-IP from a peer");
                }
                Err(cause) => return Err(cause),
            }
        }
        let nobody = PublicKey(*keys::generate()?.public_key().as_bytes());
        send(device, message::removal(lost, &Removal::Handover { nobody }))?;
        self.takes_single_ips_away = Some(false);
        Ok(())
    }
}

fn send(device: &mut impl Device, messages: Vec<Vec<WireguardAttribute>>) -> Result<(), Cause> {
    messages.into_iter().try_for_each(|attributes| device.set(attributes))
}

impl AllowedIps {
    fn of(device: &DeviceState) -> Self {
        let peers = device.peers.iter().map(|(key, peer)| (*key, peer.allowed_ips.clone())).collect();
        let owned = device.peers.iter().flat_map(|(key, peer)| peer.allowed_ips.iter().map(|ip| (*ip, *key)));
        Self { owners: owned.collect(), peers }
    }

    fn remove(&mut self, key: PublicKey) {
        for ip in self.peers.remove(&key).unwrap_or_default() {
            self.owners.remove(&ip);
        }
    }

    /// Gives what the peer gains and loses.
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
    /// Afterwards the changes are part of what is known.
    fn new(changes: &[Change<'a>], known: &mut AllowedIps) -> Self {
        let mut transaction = Self::default();
        for change in changes {
            transaction.append(change, known);
        }
        // Another peer got it: it is lost already.
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
            Change::SetPeer(peer) => {
                let replace = !known.peers.contains_key(&peer.public_key);
                let (gained, lost) = known.set(peer.public_key, &peer.allowed_ips);
                self.lost.extend(lost.into_iter().map(|ip| (peer.public_key, ip)));
                self.steps.push(Step::Set(SetPeer {
                    endpoint: peer.endpoint,
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
