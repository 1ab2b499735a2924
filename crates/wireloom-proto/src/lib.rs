//! The WireGuard protocol as a state machine, without input or output.
//!
//! Nothing here opens a socket, reads a clock, draws randomness or starts a thread: datagrams,
//! time and the random seed are arguments, and what is to be sent is polled. The protocol is that of
//! the WireGuard paper (Donenfeld, NDSS 2017) with the behaviour of the Linux kernel's implementation.
//!
//! There are two parts, which meet in shared objects:
//!
//! * [`Device`] is the control part: handshakes, cookies, timers, the peers' configuration. One
//!   thread owns it.
//! * [`Transport`] is the data part: sealing and opening of data messages. It is shared
//!   ([`std::sync::Arc`]), and no packet takes a lock of the device or allocates.
//!
//! # How to drive a device
//!
//! **Configure** with [`Device::configure`], which lends a [`Configuration`] and publishes the routes
//! when all changes are made.
//!
//! **Handle** what happens:
//!
//! * a packet to be sent: look up its [`PeerPath`] in [`Transport::routes`], lay it out with
//!   [`message::frame`] and call [`PeerPath::seal`]; when that is refused, give the packet to
//!   [`Device::handle_outgoing`], which keeps it until there is a session;
//! * a datagram received: [`MessageKind::classify`] tells where it belongs. Data goes to
//!   [`Transport::open`], and what comes out through [`inner::Packet::parse`] and
//!   [`Routes::permits`]; everything else goes to [`Device::handle_handshake`];
//! * that more datagrams wait than were taken, or none: [`Device::note_backlog`];
//! * a [`Signal`] that sealing or opening returned: [`Device::handle_signal`];
//! * the moment that [`Device::poll_timeout`] named has come: [`Device::handle_timeout`].
//!
//! **Poll** afterwards, in this order: [`Device::poll_transmit`] until it returns `None`, and then
//! [`Device::poll_timeout`]. Every `handle_*` call may have changed the answers.
//!
//! Packets that go no further are accounted for by a [`DropReason`].
//!
//! ```
//! # use std::time::Duration;
//! use wireloom_proto::{ConfigureError, Device, Instant, MessageKind, Now, UnixTime};
//! use wireloom_types::PrivateKey;
//!
//! let now = Now {
//!     monotonic: Instant::from_origin(Duration::from_secs(5)),
//!     unix: UnixTime::from_epoch(Duration::from_secs(1_767_225_600)),
//! };
//! let mut device = Device::new([7; 32]); // of the system's random generator, in earnest
//! let peer = PrivateKey::from_bytes([2; 32]).public_key();
//! device.configure(now, |configuration| {
//!     configuration.set_private_key(Some(PrivateKey::from_bytes([1; 32])));
//!     configuration.add_peer(peer)?.set_endpoint(([192, 0, 2, 1], 51820).into());
//!     Ok::<(), ConfigureError>(())
//! })?;
//!
//! // There is no session yet: the device keeps the packet and begins a handshake.
//! let peer = device.peer(&peer).expect("it was added").id;
//! device.handle_outgoing(now, peer, &[0x45; 20], 1420)?;
//! let transmit = device.poll_transmit(now).expect("an initiation");
//! assert_eq!(MessageKind::classify(transmit.datagram), Ok(MessageKind::Initiation));
//! assert!(device.poll_timeout() > Some(now.monotonic), "to repeat it");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod device;
mod drop_reason;
mod endpoint;
mod handshake;
pub mod inner;
mod limits;
pub mod message;
mod peer_id;
#[cfg(test)]
mod test_vectors;
mod time;
mod transport;

pub use device::{Configuration, ConfigureError, Device, PeerConfiguration, PeerStatus, Transmit};
pub use drop_reason::DropReason;
pub use endpoint::{Endpoint, LocalAddress};
pub use message::MessageKind;
pub use peer_id::PeerId;
pub use time::{Instant, Now, UnixTime};
pub use transport::{
    Decrypted, Opened, Outcome, PeerPath, Reserved, Role, Routes, SealError, Sealed, Session, SessionKeys,
    Signal, Transport,
};
