//! The handshake: its cryptography, and what protects a responder from too many of them.

pub(crate) mod cookie;
pub(crate) mod index_table;
pub(crate) mod load;
pub(crate) mod noise;
pub(crate) mod rate_limiter;
pub(crate) mod timestamp;
