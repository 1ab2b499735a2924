//! The control socket: the cross-platform configuration protocol of WireGuard
//! (<https://www.wireguard.com/xplatform/>), which `wg` speaks with every userspace implementation.

mod inbox;
pub(crate) mod reply;
mod request;
mod server;

pub(crate) use inbox::Inbox;
pub(crate) use reply::{Errno, Reply};

pub use request::{
    AllowedIpChange, MAX_LINE, Parser, PeerChange, Request, RequestError, RequestErrorKind, Set,
};
pub use server::OpenControlError;
pub(crate) use server::Server;
pub use wireloom_types::interface::control_socket;
