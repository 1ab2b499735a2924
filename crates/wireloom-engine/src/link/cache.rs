//! What the network stack's neighbour cache has learnt from here.
//!
//! The stack keeps an answer for half a minute or more (`base_reachable_time_ms` of arp(7)). If the address moves
//! before that, the stack has to be told, so we remember which addresses it asked for.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    net::IpAddr,
};

use wireloom_types::LinkAddress;

/// The most answers that are remembered. The kernel's own cache has at most 1,024 for each family, unless its
/// `gc_thresh3` says otherwise.
const MAX: usize = 1 << 14;

/// The answers that the stack was given.
#[derive(Debug, Default)]
pub(super) struct NeighbourCache {
    answers: HashMap<IpAddr, LinkAddress>,
    /// The same addresses in the order of the first question: the oldest is forgotten first.
    order: VecDeque<IpAddr>,
}

impl NeighbourCache {
    /// The answers, in the order of the first question.
    pub(super) fn answers(&self) -> impl Iterator<Item = (IpAddr, LinkAddress)> {
        self.order.iter().filter_map(|address| Some((*address, *self.answers.get(address)?)))
    }

    /// Records the answer that the stack is given for an address.
    pub(super) fn note(&mut self, address: IpAddr, location: LinkAddress) {
        match self.answers.entry(address) {
            Entry::Occupied(mut known) => *known.get_mut() = location,
            Entry::Vacant(unknown) => {
                unknown.insert(location);
                self.order.push_back(address);
                if self.order.len() > MAX
                    && let Some(oldest) = self.order.pop_front()
                {
                    self.answers.remove(&oldest);
                }
            }
        }
    }

    /// Compares the answers with the addresses' locations `now`. Passes those that differ to `tell`, and records them.
    pub(super) fn correct(
        &mut self,
        now: impl Fn(IpAddr) -> LinkAddress,
        mut tell: impl FnMut(IpAddr, LinkAddress),
    ) {
        for (address, answer) in &mut self.answers {
            let location = now(*address);
            if *answer != location {
                *answer = location;
                tell(*address, location);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HERE: LinkAddress = LinkAddress::from_bytes([2, 0, 0, 0, 0, 1]);
    const THERE: LinkAddress = LinkAddress::from_bytes([2, 0, 0, 0, 0, 2]);

    fn address(number: usize) -> IpAddr {
        Ipv4Addr::from_bits(number as u32).into()
    }

    #[test]
    fn a_change_is_reported_once() {
        let mut cache = NeighbourCache::default();
        cache.note(address(1), HERE);
        cache.note(address(2), THERE);
        cache.note(address(3), HERE);
        cache.note(address(3), THERE);
        for expected in [vec![(address(1), THERE)], vec![]] {
            let mut told = Vec::new();
            cache.correct(|_| THERE, |address, location| told.push((address, location)));
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn the_oldest_answers_are_forgotten() {
        let mut cache = NeighbourCache::default();
        for number in 0..MAX + 10 {
            cache.note(address(number), HERE);
            cache.note(address(number), HERE);
        }
        let mut told = Vec::new();
        cache.correct(|_| THERE, |address, _| told.push(address));
        told.sort();
        assert_eq!(told, (10..MAX + 10).map(address).collect::<Vec<_>>());
        assert_eq!((cache.answers.len(), cache.order.len()), (MAX, MAX));
    }
}
