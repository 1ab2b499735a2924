//! The protocol between whole devices in virtual time.
//!
//! | module | what it tests |
//! |---|---|
//! | `handshakes` | in both directions, simultaneous, with right and wrong keys, replayed, forged |
//! | `load` | cookies and rates, when too many handshakes arrive |
//! | `sessions` | renewal, loss, reordering, roaming, padding, expiry |
//! | `two_steps` | batches that are decrypted first and accepted later |
//! | `timers` | every timer, with its value from the paper |
//! | `configuration` | keys and peers that are added, changed and removed |
//! | `datagrams` | the parsers, with arbitrary bytes and damaged messages |

mod configuration;
mod datagrams;
mod handshakes;
mod load;
mod sessions;
mod timers;
mod two_steps;
mod world;
