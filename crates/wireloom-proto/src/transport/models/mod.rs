//! Model checks of the data path: what no interleaving of its threads may do. See [`crate::sync::model`].

mod endpoint;
mod news;
mod sessions;
mod timers;

use std::iter;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use wireloom_types::PublicKey;

use crate::endpoint::Endpoint;
use crate::message::DATA_OVERHEAD;
use crate::peer_id::PeerId;
use crate::time::Instant;
use crate::transport::peer_path::PeerPath;
use crate::transport::role::Role;
use crate::transport::session::{Session, SessionKeys};

fn at(seconds: u64) -> Instant {
    Instant::from_origin(Duration::from_secs(seconds))
}

fn endpoint(host: u8) -> Endpoint {
    SocketAddr::from(([192, 0, 2, host], 51820)).into()
}

fn path() -> Arc<PeerPath> {
    let path = PeerPath::new(PeerId(1), PublicKey::from_bytes([7; 32]));
    path.set_endpoint(Some(endpoint(1)));
    Arc::new(path)
}

fn keys(sending: u8, receiving: u8) -> SessionKeys {
    SessionKeys { sending: [sending; 32].into(), receiving: [receiving; 32].into() }
}

/// Our end of the session in which we have this receiver index, born at 1 s.
fn ours(index: u32, role: Role) -> Arc<Session> {
    Arc::new(Session::new(&keys(1, 2), role, index, index + 100, at(1)))
}

/// The peer's end of it.
fn theirs(index: u32) -> Session {
    Session::new(&keys(2, 1), Role::Initiator, index + 100, index, at(1))
}

/// A message with a packet, which the peer sends in that session.
fn message(from: &Session) -> Vec<u8> {
    let mut message = vec![0; DATA_OVERHEAD + 16];
    from.seal(at(1), iter::once(&mut message[..])).expect("the session is new");
    message
}
