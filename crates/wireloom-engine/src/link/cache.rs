//! What the network stack's neighbour cache has learnt from here, and what it has given up.
//!
//! The stack keeps an answer for half a minute or more (`base_reachable_time_ms` of arp(7)). If the address moves
//! before that, the stack has to be told, so we remember which addresses it asked for.
//!
//! After a few questions without an answer it gives a neighbour up. It asks again when it has something to send to that
//! very address, or has forgotten the neighbour; a next hop that it has given up gets nothing. So we remember these
//! questions, too.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    mem,
    net::IpAddr,
};

use wireloom_proto::Instant;
use wireloom_types::LinkAddress;

use super::neighbour::Question;

/// The most answers that are remembered. The kernel's own cache has at most 1,024 for each family, unless its
/// `gc_thresh3` says otherwise.
const MAX: usize = 1 << 14;

/// The most questions without an answer that are remembered of a peer: the newest. It may have a large prefix, and
/// somebody may scan it.
const UNANSWERED_MAX: usize = 16;

/// The answers that the stack was given, and its questions that got none.
#[derive(Debug, Default)]
pub(super) struct NeighbourCache {
    answers: HashMap<IpAddr, LinkAddress>,
    /// The same addresses in the order of the first question: the oldest is forgotten first.
    order: VecDeque<IpAddr>,
    /// By the link address of the peer that an answer would have named, the oldest question first. Those about
    /// addresses that nobody has any more are at [`LinkAddress::NOBODY`].
    unanswered: HashMap<LinkAddress, VecDeque<Unanswered>>,
}

/// A question that got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unanswered {
    pub(super) question: Question,
    /// Something else had told the stack that the peer has the address. The allowed-IPs do not say so.
    pub(super) is_told: bool,
    /// When the peer had last been heard.
    pub(super) heard: Option<Instant>,
}

impl NeighbourCache {
    /// The answers, in the order of the first question.
    pub(super) fn answers(&self) -> impl Iterator<Item = (IpAddr, LinkAddress)> {
        self.order.iter().filter_map(|address| Some((*address, *self.answers.get(address)?)))
    }

    /// Records a question that gets no answer, because the peer at this link address is not reachable.
    pub(super) fn note_unanswered(&mut self, location: LinkAddress, unanswered: Unanswered) {
        let questions = self.unanswered.entry(location).or_default();
        questions.retain(|other| other.question.target != unanswered.question.target);
        questions.push_back(unanswered);
        if questions.len() > UNANSWERED_MAX {
            questions.pop_front();
        }
    }

    /// The link addresses of peers that questions without an answer are about.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = LinkAddress> {
        self.unanswered.keys().copied().filter(|location| *location != LinkAddress::NOBODY)
    }

    pub(super) fn has_unanswered(&self, location: LinkAddress) -> bool {
        self.unanswered.contains_key(&location)
    }

    /// Takes the questions about a peer that `was_heard` since, which is told when it had been heard before.
    pub(super) fn take_unanswered(
        &mut self,
        location: LinkAddress,
        was_heard: impl Fn(Option<Instant>) -> bool,
    ) -> Vec<Unanswered> {
        let Some(questions) = self.unanswered.get_mut(&location) else { return Vec::new() };
        let (due, rest) = questions.drain(..).partition(|unanswered| was_heard(unanswered.heard));
        *questions = rest;
        if questions.is_empty() {
            self.unanswered.remove(&location);
        }
        due.into()
    }

    /// Moves the questions without an answer to where their targets are `now`. A peer that gets one there need not be
    /// heard first: the question was not about it.
    pub(super) fn move_unanswered(&mut self, now: impl Fn(IpAddr) -> Option<LinkAddress>) {
        for (before, questions) in mem::take(&mut self.unanswered) {
            for unanswered in questions {
                let owner = now(unanswered.question.target);
                let location = owner.unwrap_or(if unanswered.is_told { before } else { LinkAddress::NOBODY });
                let heard = unanswered.heard.filter(|_| location == before);
                self.note_unanswered(location, Unanswered { heard, ..unanswered });
            }
        }
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
    fn of_a_peer_whose_prefix_is_scanned_the_newest_questions_are_left() {
        let mut cache = NeighbourCache::default();
        let ask = |cache: &mut NeighbourCache, number, location| {
            let question = Question::of_interface(HERE, address(number));
            cache.note_unanswered(location, Unanswered { question, is_told: false, heard: None });
        };
        ask(&mut cache, 1, THERE);
        (0..1000).chain([990]).for_each(|number| ask(&mut cache, number, HERE));
        let targets = |cache: &mut NeighbourCache, location| {
            let taken = cache.take_unanswered(location, |_| true);
            taken.into_iter().map(|unanswered| unanswered.question.target).collect::<Vec<_>>()
        };
        let newest = (1000 - UNANSWERED_MAX..1000).filter(|number| *number != 990).chain([990]);
        assert_eq!(targets(&mut cache, HERE), newest.map(address).collect::<Vec<_>>());
        assert_eq!(targets(&mut cache, THERE), [address(1)]);
        assert_eq!(cache.unanswered().count(), 0);
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
