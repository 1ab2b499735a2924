//! How a device process, the *giver*, hands its interface over to the next one, the *taker*, while packets flow.
//!
//! ```text
//!  taker                                   giver
//!    ──── Hello: versions of the state ─────►        serves
//!    ◄─── Hello: the version that follows ───
//!    ◄─── Descriptors, with their roles ─────
//!    ◄─── Copy of the state ─────────────────
//!    ──── Prepared ─────────────────────────►        stops
//!    ◄─── Changes since the copy ────────────        packets wait in the kernel
//!    ──── Ready ────────────────────────────►
//!    ◄─── Commit ────────────────────────────        has ended for good
//!  serves
//! ```
//!
//! * [`envelope`]: the messages as bytes, in a layout that never changes;
//! * [`giver`] and [`taker`]: who may do what when, as state machines without I/O. `model` proves them;
//! * [`state`]: what is transferred;
//! * [`socket`] and [`memory`]: how the messages, the descriptors and the state get there;
//! * [`holders`] and [`peer`]: who has the descriptors, to kill a process that hangs.
//!
//! docs/architecture/handover-faults.md says what becomes of a hand-over when one side dies or hangs.

pub(crate) mod envelope;
pub(crate) mod giver;
pub(crate) mod holders;
pub(crate) mod memory;
#[cfg(test)]
mod model;
pub(crate) mod peer;
pub(crate) mod socket;
pub(crate) mod state;
pub(crate) mod taker;
