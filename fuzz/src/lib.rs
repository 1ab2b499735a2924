//! What several targets use.

pub mod input;
pub mod nodes;
pub mod packets;
pub mod tunnel;
