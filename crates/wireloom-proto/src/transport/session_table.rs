//! The session table: sessions by receiver index.

use std::fmt;
use std::sync::{Arc, OnceLock};

use super::peer_session::PeerSession;
use crate::index_permutation::IndexPermutation;
use crate::sync::{ArcSwapOption, Guard};

/// Sessions by local index. The low bits of an index, behind the permutation, are its slot, so a lookup is two loads.
/// Slots come in blocks; a block is allocated when the first index in it is used, and then stays.
pub(super) struct SessionTable {
    permutation: IndexPermutation,
    blocks: Box<[OnceLock<Box<Block>>]>,
}

type Block = [ArcSwapOption<PeerSession>; SLOTS_IN_BLOCK];

/// Few in unit tests: loom keeps a history for each of them.
const SLOTS_IN_BLOCK: usize = if cfg!(test) { 1 << 4 } else { 1 << 10 };
const BLOCKS: usize = 1 << 12;
/// The number of slots: enough for three sessions and a pending handshake of each of
/// [`MAX_PEERS`](wireloom_types::limits::MAX_PEERS) peers.
pub(crate) const SLOTS: u32 = (SLOTS_IN_BLOCK * BLOCKS) as u32;

impl SessionTable {
    pub(super) fn new(permutation: IndexPermutation) -> Self {
        Self { permutation, blocks: (0..BLOCKS).map(|_| OnceLock::new()).collect() }
    }

    fn slot(&self, index: u32) -> usize {
        (self.permutation.number(index) % SLOTS) as usize
    }

    /// The content of an index's slot, which may be a session with another index.
    pub(super) fn load(&self, index: u32) -> Guard<Option<Arc<PeerSession>>> {
        let slot = self.slot(index);
        match self.blocks[slot / SLOTS_IN_BLOCK].get() {
            Some(block) => block[slot % SLOTS_IN_BLOCK].load(),
            None => Guard::from_inner(None),
        }
    }

    pub(super) fn set(&self, index: u32, session: Option<PeerSession>) {
        let slot = self.slot(index);
        let block = self.blocks[slot / SLOTS_IN_BLOCK]
            .get_or_init(|| Box::new(std::array::from_fn(|_| ArcSwapOption::empty())));
        block[slot % SLOTS_IN_BLOCK].store(session.map(Arc::new));
    }
}

impl fmt::Debug for SessionTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionTable").finish_non_exhaustive()
    }
}
