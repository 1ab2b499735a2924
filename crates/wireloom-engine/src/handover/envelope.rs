//! The messages of a hand-over as bytes. This layout never changes, so that any two releases understand each other:
//! what changes is the state that is sent beside it, which has a version.
//!
//! A message is one datagram. All numbers are little-endian.
//!
//! ```text
//!  0       4      5          8              12
//!  │ WLHO  │ kind │ 0  0  0  │ payload's len │ payload …
//!
//!  kind              payload
//!  1  TakerHello     oldest u32, newest u32      versions of the state that the taker reads
//!  2  GiverHello     version u32                 0: there is none that both know
//!  3  Descriptors    count u32, roles            a role: kind u8, version of IP u8 (0, 4, 6), queue u16
//!  4  Copy           len u64                     of the state, in bytes
//!  5  Prepared
//!  6  Changes        len u64, stopped at u64     nanoseconds of CLOCK_BOOTTIME
//!  7  Ready
//!  8  Commit
//!  9  Refused        len u32, reason             UTF-8, at most 200 bytes
//! ```
//!
//! A later release may lengthen a payload, add kinds of messages and add roles. An earlier one ignores what it does not
//! know, and closes descriptors without a known role. That is safe, because only *Commit* gives anything away, and its
//! kind is known to all. What must not be ignored, such as a new kind of descriptor that packets come by, belongs to a
//! new version of the state, which the giver does not choose unless the taker knows it.

use std::{fmt, ops::RangeInclusive};

/// The most descriptors that the kernel takes with one message (`SCM_MAX_FD` in include/net/scm.h).
pub(crate) const MAX_DESCRIPTORS: usize = 253;
/// The longest datagram in bytes. This release's longest has 1,028; a later one may lengthen its messages.
pub(crate) const MAX_MESSAGE: usize = 4096;
/// The longest reason in bytes.
const MAX_REASON: usize = 200;

const MAGIC: [u8; 4] = *b"WLHO";
const HEADER: usize = 12;

/// The versions of the state that one side knows, `oldest` to `newest`. The first version is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Versions {
    pub(crate) oldest: u32,
    pub(crate) newest: u32,
}

impl Versions {
    /// The newest version that both know, or 0.
    pub(crate) fn common(self, other: Self) -> u32 {
        let newest = self.newest.min(other.newest);
        if newest >= self.oldest.max(other.oldest) { newest } else { 0 }
    }

    /// Whether this version may follow: one that is known, or 0, no state at all.
    pub(crate) fn allow(self, version: u32) -> bool {
        version == 0 || RangeInclusive::new(self.oldest, self.newest).contains(&version)
    }
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    /// A queue of the TUN or TAP interface.
    TunQueue(u16),
    /// The UDP socket of a queue, for IPv4 or, with `v6`, for IPv6.
    Udp { queue: u16, v6: bool },
    /// The listening control socket.
    Control,
    /// The listening hand-over socket.
    Handover,
    /// One of a later release.
    Unknown,
}

/// Why a taker gets nothing: a short text for its log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reason(String);

