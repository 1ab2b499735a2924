//! What the crew does: it seals batches, and decrypts them.

use crate::{
    crew::{Errand, Task},
    departure::Departure,
    reception::Reception,
};

/// A batch of either direction, on its way to a helper.
pub(crate) enum Cipher {
    Seal(Task<Departure>),
    Decrypt(Task<Reception>),
}

impl Errand for Cipher {
    fn run(self) {
        match self {
            Self::Seal(task) => task.run(),
            Self::Decrypt(task) => task.run(),
        }
    }
}

impl From<Task<Departure>> for Cipher {
    fn from(task: Task<Departure>) -> Self {
        Self::Seal(task)
    }
}

impl From<Task<Reception>> for Cipher {
    fn from(task: Task<Reception>) -> Self {
        Self::Decrypt(task)
    }
}
