//! The handshake: its messages' cryptography, and what protects a responder from a flood of them.
//!
//! | file | holds |
//! |---|---|
//! | `noise/` | the Noise handshake IKpsk2 |
//! | `timestamp` | the timestamps of initiations, which refuse replays |
//! | `cookie` | MAC1, MAC2 and cookies |
//! | `load`, `rate_limiter` | when cookies are demanded, and how much one source may ask for then |
//! | `index_table` | the indices by which peers address sessions and handshakes |

pub(crate) mod cookie;
pub(crate) mod index_table;
pub(crate) mod load;
pub(crate) mod noise;
pub(crate) mod rate_limiter;
pub(crate) mod timestamp;
