//! The protocol between whole devices, under virtual time.
//!
//! | module | what it shows |
//! |---|---|
//! | `handshakes` | both ways, at once, with keys right and wrong, replayed, forged, under load |
//! | `sessions` | renewal over hours, loss, reordering, end of life in time and messages |
//! | `two_steps` | batches decrypted first and accepted later |
//! | `upkeep` | every timer, with its number from the paper |
//! | `configuration` | keys and peers that come, change and go; many of them |
//! | `datagrams` | every parser on arbitrary bytes and every truncation |

mod configuration;
mod datagrams;
mod handshakes;
mod sessions;
mod two_steps;
mod upkeep;
mod world;
