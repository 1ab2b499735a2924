//! The fields of the two Noise messages, in order and without gaps.

use wireloom_types::KEY_LEN;

use crate::message::{Initiation, Response, TAG_LEN, TIMESTAMP_LEN};

/// A public key in the clear.
pub(crate) type Ephemeral = [u8; KEY_LEN];
/// A public key, encrypted, and its tag.
pub(crate) type SealedStatic = [u8; KEY_LEN + TAG_LEN];
/// A timestamp, encrypted, and its tag.
pub(crate) type SealedTimestamp = [u8; TIMESTAMP_LEN + TAG_LEN];
/// The tag of an empty text.
pub(crate) type SealedNothing = [u8; TAG_LEN];

/// The fields of an initiation: e, s, timestamp.
pub(crate) fn of_initiation(
    message: &[u8; Initiation::NOISE_LEN],
) -> (&Ephemeral, &SealedStatic, &SealedTimestamp) {
    let (e, rest) = message.split_first_chunk().expect(FITS);
    let (s, timestamp) = rest.split_first_chunk().expect(FITS);
    (e, s, timestamp.try_into().expect(FITS))
}

/// Lays out an initiation.
pub(crate) fn initiation(
    e: &Ephemeral,
    s: &SealedStatic,
    timestamp: &SealedTimestamp,
) -> [u8; Initiation::NOISE_LEN] {
    let mut message = [0; Initiation::NOISE_LEN];
    message[..KEY_LEN].copy_from_slice(e);
    message[KEY_LEN..][..s.len()].copy_from_slice(s);
    message[KEY_LEN + s.len()..].copy_from_slice(timestamp);
    message
}

/// The fields of a response: e, nothing.
pub(crate) fn of_response(message: &[u8; Response::NOISE_LEN]) -> (&Ephemeral, &SealedNothing) {
    let (e, nothing) = message.split_first_chunk().expect(FITS);
    (e, nothing.try_into().expect(FITS))
}

/// Lays out a response.
pub(crate) fn response(e: &Ephemeral, nothing: &SealedNothing) -> [u8; Response::NOISE_LEN] {
    let mut message = [0; Response::NOISE_LEN];
    message[..KEY_LEN].copy_from_slice(e);
    message[KEY_LEN..].copy_from_slice(nothing);
    message
}

const FITS: &str = "a message is as long as its fields";
