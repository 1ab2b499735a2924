//! The index table: who owns the receiver indices that address our sessions and handshakes.

use std::collections::VecDeque;

use crate::peer_id::PeerId;
use crate::randomness::Randomness;
use crate::transport::SLOTS;

/// Allocates indices. The low bits of an index are its slot in the transport's session table. The other bits are
/// random, so that a late message for a slot's former owner does not reach the new one.
#[derive(Debug, Default)]
pub(crate) struct IndexTable {
    slots: Vec<Option<(u32, PeerId)>>,
    /// The free slots, in the order in which they became free.
    free: VecDeque<u32>,
}

impl IndexTable {
    /// Allocates an index for a peer. A peer has at most four, and there are enough slots for that.
    pub(crate) fn allocate(&mut self, owner: PeerId, randomness: &mut Randomness) -> u32 {
        let slot = self.free.pop_front().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        let index = (randomness.draw_u64() as u32 / SLOTS * SLOTS) | slot;
        self.slots[slot as usize] = Some((index, owner));
        index
    }

    /// Frees an index. Does nothing when it is free already.
    pub(crate) fn release(&mut self, index: u32) {
        let slot = index % SLOTS;
        if self.owner(index).is_some() {
            self.slots[slot as usize] = None;
            self.free.push_back(slot);
        }
    }

    /// The owner of an index, if it is allocated.
    pub(crate) fn owner(&self, index: u32) -> Option<PeerId> {
        let (taken, owner) = (*self.slots.get((index % SLOTS) as usize)?)?;
        (taken == index).then_some(owner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn indices_are_unique_and_freed_slots_are_reused() {
        let mut randomness = Randomness::new(&[1; 32]);
        let mut table = IndexTable::default();
        let mut taken: Vec<u32> =
            (0..1000).map(|number| table.allocate(PeerId(number), &mut randomness)).collect();
        let slots: BTreeSet<u32> = taken.iter().map(|index| index % SLOTS).collect();
        assert_eq!(slots.len(), 1000);
        for (number, index) in taken.iter().enumerate() {
            assert_eq!(table.owner(*index), Some(PeerId(number as u64)));
        }
        let gone: Vec<u32> = taken.drain(..500).collect();
        gone.iter().for_each(|index| table.release(*index));
        assert!(gone.iter().all(|index| table.owner(*index).is_none()));
        for _ in 0..500 {
            taken.push(table.allocate(PeerId(7), &mut randomness));
        }
        assert_eq!(table.slots.len(), 1000);
        assert!(taken.iter().all(|index| table.owner(*index).is_some()));
        // Freeing an index again does not free the slot's new owner.
        gone.iter().filter(|index| !taken.contains(index)).for_each(|index| table.release(*index));
        assert!(taken.iter().all(|index| table.owner(*index).is_some()));
    }
}
