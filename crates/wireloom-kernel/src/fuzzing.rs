//! Doors for `fuzz/`: what reads the words of the kernel, of `nft`, of a device, and of our own files.

use std::net::IpAddr;

pub use crate::{
    linux::fuzzing as linux, nft::fuzzing as nft, rtnetlink::fuzzing as rtnetlink, state::fuzzing as state,
    wireguard::in_kernel::fuzzing as in_kernel, wireguard::userspace::fuzzing as userspace,
};

/// From where a reply to an echo request of ours is, and how long; `id` is the identifier of ours.
#[must_use]
pub fn echo_reply(received: &[u8], from: IpAddr, id: u16) -> Option<(IpAddr, u32)> {
    crate::echo::reply(received, from, id)
}
