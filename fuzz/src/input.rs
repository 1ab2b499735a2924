//! Takes an input apart.

/// What is left of an input.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next byte; 0 at the end.
    pub fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    /// The next bytes, with zeros for those behind the end.
    pub fn array<const LEN: usize>(&mut self) -> [u8; LEN] {
        let taken = self.up_to(LEN);
        let mut array = [0; LEN];
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// The next bytes, at most as many.
    pub fn up_to(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// The next piece, whose length in bytes comes first, as 16 bits in little endian; `None` at the end.
    pub fn piece(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let len = u16::from_le_bytes(self.array());
        Some(self.up_to(len.into()))
    }
}
