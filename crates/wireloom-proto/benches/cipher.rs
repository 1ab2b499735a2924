//! The cost of a data message in a session, on one core: header, counter, cipher and replay window.
//!
//! `cargo bench -p wireloom-proto --bench cipher`

use divan::Bencher;
use divan::counter::BytesCount;
use wireloom_proto::message::DATA_OVERHEAD;
use wireloom_proto::{Instant, Role, Session, SessionKeys};

/// A small packet, and the longest one with the usual MTU, in bytes.
const PAYLOADS: [usize; 2] = [64, 1420];
/// The number of messages that one call seals.
const BATCH: usize = 32;

const NOW: Instant = Instant::from_nanos(0);

fn main() {
    divan::main();
}

fn session(sending: u8, receiving: u8, role: Role) -> Session {
    let keys = SessionKeys { sending: [sending; 32].into(), receiving: [receiving; 32].into() };
    Session::new(&keys, role, 1, 1, NOW)
}

#[divan::bench(args = PAYLOADS)]
fn seal(bencher: Bencher<'_, '_>, payload: usize) {
    let session = session(1, 2, Role::Initiator);
    let mut message = vec![0; payload + DATA_OVERHEAD];
    bencher
        .counter(BytesCount::new(payload))
        .bench_local(|| session.seal(NOW, std::iter::once(divan::black_box(&mut message[..]))));
}

#[divan::bench(args = PAYLOADS)]
fn seal_batch(bencher: Bencher<'_, '_>, payload: usize) {
    let session = session(1, 2, Role::Initiator);
    let mut batch = vec![0; BATCH * (payload + DATA_OVERHEAD)];
    bencher.counter(BytesCount::new(BATCH * payload)).bench_local(|| {
        session.seal(NOW, divan::black_box(&mut batch).chunks_exact_mut(payload + DATA_OVERHEAD))
    });
}

#[divan::bench(args = PAYLOADS)]
fn open(bencher: Bencher<'_, '_>, payload: usize) {
    let (sender, receiver) = (session(1, 2, Role::Initiator), session(2, 1, Role::Responder));
    bencher
        .counter(BytesCount::new(payload))
        .with_inputs(|| {
            let mut message = vec![0; payload + DATA_OVERHEAD];
            sender.seal(NOW, std::iter::once(&mut message[..])).expect("a young session");
            message
        })
        .bench_local_refs(|message| {
            receiver.open(NOW, std::iter::once(&mut message[..]), |opened| {
                divan::black_box(opened.expect("authentic and new"));
            });
        });
}