impl Reason {
    /// Keeps the first 200 bytes, and replaces what could confuse a terminal.
    pub(crate) fn new(text: &str) -> Self {
        let mut kept = String::new();
        for character in text.chars().map(|character| if character.is_control() { ' ' } else { character }) {
            if kept.len() + character.len_utf8() > MAX_REASON {
                break;
            }
            kept.push(character);
        }
        Self(kept)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A message of a hand-over. [`super::giver`] and [`super::taker`] say who sends it when.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Message {
    /// The versions of the state that the taker reads.
    TakerHello(Versions),
    /// The version of the state that follows. With 0, only descriptors do, and sessions are made anew.
    GiverHello { version: u32 },
    /// What the descriptors are that come with it, in their order; at most [`MAX_DESCRIPTORS`].
    Descriptors(Vec<Role>),
    /// The state, while packets flow. Memory with `len` bytes comes with it, or none with version 0.
    Copy { len: u64 },
    /// The taker has built everything from the copy.
    Prepared,
    /// What has changed since the copy, as [`Self::Copy`]. The giver has stopped at `stopped_at`, in nanoseconds of
    /// `CLOCK_BOOTTIME`.
    Changes { len: u64, stopped_at: u64 },
    /// The taker has applied the changes.
    Ready,
    /// The interface is the taker's.
    Commit,
    /// The taker gets nothing. The giver serves on.
    Refused(Reason),
    /// A kind of a later release.
    Unknown { kind: u8 },
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// They do not begin like one.
    #[error("the other side does not speak the hand-over's protocol")]
    NoMagic,
    /// The datagram is not as long as it says, or a field is missing.
    #[error("a message of kind {0} has the wrong length")]
    Length(u8),
}

impl Message {
    /// The message as a datagram of at most [`MAX_MESSAGE`] bytes.
    ///
    /// # Panics
    /// With more than [`MAX_DESCRIPTORS`] roles, or for a kind that this release does not know.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        match self {
            Self::TakerHello(Versions { oldest, newest }) => {
                payload.extend(oldest.to_le_bytes());
                payload.extend(newest.to_le_bytes());
            }
            Self::GiverHello { version } => payload.extend(version.to_le_bytes()),
            Self::Descriptors(roles) => {
                assert!(roles.len() <= MAX_DESCRIPTORS, "too many descriptors for one message");
                payload.extend((roles.len() as u32).to_le_bytes());
                payload.extend(roles.iter().flat_map(|role| role.encode()));
            }
            Self::Copy { len } => payload.extend(len.to_le_bytes()),
            Self::Changes { len, stopped_at } => {
                payload.extend(len.to_le_bytes());
                payload.extend(stopped_at.to_le_bytes());
            }
            Self::Refused(Reason(reason)) => {
                payload.extend((reason.len() as u32).to_le_bytes());
                payload.extend(reason.as_bytes());
            }
            Self::Prepared | Self::Ready | Self::Commit => {}
            Self::Unknown { .. } => unreachable!("nobody sends what this release does not know"),
        }
        let mut datagram = Vec::with_capacity(HEADER + payload.len());
        datagram.extend(MAGIC);
        datagram.extend([self.kind(), 0, 0, 0]);
        datagram.extend((payload.len() as u32).to_le_bytes());
        datagram.extend(payload);
        datagram
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// [`DecodeError`]: the connection is of no more use.
    pub(crate) fn decode(datagram: &[u8]) -> Result<Self, DecodeError> {
        let mut header = Reader(datagram);
        if header.array() != Some(MAGIC) {
            return Err(DecodeError::NoMagic);
        }
        let [kind, ..] = header.array::<4>().ok_or(DecodeError::Length(0))?;
        let wrong = DecodeError::Length(kind);
        let len = header.u32().ok_or(wrong)?;
        if header.0.len() as u64 != u64::from(len) {
            return Err(wrong);
        }
        Self::decode_payload(kind, header).ok_or(wrong)
    }

    /// `None` when a field is missing. What follows the last field is ignored.
    fn decode_payload(kind: u8, mut payload: Reader<'_>) -> Option<Self> {
        Some(match kind {
            1 => Self::TakerHello(Versions { oldest: payload.u32()?, newest: payload.u32()? }),
            2 => Self::GiverHello { version: payload.u32()? },
            3 => {
                let count = payload.u32()? as usize;
                if count > MAX_DESCRIPTORS {
                    return None;
                }
                let roles = (0..count).map(|_| payload.array().map(Role::decode));
                Self::Descriptors(roles.collect::<Option<_>>()?)
            }
            4 => Self::Copy { len: payload.u64()? },
            5 => Self::Prepared,
            6 => Self::Changes { len: payload.u64()?, stopped_at: payload.u64()? },
            7 => Self::Ready,
            8 => Self::Commit,
            9 => {
                let len = payload.u32()? as usize;
                Self::Refused(Reason::new(&String::from_utf8_lossy(payload.0.get(..len)?)))
            }
            kind => Self::Unknown { kind },
        })
    }

    fn kind(&self) -> u8 {
        match self {
            Self::TakerHello(_) => 1,
            Self::GiverHello { .. } => 2,
            Self::Descriptors(_) => 3,
            Self::Copy { .. } => 4,
            Self::Prepared => 5,
            Self::Changes { .. } => 6,
            Self::Ready => 7,
            Self::Commit => 8,
            Self::Refused(_) => 9,
            Self::Unknown { kind } => *kind,
        }
    }
}

impl Role {
    /// The name of such a descriptor while a supervisor keeps it for the next process, which may be of another release.
    pub(crate) fn stored_name(self) -> String {
        match self {
            Self::TunQueue(queue) => format!("tun-{queue}"),
            Self::Udp { queue, v6 } => format!("udp{}-{queue}", if v6 { 6 } else { 4 }),
            Self::Control => "control".to_owned(),
            Self::Handover => "handover".to_owned(),
            Self::Unknown => unreachable!("nobody stores what this release does not know"),
        }
    }

    fn encode(self) -> [u8; 4] {
        let (kind, ip, queue) = match self {
            Self::TunQueue(queue) => (1, 0, queue),
            Self::Udp { queue, v6: false } => (2, 4, queue),
            Self::Udp { queue, v6: true } => (2, 6, queue),
            Self::Control => (3, 0, 0),
            Self::Handover => (4, 0, 0),
            Self::Unknown => unreachable!("nobody sends what this release does not know"),
        };
        let [low, high] = u16::to_le_bytes(queue);
        [kind, ip, low, high]
    }

