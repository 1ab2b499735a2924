//! The userspace interface by itself, without an agent.

mod configuration;
mod data_path;
mod ecn;
pub(crate) mod handover;
mod lifecycle;
mod netns;
mod packets;
mod path_mtu;
mod secrets;
mod source_address;
mod supervisor;
mod threads;
mod timestamps;
