//! What threads share: atomics, mutexes and pointers that are swapped.
//!
//! They are std's and arc-swap's. In this crate's unit tests they are [`model`]'s, which do the same, but which loom, a
//! model checker, takes over within [`model::check`]. So the code that is checked is the code that runs.
//!
//! `Arc` and `OnceLock` are std's always. What is behind an `Arc` is checked; its own counting is not.

#[cfg(test)]
pub(crate) mod model;

#[cfg(test)]
pub(crate) use self::model::{ArcSwap, ArcSwapOption, Guard, Mutex, MutexGuard, atomic};
#[cfg(not(test))]
pub(crate) use {
    arc_swap::{ArcSwap, ArcSwapOption, Guard},
    std::sync::{Mutex, MutexGuard, atomic},
};
