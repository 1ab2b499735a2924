//! The kernel's device in memory, and the properties that hold for any changes.
//!
//! It does what `wg_set_device`, `set_peer` and `set_allowedip` in drivers/net/wireguard/netlink.c do.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use netlink_packet_core::Emitable as _;
use netlink_packet_wireguard::{
    WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAllowedIpFlags, WireguardAttribute, WireguardPeer,
    WireguardPeerAttribute, WireguardPeerFlags,
};
use nix::errno::Errno;
use proptest::prelude::*;
use wireloom_plan::op::SetPeer;
use wireloom_types::{PresharedKey, PresharedKeyHash, PrivateKey, PublicKey, SourceCheck};

use super::{family::Commands, programmer::Programmer};
use crate::{
    error::Cause,
    wireguard::{Change, DeviceState, PeerState, shown},
};

/// The device.
#[derive(Debug, Default)]
struct Twin {
    state: DeviceState,
    /// The owner of each allowed-IP.
    owners: BTreeMap<IpNet, PublicKey>,
    /// Knows `WGALLOWEDIP_F_REMOVE_ME`.
    removes_single_ips: bool,
    /// The owners after each change of an allowed-IP, if they are to be recorded.
    past: Option<Vec<BTreeMap<IpNet, PublicKey>>>,
    /// The length of each message's attributes in bytes.
    messages: Vec<usize>,
}

impl Twin {
    fn of(state: DeviceState) -> Self {
        let peers = state.peers.iter();
        let owners = peers.flat_map(|(key, peer)| peer.allowed_ips.iter().map(|ip| (*ip, *key))).collect();
        Self { state, owners, ..Self::default() }
    }

    fn give(&mut self, key: PublicKey, ip: IpNet) {
        if let Some(before) = self.owners.insert(ip, key) {
            self.peer(before).allowed_ips.remove(&ip);
        }
        self.peer(key).allowed_ips.insert(ip);
        self.record();
    }

    fn take(&mut self, key: PublicKey, ip: IpNet) {
        if self.peer(key).allowed_ips.remove(&ip) {
            self.owners.remove(&ip);
            self.record();
        }
    }

    fn record(&mut self) {
        if let Some(past) = &mut self.past {
            past.push(self.owners.clone());
        }
    }

