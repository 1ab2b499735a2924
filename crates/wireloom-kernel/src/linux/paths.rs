//! How long packets may be on their way to the peers, as far as this machine knows: the interface by which they leave,
//! its MTU, and what routers on the path reported to the kernel.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    mem,
    net::IpAddr,
    ops::Bound,
    time::{Duration, Instant},
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

/// With more endpoints than this, observations that follow upon each other do not ask about all of them each time: one
/// takes about 10 microseconds.
const MANY: usize = 200;

/// For how long they use the same answers.
const HOLD: Duration = Duration::from_secs(1);

/// What is remembered between observations.
#[derive(Debug, Default)]
pub(super) struct PathMemory {
    /// The mark of the device's packets.
    mark: u32,
    /// The peers' endpoints: those of the last device that answered.
    endpoints: BTreeMap<PublicKey, IpAddr>,
    /// The path to each of them, as of the last observation.
    answers: BTreeMap<IpAddr, Option<Path>>,
    /// When the kernel was asked about all of them, and whether a later observation used that.
    asked: Option<Instant>,
    reused: bool,
    /// Of what is looked at between observations, the last address.
    last_look: Option<IpAddr>,
    /// The longest packet inside of the tunnel that reaches a peer, where longer ones are lost. Bytes.
    probed: BTreeMap<PublicKey, u32>,
}

impl PathMemory {
    /// What an observation need not ask for: all that is known or nothing.
    fn take_answers(&mut self, now: Instant) -> BTreeMap<IpAddr, Option<Path>> {
        let are_new = self.asked.is_some_and(|asked| now < asked + HOLD);
        let known = mem::take(&mut self.answers);
        if are_new && self.endpoints.len() > MANY {
            self.reused = true;
            return known;
        }
        (self.asked, self.reused) = (Some(now), false);
        BTreeMap::new()
    }

    /// Of how many answers a look tells whether they are still true. Once those that were used again are not new any
    /// more, of all: whatever caused that observation may have changed any of them.
    fn looks(&mut self, at_most: usize, now: Instant) -> usize {
        let all = self.reused && self.asked.is_none_or(|asked| asked + HOLD <= now);
        self.reused &= !all;
        if all { self.answers.len() } else { at_most.min(self.answers.len()) }
    }
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
            if mem::replace(&mut self.paths.mark, device.fwmark) != device.fwmark {
                self.paths.asked = None;
            }
        }
        let known = self.paths.take_answers(Instant::now());
        let PathMemory { mark, endpoints, answers, probed, .. } = &mut self.paths;
        let mut lookup = Lookup::new(&mut self.rtnetlink, *mark);
        let mut paths = Vec::with_capacity(endpoints.len());
        for (key, address) in endpoints {
            let path = match answers.entry(*address) {
                Entry::Occupied(answer) => *answer.get(),
                Entry::Vacant(new) => match known.get(address) {
                    Some(answer) => *new.insert(*answer),
                    None => *new.insert(lookup.path(*address)?),
                },
            };
            paths.extend(path.map(|path| match probed.get(key) {
                Some(inner) => (*key, path.probed(*inner)),
                None => (*key, path),
            }));
        }
        Ok(paths.into_iter().collect())
    }

    /// Whether one of these peers, which have endpoints, is new since the last observation, or the path to one of the
    /// next peers (about this many) is another one now. The kernel does not announce what it learns from ICMP errors.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn paths_have_changed(&mut self, peers: &[PublicKey], at_most: usize) -> Result<bool, Error> {
        if peers.iter().any(|key| !self.paths.endpoints.contains_key(key)) {
            return Ok(true);
        }
        let looks = self.paths.looks(at_most, Instant::now());
        let PathMemory { mark, answers, asked, last_look, .. } = &mut self.paths;
        let after = last_look.map_or(Bound::Unbounded, Bound::Excluded);
        let round = answers.range((after, Bound::Unbounded)).chain(answers.iter());
        let mut lookup = Lookup::new(&mut self.rtnetlink, *mark);
        for (address, known) in round.take(looks) {
            *last_look = Some(*address);
            if lookup.path(*address)? != *known {
                *asked = None;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(endpoints: u8) -> PathMemory {
        let address = |number| IpAddr::from([192, 0, 2, number]);
        PathMemory {
            endpoints: (0..endpoints)
                .map(|number| (PublicKey::from_bytes([number; 32]), address(number)))
                .collect(),
            answers: (0..endpoints).map(|number| (address(number), None)).collect(),
            ..PathMemory::default()
        }
    }

    #[test]
    fn many_answers_are_used_again_for_a_while_and_then_all_looked_at() {
        let mut memory = memory(201);
        let answers = memory.answers.clone();
        let start = Instant::now();
        assert!(memory.take_answers(start).is_empty(), "nobody was asked");
        memory.answers = answers.clone();
        assert_eq!(memory.looks(50, start + HOLD), 50, "none was used again");
        assert_eq!(memory.take_answers(start + HOLD / 2), answers);
        memory.answers = answers.clone();
        assert_eq!(memory.looks(50, start + HOLD / 2), 50);
        assert_eq!(memory.looks(50, start + HOLD), 201);
        assert_eq!(memory.looks(50, start + HOLD), 50);
        assert!(memory.take_answers(start + HOLD).is_empty());
    }

    #[test]
    fn few_answers_are_asked_for_by_each_observation() {
        let mut memory = memory(200);
        let start = Instant::now();
        for _ in 0..2 {
            assert!(memory.take_answers(start).is_empty());
        }
    }
}
