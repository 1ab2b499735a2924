//! The messages of a hand-over, which another release may have written: one is an error or a message, and what it says
//! outlives being written again. Kinds that are not known, and whatever a later release adds to a message, are ignored.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wireloom_engine::fuzzing::handover::rewrite_message;

/// Magic, kind and length: see `envelope.rs`.
const HEADER: usize = 12;
/// The bytes that a reader has room for.
const LONGEST: usize = 4096;

/// A datagram of this kind.
fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u32;
    [&b"WLHO"[..], &[kind, 0, 0, 0], &len.to_le_bytes(), payload].concat()
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, payload)) = bytes.split_first() else { return };
    // Whatever the bytes are, and with a header that is right.
    let _ = rewrite_message(bytes);
    let outcome = rewrite_message(&message(*kind, payload));
    let is_known = (1..=9).contains(kind);
    match outcome {
        Err(_) => assert!(is_known, "any payload is right for a kind that is not known"),
        // Descriptors may have roles that are not known.
        Ok(None) => assert!(!is_known || *kind == 3, "this release can write kind {kind}"),
        Ok(Some(written)) => {
            assert!(written.len() <= LONGEST && written[4] == *kind);
            assert_eq!(rewrite_message(&written), Ok(Some(written.clone())));
            for end in 0..written.len() {
                assert!(rewrite_message(&written[..end]).is_err(), "{end} bytes of it are a message");
            }
            let longer = message(*kind, &[&written[HEADER..], payload].concat());
            assert_eq!(rewrite_message(&longer), Ok(Some(written)), "a later release has lengthened it");
        }
    }
});
