//! The protocol between whole devices in virtual time.
//!
//! | module | what it tests |
//! |---|---|
//! | `handshakes` | in both directions, simultaneous, with right and wrong keys, replayed, forged |
//! | `handover` | a device that is replaced by a successor, at any moment |
//! | `load` | cookies and rates, when too many handshakes arrive |
//! | `sessions` | renewal, loss, reordering, roaming, padding, expiry |
//! | `staging` | packets that wait for a session |
//! | `timestamps` | restarts, and peers that are added again, while the wall clock is set back |
//! | `two_steps` | batches that are decrypted first and accepted later |
//! | `timers` | every timer, with its value from the paper |
//! | `configuration` | keys and peers that are added, changed and removed |
//! | `datagrams` | the parsers, with arbitrary bytes and damaged messages |

mod configuration;
mod datagrams;
mod handover;
mod handshakes;
mod load;
mod sessions;
mod staging;
mod timers;
mod timestamps;
mod two_steps;
mod world;
