//! What the network stack's neighbour cache has learnt from here, and what it has given up.
//!
//! The stack keeps an answer for half a minute or more (`base_reachable_time_ms` of arp(7)). If the address moves
//! before that, the stack has to be told, so we remember which addresses it asked for.
//!
//! After a few questions without an answer it gives a neighbour up. It does not ask again before it has something to
//! send to that address, and a next hop that it has given up gets nothing: so we remember these questions, too.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    net::IpAddr,
};

use wireloom_types::LinkAddress;

use super::neighbour::Question;

/// The most answers that are remembered. The kernel's own cache has at most 1,024 for each family, unless its
/// `gc_thresh3` says otherwise.
const MAX: usize = 1 << 14;

/// The most questions without an answer that are remembered, and the most about one peer: it may have a large prefix,
/// and somebody may scan it. More than these stay without an answer until the stack asks again.
const UNANSWERED_MAX: usize = 4096;
const UNANSWERED_OF_PEER: usize = 64;

/// The answers that the stack was given, and its questions that got none.
#[derive(Debug, Default)]
pub(super) struct NeighbourCache {
    answers: HashMap<IpAddr, LinkAddress>,
    /// The same addresses in the order of the first question: the oldest is forgotten first.
    order: VecDeque<IpAddr>,
    /// By target.
    unanswered: HashMap<IpAddr, Unanswered>,
}

/// A question that got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unanswered {
    pub(super) question: Question,
    /// The link address of the peer that the answer would have named.
    pub(super) location: LinkAddress,
    /// Something else had told the stack that the address is there. The allowed-IPs do not say so.
    pub(super) is_told: bool,
}

impl NeighbourCache {
    /// The answers, in the order of the first question.
    pub(super) fn answers(&self) -> impl Iterator<Item = (IpAddr, LinkAddress)> {
        self.order.iter().filter_map(|address| Some((*address, *self.answers.get(address)?)))
    }

    /// Records a question that gets no answer, because its peer is not reachable.
    pub(super) fn note_unanswered(&mut self, unanswered: Unanswered) {
        let target = unanswered.question.target;
        let of_peer =
            || self.unanswered.values().filter(|other| other.location == unanswered.location).count();
        let has_room = || self.unanswered.len() < UNANSWERED_MAX && of_peer() < UNANSWERED_OF_PEER;
        if self.unanswered.contains_key(&target) || has_room() {
            self.unanswered.insert(target, unanswered);
        }
    }

    pub(super) fn has_unanswered(&self) -> bool {
        !self.unanswered.is_empty()
    }

    /// Takes at most `count` questions about link addresses that are due out of those without an answer.
    pub(super) fn take_unanswered(
        &mut self,
        count: usize,
        mut is_due: impl FnMut(LinkAddress) -> bool,
    ) -> Vec<Unanswered> {
        let due = self.unanswered.extract_if(|_, unanswered| is_due(unanswered.location));
        due.take(count).map(|(_, unanswered)| unanswered).collect()
    }

    /// Moves the questions without an answer to where their targets are `now`. Nobody waits for those that are nowhere.
    pub(super) fn move_unanswered(&mut self, now: impl Fn(IpAddr) -> Option<LinkAddress>) {
        self.unanswered.retain(|target, unanswered| {
            let location = now(*target);
            unanswered.location = location.unwrap_or(unanswered.location);
            location.is_some() || unanswered.is_told
        });
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

    /// A copy of the answers, in no order.
    pub(super) fn copy(&self) -> Vec<(IpAddr, LinkAddress)> {
        self.answers.iter().map(|(address, answer)| (*address, *answer)).collect()
    }

    /// Records that an address is at a location now. Returns whether the stack has to be told: it was given another
    /// answer.
    pub(super) fn correct(&mut self, address: IpAddr, location: LinkAddress) -> bool {
        let differs = |answer: &&mut LinkAddress| **answer != location;
        self.answers.get_mut(&address).filter(differs).map(|answer| *answer = location).is_some()
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
        for expected in [[true, false, false, false], [false; 4]] {
            assert_eq!([1, 2, 3, 4].map(|number| cache.correct(address(number), THERE)), expected);
        }
        let mut all = cache.copy();
        all.sort();
        assert_eq!(all, [1, 2, 3].map(|number| (address(number), THERE)));
    }

    #[test]
    fn a_scan_of_a_peers_prefix_leaves_room_for_questions_about_others() {
        let ask = |cache: &mut NeighbourCache, number, location| {
            let question = Question::of_interface(HERE, address(number));
            cache.note_unanswered(Unanswered { question, location, is_told: false });
        };
        let mut cache = NeighbourCache::default();
        (0..1000).for_each(|number| ask(&mut cache, number, HERE));
        ask(&mut cache, 1000, THERE);
        ask(&mut cache, 0, HERE);
        assert_eq!(cache.take_unanswered(10, |location| location == HERE).len(), 10);
        assert_eq!(cache.take_unanswered(MAX, |_| true).len(), UNANSWERED_OF_PEER - 10 + 1);
        assert!(!cache.has_unanswered());
    }

    #[test]
    fn the_oldest_answers_are_forgotten() {
        let mut cache = NeighbourCache::default();
        for number in 0..MAX + 10 {
            cache.note(address(number), HERE);
            cache.note(address(number), HERE);
        }
        let mut left: Vec<_> = cache.copy().into_iter().map(|(address, _)| address).collect();
        left.sort();
        assert_eq!(left, (10..MAX + 10).map(address).collect::<Vec<_>>());
        assert_eq!((cache.answers.len(), cache.order.len()), (MAX, MAX));
    }
}
