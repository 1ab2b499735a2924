//! The state that is transferred, as bytes.
//!
//! A *copy* is the whole state while the giver is at work. *Changes* are what has changed when the giver has stopped:
//! what belongs to no peer, the peers that are different now, and the packets that wait for a session.
//!
//! ```text
//!  version  u32, little endian
//!  copy:    Shared, and any number of PeerStates       each one: its length as a u32, and postcard
//!  changes: Shared, removed peers, staged packets, and any number of PeerStates, likewise
//! ```
//!
//! Postcard (<https://postcard.jamesmunns.com/wire-format>) has no names and no room for more: a change of one of these
//! types is another [`VERSION`]. A release reads and writes its own version and the one before. So far there is one.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wireloom_proto::{
    Device,
    handover::{DeviceState, PeerState, StagedPacket, Successor},
    on_wiped_stack,
};
use wireloom_types::{PeerLookup, SourceCheck};
use zeroize::Zeroizing;

use crate::packet::MAX_PACKET;

/// The version of the state that this release writes, and the only one that it reads.
pub(crate) const VERSION: u32 = 1;

/// The memory for one record, in bytes, unless it is longer: a peer with three sessions and some allowed-IPs.
const USUAL_RECORD: usize = 8 << 10;

/// Bytes that may hold keys.
pub(crate) type Record = Zeroizing<Vec<u8>>;

/// What belongs to no peer.
#[derive(Serialize, Deserialize)]
pub(crate) struct Shared {
    pub(crate) device: DeviceState,
    pub(crate) engine: EngineState,
}

/// What belongs to the interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InterfaceState {
    /// Whether packets are preceded by a virtio-net header.
    pub(crate) headers: bool,
    /// Whether the network stack takes super-packets of TCP.
    pub(crate) joins_tcp: bool,
    /// Whether it takes super-packets of UDP.
    pub(crate) joins_udp: bool,
    /// Whether the interface, which is in another network namespace, is to be persistent once it comes back.
    pub(crate) persists_here: bool,
}

/// What the engine knows beside the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EngineState {
    pub(crate) interface: InterfaceState,
    pub(crate) peer_lookup: PeerLookup,
    pub(crate) source_check: SourceCheck,
    /// The port as configured; 0 lets the system choose one.
    pub(crate) listen_port: u16,
    /// The port that the system chose.
    pub(crate) chosen_port: Option<u16>,
    pub(crate) fwmark: u32,
    /// Whether the interface is up.
    pub(crate) up: bool,
    /// Its MTU, in bytes.
    pub(crate) mtu: u32,
    /// What the network stack was told about its neighbours, in link mode.
    pub(crate) neighbours: Vec<(IpAddr, [u8; 6])>,
    /// How many packets were dropped, by the name of the reason.
    pub(crate) drops: Vec<(String, u64)>,
}

/// Why a state cannot be used. Another attempt would get the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StateError {
    /// Another version was announced.
    #[error("the state has version {0}, which this release does not read")]
    Version(u32),
    /// It is no state.
    #[error("the state is damaged")]
    Damaged,
}

/// A state at one moment.
pub(crate) struct Snapshot {
    shared: Record,
    peers: BTreeMap<u64, Record>,
}

impl Snapshot {
    pub(crate) fn of(device: &Device, engine: EngineState) -> Self {
        on_wiped_stack(|| {
            let peers = device.peer_states().map(|peer| (peer.id(), record(&peer))).collect();
            Self { shared: record(&Shared { device: device.state(), engine }), peers }
        })
    }

    /// The copy as bytes.
    pub(crate) fn copy(&self) -> Record {
        joined([&self.shared], self.peers.values())
    }

    /// What has changed since an earlier moment, as bytes.
    pub(crate) fn changes_since(&self, before: &Self, staged: &[StagedPacket]) -> Record {
        let removed: Vec<u64> =
            before.peers.keys().copied().filter(|number| !self.peers.contains_key(number)).collect();
        let changed = self.peers.iter().filter(|(number, peer)| before.peers.get(number) != Some(peer));
        let (removed, staged) = (record(&removed), record(&staged));
        joined([&self.shared, &removed, &staged], changed.map(|(_, peer)| peer))
    }
}

