//! A peer that moves is not lost.

use std::net::IpAddr;
use std::sync::Arc;

use super::{at, endpoint, path};
use crate::endpoint::{Endpoint, LocalAddress};
use crate::sync::model::{Bound, check, spawn};

/// The device forgets our own address, because nothing came back, while a message arrives from somewhere else.
#[test]
fn a_peer_that_moves_while_our_address_is_forgotten_is_found() {
    check(Bound::Exhaustive, || {
        let path = path();
        let local = LocalAddress { address: IpAddr::from([192, 0, 2, 100]), interface: 2 };
        path.set_endpoint(Some(Endpoint { local: Some(local), ..endpoint(1) }));
        let worker = {
            let path = Arc::clone(&path);
            spawn(move || path.note_received(at(2), endpoint(2), 32, false))
        };
        path.forget_local_address();
        worker.join().unwrap();
        assert_eq!(path.endpoint().map(|endpoint| endpoint.remote), Some(endpoint(2).remote));
    });
}