    fn set_peer(&mut self, request: &WireguardPeer) -> Result<(), Cause> {
        let (mut key, mut flags) = (None, WireguardPeerFlags::empty());
        for attribute in &request.0 {
            match attribute {
                WireguardPeerAttribute::PublicKey(bytes) => key = Some(PublicKey::from_bytes(*bytes)),
                WireguardPeerAttribute::Flags(given) => flags = *given,
                _ => {}
            }
        }
        let key = key.ok_or(Errno::EINVAL)?;
        let is_new = !self.state.peers.contains_key(&key);
        let goes = flags.contains(WireguardPeerFlags::RemoveMe);
        let must_be_there = goes || flags.contains(WireguardPeerFlags::UpdateOnly);
        if is_new && must_be_there || self.state.public_key == Some(key) {
            return Ok(());
        }
        if goes || flags.contains(WireguardPeerFlags::ReplaceAllowedIps) {
            let all = self.peer(key).allowed_ips.clone();
            all.into_iter().for_each(|ip| self.take(key, ip));
        }
        if goes {
            self.state.peers.remove(&key);
            return Ok(());
        }
        self.state.peers.entry(key).or_default();
        for attribute in &request.0 {
            match attribute {
                WireguardPeerAttribute::Endpoint(endpoint) => self.peer(key).endpoint = Some(*endpoint),
                WireguardPeerAttribute::PersistentKeepalive(seconds) => {
                    self.peer(key).persistent_keepalive = *seconds;
                }
                WireguardPeerAttribute::PresharedKey(bytes) => {
                    self.peer(key).preshared_key = shown(&PresharedKey::from_bytes(*bytes));
                }
                WireguardPeerAttribute::AllowedIps(ips) => {
                    ips.iter().try_for_each(|ip| self.set_allowed_ip(key, ip))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn set_allowed_ip(&mut self, key: PublicKey, request: &WireguardAllowedIp) -> Result<(), Cause> {
        let (mut address, mut length, mut removed) = (None::<IpAddr>, None, false);
        for attribute in &request.0 {
            match attribute {
                WireguardAllowedIpAttr::IpAddr(given) => address = Some(*given),
                WireguardAllowedIpAttr::Cidr(given) => length = Some(*given),
                WireguardAllowedIpAttr::Flags(_) if !self.removes_single_ips => {
                    return Err(Errno::EINVAL.into());
                }
                WireguardAllowedIpAttr::Flags(flags) => {
                    removed = flags.contains(WireguardAllowedIpFlags::RemoveMe);
                }
                _ => {}
            }
        }
        let ip = address.zip(length).and_then(|(address, length)| IpNet::new(address, length).ok());
        let ip = ip.ok_or(Errno::EINVAL)?;
        if removed {
            self.take(key, ip);
        } else {
            self.give(key, ip);
        }
        Ok(())
    }

    fn peer(&mut self, key: PublicKey) -> &mut PeerState {
        self.state.peers.entry(key).or_default()
    }
}

impl Commands for Twin {
    fn get(&mut self) -> Result<Option<DeviceState>, Cause> {
        Ok(Some(self.state.clone()))
    }

    fn set(&mut self, attributes: Vec<WireguardAttribute>) -> Result<(), Cause> {
        self.messages.push(attributes.as_slice().buffer_len());
        for attribute in &attributes {
            match attribute {
                WireguardAttribute::PrivateKey(bytes) => {
                    let key = PrivateKey::from_bytes(*bytes).public_key();
                    self.state.public_key = Some(key);
                }
                WireguardAttribute::ListenPort(port) => self.state.listen_port = *port,
                WireguardAttribute::Fwmark(mark) => self.state.fwmark = *mark,
                WireguardAttribute::Peers(peers) => {
                    peers.iter().try_for_each(|peer| self.set_peer(peer))?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The state after all changes, one after the other.
fn expected(before: &DeviceState, changes: &[SetPeer], removed: &[PublicKey]) -> DeviceState {
    let mut state = before.clone();
    for change in changes {
        for peer in state.peers.values_mut() {
            peer.allowed_ips.retain(|ip| !change.allowed_ips.contains(ip));
        }
        let peer = state.peers.entry(change.public_key).or_default();
        peer.allowed_ips.clone_from(&change.allowed_ips);
        peer.persistent_keepalive = change.persistent_keepalive;
        peer.preshared_key = change.preshared_key;
        peer.endpoint = change.endpoint.or(peer.endpoint);
    }
    state.peers.retain(|key, _| !removed.contains(key));
    state
}

fn change(
    twin: &mut Twin,
    programmer: &mut Programmer,
    sets: &[SetPeer],
    removed: &[PublicKey],
) -> Result<(), Cause> {
    let mesh_key = PresharedKey::from_bytes(MESH_KEY);
    let sets = sets
        .iter()
        .map(|peer| Change::SetPeer { peer, preshared_key: peer.preshared_key.map(|_| &mesh_key) });
    let changes: Vec<_> = sets.chain(removed.iter().map(|key| Change::RemovePeer(*key))).collect();
    programmer.change(twin, &changes)
}

const MESH_KEY: [u8; 32] = [9; 32];

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

fn prefixes() -> impl Strategy<Value = BTreeSet<IpNet>> {
    let universe = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "fd00::/8", "fd00:1::/64", "fd00:1::1/128"];
    let universe: Vec<IpNet> = universe.iter().map(|prefix| prefix.parse().unwrap()).collect();
    proptest::sample::subsequence(universe, 0..=6).prop_map(|some| some.into_iter().collect())
}

fn sets() -> impl Strategy<Value = Vec<SetPeer>> {
    let set = (0..4u8, prefixes(), 0..2u16, any::<bool>()).prop_map(
        |(number, allowed_ips, persistent_keepalive, has_key)| SetPeer {
            public_key: key(number),
            endpoint: None,
            allowed_ips,
            persistent_keepalive,
            preshared_key: has_key.then(|| PresharedKeyHash::of(&PresharedKey::from_bytes(MESH_KEY))),
        },
    );
    proptest::collection::vec(set, 0..5)
}

fn device() -> impl Strategy<Value = DeviceState> {
    sets().prop_map(|peers| expected(&DeviceState::default(), &peers, &[]))
}

proptest! {
    /// On old kernels and new ones. An allowed-IP that has an owner before and after has one all the time.
    #[test]
    fn any_changes_take_full_effect_without_a_gap(
        before in device(),
        rounds in proptest::collection::vec((sets(), proptest::collection::vec(0..4u8, 0..3)), 1..4),
        removes_single_ips: bool,
    ) {
        let mut twin = Twin { removes_single_ips, ..Twin::of(before.clone()) };
        let mut programmer = Programmer::default();
        programmer.observe(Some(&before));
        for (sets, removed) in rounds {
            let removed: Vec<_> = removed.into_iter().map(key).collect();
            let (before, after) = (twin.owners.clone(), expected(&twin.state, &sets, &removed));
            twin.past = Some(Vec::new());
            change(&mut twin, &mut programmer, &sets, &removed).unwrap();
            prop_assert_eq!(&twin.state, &after);
            let stays: Vec<_> = twin.owners.keys().filter(|ip| before.contains_key(ip)).collect();
            for moment in twin.past.iter().flatten() {
                prop_assert!(stays.iter().all(|ip| moment.contains_key(*ip)), "{:?}", moment);
            }
        }
    }
}

/// With 50,000 allowed-IPs, every message is shorter than 64 KiB.
#[test]
fn thousands_of_peers_fit_into_messages() {
    let prefix = |peer: u16, number: u16| format!("fd00:{peer:x}:{number:x}::/64").parse().unwrap();
    let peer = |number: u16, count: u16| SetPeer {
        public_key: PublicKey::from_bytes(std::array::from_fn(|place| number.to_be_bytes()[place % 2])),
        endpoint: Some("[2001:db8::1]:51820".parse().unwrap()),
        allowed_ips: (0..count).map(|count| prefix(number, count)).collect(),
        persistent_keepalive: 25,
        preshared_key: None,
    };
    let mut peers: Vec<_> = (1..=5_000).map(|number| peer(number, 4)).collect();
    peers.push(peer(5_001, 30_000));
    let (mut twin, mut programmer) = (Twin::default(), Programmer::default());
    change(&mut twin, &mut programmer, &peers, &[]).unwrap();
    let given = twin.state.peers.values().map(|peer| peer.allowed_ips.len());
    assert_eq!((twin.state.peers.len(), given.sum::<usize>()), (5_001, 50_000));
    assert!(twin.messages.iter().all(|length| *length < 1 << 16), "{:?}", twin.messages);
    assert!((50..200).contains(&twin.messages.len()), "{:?}", twin.messages);

    // Removing one prefix takes one short message, after a failed attempt with a new flag on an old kernel.
    for (removes_single_ips, count, messages) in [(true, 29_999, 2), (true, 29_998, 2), (false, 29_997, 3)] {
        let mut programmer = Programmer::default();
        programmer.observe(Some(&twin.state));
        (twin.removes_single_ips, twin.messages) = (removes_single_ips, Vec::new());
        change(&mut twin, &mut programmer, &[peer(5_001, count)], &[]).unwrap();
        assert_eq!(twin.state.peers[&peer(5_001, 0).public_key].allowed_ips.len(), usize::from(count));
        assert_eq!(twin.messages.len(), messages);
        assert!(twin.messages.iter().all(|length| *length < 400), "{:?}", twin.messages);
    }
}

#[test]
fn the_private_key_reaches_the_kernel() {
    let private = PrivateKey::from_bytes([7; 32]);
    let mut twin = Twin::default();
    let configure = Change::Configure {
        key: &private,
        listen_port: 51820,
        fwmark: 10,
        source_check: SourceCheck::AllowedIps,
    };
    Programmer::default().change(&mut twin, &[configure]).unwrap();
    let public_key = private.public_key();
    let expected = DeviceState {
        public_key: Some(public_key),
        listen_port: 51820,
        fwmark: 10,
        ..DeviceState::default()
    };
    assert_eq!(twin.state, expected);
}
