//! The userspace interface by itself, without an agent.

mod configuration;
mod data_path;
mod lifecycle;
mod packets;
mod path_mtu;
mod threads;