    fn decode([kind, ip, low, high]: [u8; 4]) -> Self {
        let queue = u16::from_le_bytes([low, high]);
        match (kind, ip) {
            (1, 0) => Self::TunQueue(queue),
            (2, 4) => Self::Udp { queue, v6: false },
            (2, 6) => Self::Udp { queue, v6: true },
            (3, 0) => Self::Control,
            (4, 0) => Self::Handover,
            _ => Self::Unknown,
        }
    }
}

/// Takes fields from the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bytes of each message. They must never change: an earlier release reads them.
    #[test]
    fn messages_have_the_bytes_that_every_release_has() {
        let recorded: [(Message, &[u8]); 9] = [
            (
                Message::TakerHello(Versions { oldest: 1, newest: 0x0203 }),
                b"WLHO\x01\0\0\0\x08\0\0\0\x01\0\0\0\x03\x02\0\0",
            ),
            (Message::GiverHello { version: 2 }, b"WLHO\x02\0\0\0\x04\0\0\0\x02\0\0\0"),
            (
                Message::Descriptors(vec![
                    Role::TunQueue(0x0102),
                    Role::Udp { queue: 1, v6: false },
                    Role::Udp { queue: 2, v6: true },
                    Role::Control,
                    Role::Handover,
                ]),
                b"WLHO\x03\0\0\0\x18\0\0\0\x05\0\0\0\x01\0\x02\x01\x02\x04\x01\0\x02\x06\x02\0\x03\0\0\0\x04\0\0\0",
            ),
            (Message::Copy { len: 0x0102 }, b"WLHO\x04\0\0\0\x08\0\0\0\x02\x01\0\0\0\0\0\0"),
            (Message::Prepared, b"WLHO\x05\0\0\0\0\0\0\0"),
            (
                Message::Changes { len: 3, stopped_at: 0x0807_0605_0403_0201 },
                b"WLHO\x06\0\0\0\x10\0\0\0\x03\0\0\0\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08",
            ),
            (Message::Ready, b"WLHO\x07\0\0\0\0\0\0\0"),
            (Message::Commit, b"WLHO\x08\0\0\0\0\0\0\0"),
            (Message::Refused(Reason::new("busy")), b"WLHO\x09\0\0\0\x08\0\0\0\x04\0\0\0busy"),
        ];
        for (message, bytes) in recorded {
            assert_eq!(message.encode(), bytes, "{message:?}");
            assert_eq!(Message::decode(bytes), Ok(message));
        }
    }

    #[test]
    fn what_a_later_release_adds_is_ignored() {
        let longer = b"WLHO\x02\0\0\0\x06\0\0\0\x02\0\0\0\xff\xff";
        assert_eq!(Message::decode(longer), Ok(Message::GiverHello { version: 2 }));
        assert_eq!(Message::decode(b"WLHO\x2a\0\0\0\x02\0\0\0\x01\x02"), Ok(Message::Unknown { kind: 42 }));
        let role = b"WLHO\x03\0\0\0\x0c\0\0\0\x02\0\0\0\x2a\0\x01\0\x03\0\0\0";
        assert_eq!(Message::decode(role), Ok(Message::Descriptors(vec![Role::Unknown, Role::Control])));
    }

    #[test]
    fn the_version_is_the_newest_that_both_know() {
        let versions = |oldest, newest| Versions { oldest, newest };
        assert_eq!(versions(1, 2).common(versions(2, 3)), 2);
        assert_eq!(versions(2, 3).common(versions(1, 2)), 2);
        assert_eq!(versions(1, 3).common(versions(2, 2)), 2);
        assert_eq!(versions(1, 2).common(versions(3, 4)), 0);
        assert_eq!(versions(5, 2).common(versions(1, 9)), 0, "an empty range");
    }

    fn role() -> impl Strategy<Value = Role> {
        prop_oneof![
            any::<u16>().prop_map(Role::TunQueue),
            any::<(u16, bool)>().prop_map(|(queue, v6)| Role::Udp { queue, v6 }),
            Just(Role::Control),
            Just(Role::Handover),
        ]
    }

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            any::<(u32, u32)>().prop_map(|(oldest, newest)| Message::TakerHello(Versions { oldest, newest })),
            any::<u32>().prop_map(|version| Message::GiverHello { version }),
            proptest::collection::vec(role(), 0..=MAX_DESCRIPTORS).prop_map(Message::Descriptors),
            any::<u64>().prop_map(|len| Message::Copy { len }),
            Just(Message::Prepared),
            any::<(u64, u64)>().prop_map(|(len, stopped_at)| Message::Changes { len, stopped_at }),
            Just(Message::Ready),
            Just(Message::Commit),
            ".{0,250}".prop_map(|text| Message::Refused(Reason::new(&text))),
        ]
    }

    proptest! {
        #[test]
        fn messages_arrive_as_they_were_sent(message in message()) {
            let datagram = message.encode();
            prop_assert!(datagram.len() <= MAX_MESSAGE);
            prop_assert_eq!(Message::decode(&datagram), Ok(message));
        }

        #[test]
        fn a_message_cut_short_is_an_error(message in message(), cut in 1_usize..2000) {
            let datagram = message.encode();
            let cut = datagram.len().saturating_sub(cut);
            prop_assert!(Message::decode(&datagram[..cut]).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(
            kind in any::<u8>(),
            len in 0_u32..40,
            payload in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut datagram = [MAGIC, [kind, 0, 0, 0], len.to_le_bytes()].concat();
            datagram.extend(payload);
            let _ = Message::decode(&datagram);
            let _ = Message::decode(&datagram[1..]);
        }
    }
}
