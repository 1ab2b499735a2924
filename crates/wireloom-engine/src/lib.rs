//! wireloom-engine

pub use wireloom_proto::{KeyError, PresharedKey, PrivateKey, PublicKey};
