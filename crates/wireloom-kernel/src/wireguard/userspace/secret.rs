//! Bytes that may hold keys.

use std::{fmt, ops::Deref};

use zeroize::Zeroizing;

/// The least room that is made at once: what a device with some 200 peers answers.
const ROOM: usize = 64 << 10;

/// Bytes that are wiped before their memory is freed, also when they move to a larger piece of it. A `Vec` that grows
/// by itself frees the piece before as it is, and `Zeroizing` never sees that one.
#[derive(Default)]
pub(super) struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    pub(super) fn append(&mut self, piece: &[u8]) {
        let needed = self.0.len() + piece.len();
        if needed > self.0.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(needed.next_power_of_two().max(ROOM)));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(piece);
    }
}

impl Deref for SecretBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Write for SecretBytes {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.append(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_when_it_grows_and_its_memory_moves_with_our_copy_only() {
        let mut bytes = SecretBytes::default();
        let mut expected = Vec::new();
        for round in 0..=255 {
            let piece = vec![round; usize::from(round) * 17];
            let (before, place) = (bytes.0.capacity(), bytes.0.as_ptr());
            let fits = bytes.len() + piece.len() <= before;
            bytes.append(&piece);
            expected.extend_from_slice(&piece);
            // `Vec` has not grown by itself.
            assert_eq!((bytes.0.capacity(), bytes.0.as_ptr()) == (before, place), fits, "{round}");
        }
        assert!(expected.len() > 4 * ROOM);
        assert_eq!(*bytes, *expected);
    }
}
