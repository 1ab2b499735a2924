//! The index table: who owns the receiver indices that address our sessions and handshakes.

use std::collections::VecDeque;

use crate::index_permutation::IndexPermutation;
use crate::peer_id::PeerId;
use crate::transport::SLOTS;

/// Allocates indices. Behind the permutation, the low bits of an index are its slot in the transport's session table.
/// The other bits are the slot's generation, so that a late message for a slot's former owner does not reach the new
/// one, until the slot has been reused 1,024 times.
#[derive(Debug)]
pub(crate) struct IndexTable {
    permutation: IndexPermutation,
    slots: Vec<Slot>,
    /// The free slots, in the order in which they became free.
    free: VecDeque<u32>,
}

#[derive(Debug)]
struct Slot {
    /// How often the slot was allocated before, as far as an index has bits for it.
    generation: u32,
    owner: Option<PeerId>,
}

const GENERATIONS: u32 = 1 << (u32::BITS - SLOTS.ilog2());

impl IndexTable {
    /// The permutation must be that of the session table.
    pub(crate) fn new(permutation: IndexPermutation) -> Self {
        Self { permutation, slots: Vec::new(), free: VecDeque::new() }
    }

    /// The permutation.
    pub(crate) fn permutation(&self) -> IndexPermutation {
        self.permutation
    }

    /// The generation of each slot, to be handed over.
    pub(crate) fn generations(&self) -> Vec<u32> {
        self.slots.iter().map(|slot| slot.generation).collect()
    }

    /// The table that was handed over: these are the slots' generations and the indices in use. One that the slots do
    /// not have is left out.
    pub(crate) fn from_state(
        permutation: IndexPermutation,
        generations: &[u32],
        owned: impl IntoIterator<Item = (u32, PeerId)>,
    ) -> Self {
        let slot = |generation: &u32| Slot { generation: generation % GENERATIONS, owner: None };
        let mut slots: Vec<Slot> = generations.iter().take(SLOTS as usize).map(slot).collect();
        for (index, owner) in owned {
            let number = permutation.number(index);
            if let Some(slot) = slots.get_mut((number % SLOTS) as usize)
                && slot.generation == number / SLOTS
            {
                slot.owner = Some(owner);
            }
        }
        let is_free = |(number, slot): (usize, &Slot)| slot.owner.is_none().then_some(number as u32);
        let free = slots.iter().enumerate().filter_map(is_free).collect();
        Self { permutation, slots, free }
    }

    /// Allocates an index for a peer. A peer has at most four, and there are enough slots for that.
    pub(crate) fn allocate(&mut self, owner: PeerId) -> u32 {
        let number = self.free.pop_front().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, owner: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[number as usize];
        slot.owner = Some(owner);
        self.permutation.index(slot.generation * SLOTS + number)
    }

    /// Frees an index. Does nothing when it is free already.
    pub(crate) fn release(&mut self, index: u32) {
        let number = self.permutation.number(index);
        if let Some(slot) = self.slots.get_mut((number % SLOTS) as usize)
            && slot.generation == number / SLOTS
            && slot.owner.take().is_some()
        {
            slot.generation = (slot.generation + 1) % GENERATIONS;
            self.free.push_back(number % SLOTS);
        }
    }

    /// The owner of an index, if it is allocated.
    pub(crate) fn owner(&self, index: u32) -> Option<PeerId> {
        let number = self.permutation.number(index);
        let slot = self.slots.get((number % SLOTS) as usize)?;
        slot.owner.filter(|_| slot.generation == number / SLOTS)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::randomness::Randomness;

    fn table() -> IndexTable {
        IndexTable::new(IndexPermutation::draw(&mut Randomness::new(&[1; 32])))
    }

    #[test]
    fn indices_are_unique_and_freed_slots_are_reused() {
        let mut table = table();
        let mut taken: Vec<u32> = (0..1000).map(|number| table.allocate(PeerId(number))).collect();
        assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), 1000);
        for (number, index) in taken.iter().enumerate() {
            assert_eq!(table.owner(*index), Some(PeerId(number as u64)));
        }
        let gone: Vec<u32> = taken.drain(..500).collect();
        gone.iter().for_each(|index| table.release(*index));
        assert!(gone.iter().all(|index| table.owner(*index).is_none()));
        for _ in 0..500 {
            taken.push(table.allocate(PeerId(7)));
        }
        assert_eq!(table.slots.len(), 1000);
        assert!(taken.iter().all(|index| table.owner(*index).is_some()));
        // Freeing an index again does not free the slot's new owner.
        gone.iter().for_each(|index| table.release(*index));
        assert!(taken.iter().all(|index| table.owner(*index).is_some()));
    }

    #[test]
    fn an_index_comes_back_after_all_generations_of_its_slot() {
        let mut table = table();
        let mut seen = BTreeSet::new();
        for _ in 0..GENERATIONS {
            let index = table.allocate(PeerId(1));
            assert!(seen.insert(index), "a late message would reach the new owner");
            table.release(index);
        }
        assert!(seen.contains(&table.allocate(PeerId(1))));
    }
}
