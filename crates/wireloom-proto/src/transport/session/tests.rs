//! The limits of a session, with one thread and with many.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::message::DataHeader;

const BORN: Instant = Instant::from_nanos(1_000_000_000);

fn keys(sending: u8, receiving: u8) -> SessionKeys {
    SessionKeys { sending: [sending; 32].into(), receiving: [receiving; 32].into() }
}

fn pair() -> (Session, Session) {
    (
        Session::new(&keys(1, 2), Role::Initiator, 10, 20, BORN),
        Session::new(&keys(2, 1), Role::Responder, 20, 10, BORN),
    )
}

fn seal(session: &Session, payload: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut message = vec![0; payload.len() + DATA_OVERHEAD];
    message[16..16 + payload.len()].copy_from_slice(payload);
    session.seal(BORN, std::iter::once(&mut message[..]))?;
    Ok(message)
}

fn open(session: &Session, mut message: Vec<u8>) -> Result<Vec<u8>, DropReason> {
    let mut opened = Err(DropReason::BadLength);
    session.open(BORN, std::iter::once(&mut message[..]), |outcome| {
        opened = outcome.map(|payload| payload.to_vec());
    });
    opened
}

#[test]
fn the_last_counter_is_2_to_the_64_minus_2_to_the_13_minus_2() {
    let (alice, bob) = pair();
    assert_eq!(REJECT_AFTER_MESSAGES, u64::MAX - 8192);
    alice.next_counter.store(REJECT_AFTER_MESSAGES - 2, Ordering::Relaxed);
    // A batch with one message too many is refused whole.
    let mut batch = [[0; 48]; 3];
    let refused = alice.seal(BORN, batch.iter_mut().map(|message| &mut message[..]));
    assert_eq!(refused, Err(SealError::NoSession));
    assert_eq!(batch, [[0; 48]; 3], "untouched");
    for counter in [REJECT_AFTER_MESSAGES - 2, REJECT_AFTER_MESSAGES - 1] {
        let message = seal(&alice, b"0123456789abcdef").unwrap();
        assert_eq!(DataHeader::parse(&message).unwrap().counter, counter);
        assert_eq!(open(&bob, message).unwrap(), b"0123456789abcdef");
    }
    for _ in 0..20_000 {
        assert_eq!(seal(&alice, b""), Err(SealError::NoSession), "the counter does not wrap around");
    }
}

#[test]
fn many_threads_never_share_a_counter_or_exceed_the_limit() {
    let (alice, _) = pair();
    alice.next_counter.store(REJECT_AFTER_MESSAGES - 1000, Ordering::Relaxed);
    let counters: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let sealed = std::iter::repeat_with(|| seal(&alice, b"")).take(500);
                    sealed
                        .filter_map(Result::ok)
                        .map(|message| DataHeader::parse(&message).unwrap().counter)
                        .collect::<Vec<u64>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let distinct: BTreeSet<u64> = counters.iter().copied().collect();
    assert_eq!(counters.len(), 1000);
    assert_eq!(distinct.len(), 1000, "no nonce is used twice");
    assert_eq!(distinct.last(), Some(&(REJECT_AFTER_MESSAGES - 1)));
}

#[test]
fn many_threads_open_each_message_once() {
    let (alice, bob) = pair();
    let messages: Vec<Vec<u8>> = (0..2000).map(|_| seal(&alice, &[7; 32]).unwrap()).collect();
    let opened: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let outcomes = messages.iter().map(|message| open(&bob, message.clone()));
                    outcomes.filter(|outcome| outcome.as_deref() == Ok(&[7; 32])).count()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(opened, 2000);
}

#[test]
fn a_message_with_a_counter_beyond_the_limit_is_dropped() {
    let (alice, bob) = pair();
    alice.next_counter.store(REJECT_AFTER_MESSAGES - 1, Ordering::Relaxed);
    let message = seal(&alice, b"").unwrap();
    assert_eq!(open(&bob, message), Ok(Vec::new()));
    // Only a peer that breaks the rules sends this message. It is authentic.
    let mut message = [0; DATA_OVERHEAD];
    DataHeader { receiver: 20, counter: REJECT_AFTER_MESSAGES }.write(&mut message);
    alice.sending.seal(std::iter::once((REJECT_AFTER_MESSAGES, &mut message[..])));
    assert_eq!(open(&bob, message.to_vec()), Err(DropReason::SessionExpired));
}

#[test]
fn both_sides_ask_for_renewal_after_2_to_the_60_messages() {
    for session in [pair().0, pair().1] {
        session.next_counter.store(REKEY_AFTER_MESSAGES, Ordering::Relaxed);
        assert!(!session.asks_for_rekey(BORN));
        seal(&session, b"").unwrap();
        assert!(session.asks_for_rekey(BORN));
        assert!(!session.asks_for_rekey(BORN), "once");
        assert!(!session.asks_for_rekey(BORN + (REKEY_TIMEOUT - Duration::from_nanos(1))));
        assert!(session.asks_for_rekey(BORN + REKEY_TIMEOUT), "again, when there was no renewal");
    }
}

#[test]
fn only_the_initiator_asks_for_renewal_after_120_seconds() {
    let (alice, bob) = pair();
    let old = BORN + Duration::from_secs(120);
    assert!(!alice.asks_for_rekey(BORN + Duration::from_nanos(119_999_999_999)));
    assert!(alice.asks_for_rekey(old));
    assert!(!bob.asks_for_rekey(old));
}

#[test]
fn a_responders_session_is_confirmed_once() {
    let (alice, bob) = pair();
    assert!(alice.is_confirmed());
    assert!(!alice.confirm());
    assert!(!bob.is_confirmed());
    assert!(bob.confirm());
    assert!(!bob.confirm());
    assert!(bob.is_confirmed());
}

#[test]
fn a_session_of_180_seconds_neither_seals_nor_opens() {
    let (alice, bob) = pair();
    let mut message = seal(&alice, b"").unwrap();
    let end = BORN + Duration::from_secs(180);
    let mut outcome = None;
    bob.open(end, std::iter::once(&mut message[..]), |opened| outcome = Some(opened.is_ok()));
    assert_eq!(outcome, Some(false));
    let sealed = alice.seal(end, std::iter::once(&mut message[..]));
    assert_eq!(sealed, Err(SealError::NoSession));
}
