//! What threads share: channels, and the threads themselves.
//!
//! They are crossbeam's and std's. In this crate's unit tests they are [`model`]'s, which do the same, but which loom,
//! a model checker, takes over within [`model::check`].

#[cfg(test)]
pub(crate) mod model;

#[cfg(test)]
pub(crate) use self::model::{channel, thread};
#[cfg(not(test))]
pub(crate) use {crossbeam_channel as channel, std::thread};
