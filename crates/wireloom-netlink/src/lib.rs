//! A small synchronous netlink client, for rtnetlink, generic netlink and netfilter alike.
//!
//! [`Client`] sends requests and waits for what the kernel answers: one object ([`Client::get`]), a whole
//! dump ([`Client::dump`]), one acknowledgement ([`Client::change`]) or many changes in few system calls
//! ([`Client::change_all`]). [`Subscription`] receives the notifications of multicast groups.
//!
//! Both leave the objects to the `netlink-packet-*` crates: any type that can be serialized into a netlink
//! payload and parsed from one is a [`Message`].

mod client;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod message;
mod subscription;

pub use self::{
    client::{Client, Request},
    error::{Error, Refusal},
    message::{Message, Messages, RawMessage},
    subscription::{Received, Subscription},
};

/// A netlink protocol (`NETLINK_…` of include/uapi/linux/netlink.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// rtnetlink: interfaces, addresses, neighbours, routes, rules.
    Route,
    /// The families of generic netlink.
    Generic,
    /// The subsystems of netfilter.
    Netfilter,
    /// Sockets of other protocols.
    SocketDiagnosis,
}

impl Protocol {
    fn number(self) -> isize {
        match self {
            Self::Route => netlink_sys::protocols::NETLINK_ROUTE,
            Self::Generic => netlink_sys::protocols::NETLINK_GENERIC,
            Self::Netfilter => netlink_sys::protocols::NETLINK_NETFILTER,
            Self::SocketDiagnosis => netlink_sys::protocols::NETLINK_SOCK_DIAG,
        }
    }
}
