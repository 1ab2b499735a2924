//! The network stack's neighbour cache, as far as it was filled from here.
//!
//! The stack believes an answer for half a minute and more (`base_reachable_time_ms` of arp(7)). Who has an
//! address may change before: then the stack is told, which takes knowing what it has asked for.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    net::IpAddr,
};

use wireloom_types::LinkAddress;

/// As many answers are remembered. The kernel's own cache has at most 1,024 for each family, unless its
/// `gc_thresh3` says otherwise.
const MAX: usize = 1 << 14;

/// Where the stack was told that addresses are.
#[derive(Debug, Default)]
pub(super) struct NeighbourCache {
    there: HashMap<IpAddr, LinkAddress>,
    /// The same addresses, the one first asked for first: it is the first to be forgotten.
    order: VecDeque<IpAddr>,
}

impl NeighbourCache {
    /// The stack is told that an address is there.
    pub(super) fn note(&mut self, address: IpAddr, there: LinkAddress) {
        match self.there.entry(address) {
            Entry::Occupied(mut known) => *known.get_mut() = there,
            Entry::Vacant(unknown) => {
                unknown.insert(there);
                self.order.push_back(address);
                if self.order.len() > MAX
                    && let Some(oldest) = self.order.pop_front()
                {
                    self.there.remove(&oldest);
                }
            }
        }
    }

    /// Compares what the stack was told with what is so `now`, and takes note of what it hears by `tell`.
    pub(super) fn correct(
        &mut self,
        now: impl Fn(IpAddr) -> LinkAddress,
        mut tell: impl FnMut(IpAddr, LinkAddress),
    ) {
        for (address, told) in &mut self.there {
            let there = now(*address);
            if *told != there {
                *told = there;
                tell(*address, there);
            }
        }
    }

    /// The stack has forgotten everything.
    pub(super) fn clear(&mut self) {
        self.there.clear();
        self.order.clear();
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
    fn what_has_changed_is_told_once() {
        let mut cache = NeighbourCache::default();
        cache.note(address(1), HERE);
        cache.note(address(2), THERE);
        cache.note(address(3), HERE);
        cache.note(address(3), THERE);
        for expected in [vec![(address(1), THERE)], vec![]] {
            let mut told = Vec::new();
            cache.correct(|_| THERE, |address, there| told.push((address, there)));
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut cache = NeighbourCache::default();
        for number in 0..MAX + 10 {
            cache.note(address(number), HERE);
            cache.note(address(number), HERE);
        }
        let mut told = Vec::new();
        cache.correct(|_| THERE, |address, _| told.push(address));
        told.sort();
        assert_eq!(told, (10..MAX + 10).map(address).collect::<Vec<_>>());
        assert_eq!((cache.there.len(), cache.order.len()), (MAX, MAX));
        cache.clear();
        cache.correct(|_| HERE, |address, _| panic!("{address}"));
    }
}
