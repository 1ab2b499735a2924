//! The WireGuard protocol as a state machine without input or output.
//!
//! The crate opens no socket, reads no clock, draws no randomness and starts no thread. Datagrams, the time and a
//! random seed are arguments, and what is to be sent is polled. The protocol is that of the WireGuard paper
//! (Donenfeld, NDSS 2017). Where the paper leaves a choice, the crate does what the Linux kernel does.
//!
//! There are two parts, which share objects:
//!
//! * [`Device`] is the control part: handshakes, cookies, timers and the peers' configuration. One thread owns it.
//! * [`Transport`] is the data path: it seals and opens data messages. Any number of threads share it
//!   ([`std::sync::Arc`]). It takes no lock of the device and allocates nothing per packet.
//!
//! All lengths and MTUs are in bytes.
//!
//! # How to drive a device
//!
//! **Configure** it with [`Device::configure`], which lends a [`Configuration`] and publishes the routes when all
//! changes are made.
//!
//! **Handle** what happens:
//!
//! * *Packets are to be sent.* Look up their [`PeerPath`] in [`Transport::routes`], lay them out with
//!   [`message::frame`] and call [`Transport::reserve_or_stage`]. [`Reserved::seal`] seals them. Without a session,
//!   they wait for one.
//! * *A datagram arrived.* [`MessageKind::classify`] tells where it belongs. Give data messages to [`Transport::open`],
//!   read the payload with [`inner::Packet::parse`] and check its source address with [`Routes::permits`]. Give every
//!   other message to [`Device::handle_handshake`].
//! * *A round of datagrams was handled.* Say with [`Device::note_backlog`] whether more of them wait.
//! * *Sealing, staging or opening returned a [`Signal`].* Give it to [`Device::handle_signal`].
//! * *The moment that [`Device::poll_timeout`] returned has come.* Call [`Device::handle_timeout`].
//!
//! **Poll** afterwards: first [`Device::poll_transmit`] until it returns `None`, and [`Device::note_transmitted`] once
//! that is sent, both until the latter returns false; then [`Device::poll_timeout`]. Every `handle_*` call may have
//! changed their answers.
//!
//! A packet that is dropped has a [`DropReason`].
//!
//! ```
//! # use std::time::Duration;
//! use wireloom_proto::{ConfigureError, Device, Instant, MessageKind, Now, UnixTime, message};
//! use wireloom_types::PrivateKey;
//!
//! let now = Now {
//!     monotonic: Instant::from_origin(Duration::from_secs(5)),
//!     unix: UnixTime::from_epoch(Duration::from_secs(1_767_225_600)),
//! };
//! let mut device = Device::new(&[7; 32]); // draw the seed from the system's random generator
//! let peer = PrivateKey::from_bytes([2; 32]).public_key();
//! device.configure(now, |configuration| {
//!     configuration.set_private_key(Some(PrivateKey::from_bytes([1; 32])));
//!     configuration.add_peer(peer)?.set_endpoint(([192, 0, 2, 1], 51820).into());
//!     Ok::<(), ConfigureError>(())
//! })?;
//!
//! // There is no session yet: the packet has to wait, and the device begins a handshake.
//! let path = device.peer(&peer).expect("it was added").path.clone();
//! let mut room = [0x45; 64];
//! let message = message::frame(&mut room, 20, 1420);
//! let len = message.len();
//! let staged = device.transport().reserve_or_stage(now.monotonic, &path, [&*message].into_iter(), len);
//! device.handle_signal(now, staged.expect_err("no session").signal.expect("it is the first packet"));
//! device.handle_timeout(now);
//! let transmit = device.poll_transmit(now).expect("an initiation");
//! assert_eq!(MessageKind::classify(transmit.datagram), Ok(MessageKind::Initiation));
//! assert!(device.poll_timeout() > Some(now.monotonic), "when to send it again");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod device;
mod drop_reason;
mod endpoint;
pub mod handover;
mod handshake;
mod index_permutation;
pub mod inner;
mod limits;
pub mod message;
mod peer_id;
mod randomness;
mod sync;
#[cfg(test)]
mod test_vectors;
mod time;
mod transport;
mod wiped_stack;

pub use device::{Configuration, ConfigureError, Device, PeerConfiguration, PeerStatus, Transmit};
pub use drop_reason::DropReason;
pub use endpoint::{Endpoint, LocalAddress};
pub use message::MessageKind;
pub use peer_id::PeerId;
pub use time::{Instant, Now, UnixTime};
pub use transport::{
    Decrypted, Opened, Outcome, PATH_MTU_MIN, PeerPath, Reserved, Role, Routes, SealError, Sealed, Session,
    SessionKeys, Signal, Staged, Transport,
};
pub use wiped_stack::on_wiped_stack;
