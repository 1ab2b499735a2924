//! No counter is used twice, and no message is accepted twice.

use std::collections::BTreeSet;
use std::iter;
use std::sync::Arc;

use super::{at, endpoint, message, ours, path, theirs};
use crate::index_permutation::IndexPermutation;
use crate::message::{DATA_OVERHEAD, DataHeader};
use crate::randomness::Randomness;
use crate::sync::model::{Bound, check, spawn};
use crate::transport::peer_path::PeerPath;
use crate::transport::role::Role;
use crate::transport::{Decrypted, Outcome, Transport};

/// A receiver index and a counter: what may be used once.
type Nonce = (u32, u64);

fn transport() -> Arc<Transport> {
    Arc::new(Transport::new(IndexPermutation::draw(&mut Randomness::new(&[1; 32]))))
}

/// Seals a batch of two keepalives, unless there is no session, and returns the nonces.
fn seal(path: &PeerPath) -> Vec<Nonce> {
    let mut batch = [[0; DATA_OVERHEAD]; 2];
    match path.seal(at(2), batch.iter_mut().map(|message| &mut message[..])) {
        Ok(_) => batch.iter().map(|message| nonce(message)).collect(),
        Err(_) => Vec::new(),
    }
}

/// Does so in two steps, as with a helper.
fn reserve_and_seal(path: &PeerPath) -> Vec<Nonce> {
    let Ok(reserved) = path.reserve(at(2), 2, 2 * DATA_OVERHEAD) else { return Vec::new() };
    let mut batch = [[0; DATA_OVERHEAD]; 2];
    reserved.seal(batch.iter_mut().map(|message| &mut message[..]));
    batch.iter().map(|message| nonce(message)).collect()
}

fn nonce(message: &[u8]) -> Nonce {
    let header = DataHeader::parse(message).expect("a data message");
    (header.receiver, header.counter)
}

/// Two workers seal while the device renews the session and then removes the peer.
#[test]
fn no_nonce_is_used_twice_while_a_session_is_renewed_and_removed() {
    check(Bound::Preemptions(2), || {
        let path = path();
        path.set_session(Some(ours(20, Role::Initiator)));
        let first = Arc::clone(&path);
        let second = Arc::clone(&path);
        let workers = [spawn(move || seal(&first)), spawn(move || reserve_and_seal(&second))];
        path.set_session(Some(ours(21, Role::Initiator)));
        path.set_session(None);
        let nonces: Vec<Nonce> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        let distinct: BTreeSet<Nonce> = nonces.iter().copied().collect();
        assert_eq!(distinct.len(), nonces.len(), "{nonces:?}");
        assert!(seal(&path).is_empty(), "the session is gone");
    });
}

/// One datagram arrives twice, at two workers, while the device renews the session.
#[test]
fn a_message_is_accepted_once_while_its_session_is_renewed() {
    check(Bound::Exhaustive, || {
        let (transport, path) = (transport(), path());
        transport.insert(ours(20, Role::Responder), Arc::clone(&path));
        let datagram = message(&theirs(20));
        let worker = || {
            let (transport, mut copy) = (Arc::clone(&transport), datagram.clone());
            spawn(move || transport.open(at(2), endpoint(1), &mut copy).is_ok())
        };
        let workers = [worker(), worker()];
        transport.insert(ours(21, Role::Responder), Arc::clone(&path));
        let accepted = workers.map(|worker| worker.join().unwrap());
        assert!(accepted[0] != accepted[1], "{accepted:?}");
        assert_eq!(path.received_bytes(), datagram.len() as u64);
    });
}

/// A batch was decrypted by a helper. While the session ends, and another one begins with its index, the message is
/// accepted from the batch and arrives once more at another worker.
#[test]
fn a_message_is_accepted_once_in_two_steps_while_its_session_ends() {
    check(Bound::Preemptions(2), || {
        let (transport, path) = (transport(), path());
        transport.insert(ours(20, Role::Responder), Arc::clone(&path));
        let datagram = message(&theirs(20));
        let in_two_steps = {
            let (transport, mut copy) = (Arc::clone(&transport), datagram.clone());
            spawn(move || {
                let mut decrypted = Decrypted::default();
                transport.decrypt_batch(iter::once((endpoint(1), &mut copy[..])), &mut decrypted);
                let mut accepted = 0;
                let batch = iter::once((endpoint(1), &mut copy[..]));
                transport.accept_batch(at(2), batch, &mut decrypted, |outcome| {
                    accepted += u64::from(matches!(outcome, Outcome::Opened { .. }));
                });
                accepted
            })
        };
        let at_once = {
            let (transport, mut copy) = (Arc::clone(&transport), datagram.clone());
            spawn(move || u64::from(transport.open(at(2), endpoint(1), &mut copy).is_ok()))
        };
        transport.remove(20);
        let accepted = in_two_steps.join().unwrap() + at_once.join().unwrap();
        assert!(accepted <= 1);
        assert_eq!(path.received_bytes(), accepted * datagram.len() as u64);
        assert!(transport.open(at(2), endpoint(1), &mut datagram.clone()).is_err(), "the session is gone");
    });
}
