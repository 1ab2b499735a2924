//! How long packets may be on their way to the peers, as far as this machine knows: the interface by which they leave,
//! its MTU, and what routers on the path reported to the kernel.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
    ops::Bound,
};

use wireloom_plan::{
    observed::{Device, Peer},
    paths::{Known, Path, Paths},
    routing::Family,
};
use wireloom_types::PublicKey;

use super::Linux;
use crate::{
    error::{Attempt, Cause, Error},
    rtnetlink::{Rtnetlink, interface, way},
};

/// What is remembered between observations.
#[derive(Debug, Default)]
pub(super) struct PathMemory {
    /// The mark of the device's packets.
    mark: u32,
    /// The peers' endpoints: those of the last device that answered.
    endpoints: BTreeMap<PublicKey, IpAddr>,
    /// The path to each of them, as of the last observation.
    answers: BTreeMap<IpAddr, Option<Path>>,
    /// Of what is looked at between observations, the last address.
    last_look: Option<IpAddr>,
    /// The longest packet inside of the tunnel that reaches a peer, where longer ones are lost. Bytes.
    probed: BTreeMap<PublicKey, u32>,
}

impl Linux {
    /// Sets the longest packets that get to peers through the tunnel (bytes), where longer ones are lost.
    pub fn set_probed(&mut self, probed: BTreeMap<PublicKey, u32>) {
        self.paths.probed = probed;
    }

    /// The paths to the device's peers. While there is no device, to those that it had.
    pub(super) fn observe_paths(&mut self, device: Option<&Device>) -> Result<Paths, Error> {
        if let Some(device) = device {
            let endpoint = |(key, peer): (&PublicKey, &Peer)| Some((*key, address_of(peer)?));
            self.paths.endpoints = device.peers.iter().filter_map(endpoint).collect();
            self.paths.mark = device.fwmark;
        }
        let PathMemory { mark, endpoints, answers, probed, .. } = &mut self.paths;
        answers.clear();
        let mut lookup = Lookup::new(&mut self.rtnetlink, *mark);
        let mut paths = Vec::with_capacity(endpoints.len());
        for (key, address) in endpoints {
            let path = match answers.entry(*address) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => *new.insert(lookup.path(*address)?),
            };
            paths.extend(path.map(|path| match probed.get(key) {
                Some(inner) => (*key, path.probed(*inner)),
                None => (*key, path),
            }));
        }
        Ok(paths.into_iter().collect())
    }

    /// Whether one of these peers, which have endpoints, is new since the last observation, or the path to one of the
    /// next peers (at most this many) is another one now. The kernel does not announce what it learns from ICMP errors.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn paths_have_changed(&mut self, peers: &[PublicKey], at_most: usize) -> Result<bool, Error> {
        let PathMemory { mark, endpoints, answers, last_look, .. } = &mut self.paths;
        if peers.iter().any(|key| !endpoints.contains_key(key)) {
            return Ok(true);
        }
        let after = last_look.map_or(Bound::Unbounded, Bound::Excluded);
        let round = answers.range((after, Bound::Unbounded)).chain(answers.iter());
        let mut lookup = Lookup::new(&mut self.rtnetlink, *mark);
        for (address, known) in round.take(at_most.min(answers.len())) {
            *last_look = Some(*address);
            if lookup.path(*address)? != *known {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Where the device sends to.
fn address_of(peer: &Peer) -> Option<IpAddr> {
    peer.endpoint.map(|endpoint| endpoint.ip().to_canonical())
}

/// Asks the kernel about several addresses.
struct Lookup<'a> {
    netlink: &'a mut Rtnetlink,
    mark: u32,
    /// The MTUs of interfaces, by index.
    mtus: BTreeMap<u32, Option<u32>>,
}

impl<'a> Lookup<'a> {
    fn new(netlink: &'a mut Rtnetlink, mark: u32) -> Self {
        Self { netlink, mark, mtus: BTreeMap::new() }
    }

    fn path(&mut self, to: IpAddr) -> Result<Option<Path>, Error> {
        self.try_path(to).attempt(|| format!("look up the route to {to}"))
    }

    fn try_path(&mut self, to: IpAddr) -> Result<Option<Path>, Cause> {
        let way = way::to(self.netlink, to, self.mark)?.filter(|way| way.leads_out);
        let Some(way) = way else { return Ok(None) };
        let interface = match self.mtus.entry(way.interface) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                let found = interface::by_index(self.netlink, way.interface)?;
                *new.insert(found.map(|found| found.interface.mtu))
            }
        };
        // It was removed this moment.
        let Some(interface) = interface else { return Ok(None) };
        let narrowed = way.mtu.filter(|mtu| *mtu < interface);
        Ok(Some(Path {
            outer: Family::of(to),
            way_out: narrowed.filter(|_| !way.reported).unwrap_or(interface),
            mtu: narrowed.unwrap_or(interface),
            known: if narrowed.is_some() && way.reported { Known::Reported } else { Known::Interface },
        }))
    }
}