/// A successor that has the copy.
pub(crate) struct Prepared {
    successor: Successor,
    engine: EngineState,
}

/// All that has come over.
pub(crate) struct Received {
    pub(crate) successor: Successor,
    pub(crate) shared: Shared,
    pub(crate) staged: Vec<StagedPacket>,
}

impl Prepared {
    /// Takes the copy. The seed is as for [`Device::new`].
    pub(crate) fn new(seed: &[u8; 32], copy: &[u8]) -> Result<Self, StateError> {
        on_wiped_stack(|| {
            let mut records = Records::new(copy)?;
            let shared = records.shared()?;
            let mut successor = Successor::new(seed, &shared.device);
            take_peers(&mut successor, records)?;
            Ok(Self { successor, engine: shared.engine })
        })
    }

    /// What the engine knew when it was copied.
    pub(crate) fn engine(&self) -> &EngineState {
        &self.engine
    }

    /// Takes the changes.
    pub(crate) fn with_changes(self, changes: &[u8]) -> Result<Received, StateError> {
        let Self { mut successor, engine } = self;
        on_wiped_stack(|| {
            let mut records = Records::new(changes)?;
            let shared = records.shared()?;
            // Whoever took the copy has prepared the interface for it. No engine ever changes it.
            if shared.engine.peer_lookup != engine.peer_lookup {
                return Err(StateError::Damaged);
            }
            let removed: Vec<u64> = records.next()?;
            let staged = records.next()?;
            removed.into_iter().for_each(|number| successor.remove_peer(number));
            take_peers(&mut successor, records)?;
            Ok(Received { successor, shared, staged })
        })
    }
}

fn take_peers(successor: &mut Successor, mut records: Records<'_>) -> Result<(), StateError> {
    while !records.are_read() {
        let peer: PeerState = records.next()?;
        successor.take_peer(&peer);
    }
    Ok(())
}

/// Writes a record. No copy of it is left behind.
fn record(content: &impl Serialize) -> Record {
    let mut room = USUAL_RECORD;
    loop {
        let mut bytes = Zeroizing::new(vec![0; room]);
        match postcard::to_slice(content, &mut bytes).map(|used| used.len()) {
            Ok(len) => return Zeroizing::new(bytes[..len].to_vec()),
            // It does not fit: nothing else fails, since all lengths are known.
            Err(_) => room *= 2,
        }
    }
}

fn joined<'r>(
    first: impl IntoIterator<Item = &'r Record>,
    peers: impl Iterator<Item = &'r Record>,
) -> Record {
    let records: Vec<&Record> = first.into_iter().chain(peers).collect();
    let len = records.iter().map(|record| LENGTH + record.len()).sum::<usize>();
    // With all the room that it needs, so that it is never moved.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LENGTH + len));
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    for record in records {
        let len = u32::try_from(record.len()).expect("a record is shorter than 4 GiB");
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(record);
    }
    bytes
}

/// The length in bytes of the number before each record.
const LENGTH: usize = 4;

/// The records that were not read yet.
struct Records<'b>(&'b [u8]);

impl<'b> Records<'b> {
    fn new(bytes: &'b [u8]) -> Result<Self, StateError> {
        let mut records = Self(bytes);
        match records.number()? {
            VERSION => Ok(records),
            other => Err(StateError::Version(other)),
        }
    }

    fn are_read(&self) -> bool {
        self.0.is_empty()
    }

    fn shared(&mut self) -> Result<Shared, StateError> {
        let shared: Shared = self.next()?;
        // No interface has a greater one, and messages are laid out with room for the longest packet.
        if shared.engine.mtu as usize > MAX_PACKET {
            return Err(StateError::Damaged);
        }
        Ok(shared)
    }

    fn next<T: DeserializeOwned>(&mut self) -> Result<T, StateError> {
        let len = self.number()? as usize;
        let (record, rest) = self.0.split_at_checked(len).ok_or(StateError::Damaged)?;
        self.0 = rest;
        postcard::from_bytes(record).map_err(|_| StateError::Damaged)
    }

    fn number(&mut self) -> Result<u32, StateError> {
        let (number, rest) = self.0.split_first_chunk().ok_or(StateError::Damaged)?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*number))
    }
}

#[cfg(test)]
mod tests;
