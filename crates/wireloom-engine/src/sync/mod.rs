//! What threads share: channels, events, and the threads themselves.
//!
//! They are crossbeam's, the kernel's and std's. In this crate's unit tests they are [`model`]'s, which do the same,
//! but which loom, a model checker, takes over within [`model::check`].

#[cfg(test)]
pub(crate) mod model;

#[cfg(test)]
pub(crate) use self::model::{channel, event, thread};
#[cfg(not(test))]
pub(crate) use {crossbeam_channel as channel, nix::sys::eventfd as event, std::thread};
