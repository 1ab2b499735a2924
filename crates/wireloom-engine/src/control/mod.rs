//! The control socket: WireGuard's cross-platform configuration protocol (<https://www.wireguard.com/xplatform/>),
//! which `wg` uses with every userspace implementation.

mod clients;
mod gate;
mod inbox;
pub(crate) mod reply;
mod request;
mod server;

pub use request::{
    AllowedIpChange, MAX_LINE, Parser, PeerChange, Request, RequestError, RequestErrorKind, Set,
};
pub use server::OpenControlError;

pub(crate) use inbox::Inbox;
pub(crate) use reply::{Errno, Reply};
pub(crate) use server::Server;
