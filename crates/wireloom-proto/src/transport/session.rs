//! A transport session: one pair of keys, and what it takes to use each nonce once.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use wireloom_types::limits::{
    REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME, REKEY_TIMEOUT,
};
use zeroize::Zeroizing;

use crate::drop_reason::DropReason;
use crate::limits::LAST_MINUTE_AFTER_TIME;
use crate::message::{DATA_HEADER_LEN, DATA_OVERHEAD, DataHeader, TAG_LEN};
use crate::time::Instant;
use crate::transport::aead::TransportKey;
use crate::transport::replay_window::ReplayWindow;

/// Which side of the handshake we were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We sent the initiation: we renew the session.
    Initiator,
    /// We sent the response: we use the session after the first message that comes through it.
    Responder,
}

/// Messages whose counters are marked as seen under one lock.
const MARKED_AT_ONCE: usize = 16;

/// The keys that a handshake yields. Wiped on drop.
pub struct SessionKeys {
    /// Encrypts what we send.
    pub sending: Zeroizing<[u8; 32]>,
    /// Decrypts what we receive.
    pub receiving: Zeroizing<[u8; 32]>,
}

/// A message's counter, and its payload, or why it has none.
pub(crate) type Verdict<P> = (u64, Result<P, DropReason>);

/// Consecutive counters of a session, taken once and used once, or never.
#[derive(Debug)]
pub(crate) struct Counters(Range<u64>);

/// Why nothing can be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// There is no session, or it is too old or has sent too many messages, or waits for its first
    /// message from the peer. A handshake mends it:
    /// [`Device::handle_outgoing`](crate::Device::handle_outgoing) takes the packet.
    #[error("there is no session to send with")]
    NoSession,
    /// The peer's endpoint is unknown, until it is configured or the peer writes to us.
    #[error("the peer's endpoint is unknown")]
    NoEndpoint,
}

/// The keys of both directions between two indices, shared by everyone who seals and opens.
///
/// Sealing takes counters from an atomic. The replay window is behind a lock of its own, held only to
/// mark counters, after decryption: a few nanoseconds each, against the hundreds that each message spends
/// in the cipher, so receivers of one session hardly ever meet there. A window of atomic words would
/// have to clear words that others are marking when it moves on.
pub struct Session {
    local_index: u32,
    remote_index: u32,
    role: Role,
    born: Instant,
    sending: TransportKey,
    receiving: TransportKey,
    next_counter: AtomicU64,
    window: Mutex<ReplayWindow>,
    /// For a responder: whether a message came through, which proves that the peer has the keys.
    confirmed: AtomicBool,
    /// Sending does not ask for renewal before this, in nanoseconds of the monotonic clock.
    rekey_quiet_until: AtomicU64,
}

impl Session {
    /// A session that begins now.
    #[must_use]
    pub fn new(keys: &SessionKeys, role: Role, local_index: u32, remote_index: u32, born: Instant) -> Self {
        Self {
            local_index,
            remote_index,
            role,
            born,
            sending: TransportKey::new(&keys.sending),
            receiving: TransportKey::new(&keys.receiving),
            next_counter: AtomicU64::new(0),
            window: Mutex::default(),
            confirmed: AtomicBool::new(role == Role::Initiator),
            rekey_quiet_until: AtomicU64::new(0),
        }
    }

    /// The index that the peer addresses us with.
    #[must_use]
    pub fn local_index(&self) -> u32 {
        self.local_index
    }

    /// The index that we address the peer with.
    #[must_use]
    pub fn remote_index(&self) -> u32 {
        self.remote_index
    }

    /// Which side of the handshake we were.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// When the handshake was done.
    #[must_use]
    pub fn born(&self) -> Instant {
        self.born
    }

    /// Whether the session is past [`REJECT_AFTER_TIME`].
    #[must_use]
    pub fn is_expired(&self, now: Instant) -> bool {
        now.since(self.born) >= REJECT_AFTER_TIME
    }

    /// Seals a train of messages, each laid out as header, padded payload and room for the tag,
    /// under consecutive counters. Either all of them are sealed or none.
    ///
    /// # Errors
    /// [`SealError::NoSession`] when the session is too old or its counters do not suffice.
    ///
    /// # Panics
    /// When a message is shorter than [`DATA_OVERHEAD`].
    pub fn seal<'m>(
        &self,
        now: Instant,
        messages: impl ExactSizeIterator<Item = &'m mut [u8]>,
    ) -> Result<(), SealError> {
        let counters = self.reserve(now, messages.len())?;
        self.seal_reserved(counters, messages);
        Ok(())
    }

    /// Takes counters for so many messages, which [`Self::seal_reserved`] may seal later.
    pub(crate) fn reserve(&self, now: Instant, messages: usize) -> Result<Counters, SealError> {
        if self.is_expired(now) {
            return Err(SealError::NoSession);
        }
        let first = self.take_counters(messages as u64)?;
        Ok(Counters(first..first + messages as u64))
    }

    /// Seals messages, no more than there are counters, as [`Self::seal`] does.
    pub(crate) fn seal_reserved<'m>(
        &self,
        counters: Counters,
        messages: impl ExactSizeIterator<Item = &'m mut [u8]>,
    ) {
        assert!(counters.0.end - counters.0.start >= messages.len() as u64, "more messages than counters");
        let train = counters.0.zip(messages).map(|(counter, message)| {
            assert!(message.len() >= DATA_OVERHEAD, "no room for header and tag");
            DataHeader { receiver: self.remote_index, counter }.write(message);
            (counter, message)
        });
        self.sending.seal(train);
    }

    /// Opens a train of messages that carry this session's local index, each in place, and tells the
    /// outcome of each, in order: the padded payload, empty for a keepalive, or the reason.
    ///
    /// # Panics
    /// When a message is shorter than [`DATA_OVERHEAD`]: classify datagrams first.
    pub fn open<'m>(
        &self,
        now: Instant,
        messages: impl Iterator<Item = &'m mut [u8]>,
        mut outcome: impl FnMut(Result<&'m mut [u8], DropReason>),
    ) {
        if self.is_expired(now) {
            messages.for_each(|_| outcome(Err(DropReason::SessionExpired)));
            return;
        }
        let mut train = messages.map(|message| (counter_of(message), message));
        // Opened some at a time, and then marked with the lock taken once.
        loop {
            let mut opened = [const { (0, Err(DropReason::BadCiphertext)) }; MARKED_AT_ONCE];
            let mut count = 0;
            self.receiving.open(train.by_ref().take(MARKED_AT_ONCE), |counter, payload| {
                opened[count] = (counter, payload.ok_or(DropReason::BadCiphertext));
                count += 1;
            });
            if count == 0 {
                return;
            }
            self.mark_seen(&mut opened[..count]);
            opened.into_iter().take(count).for_each(|(_, payload)| outcome(payload));
        }
    }

    /// The first step of [`Self::open`], on any thread: decrypts each message in place and notes which are
    /// authentic. Nothing of the session changes, so none is accepted yet.
    pub(crate) fn decrypt<'m>(
        &self,
        messages: impl Iterator<Item = &'m mut [u8]>,
        verdicts: &mut Vec<Verdict<()>>,
    ) {
        let train = messages.map(|message| (counter_of(message), message));
        self.receiving.open(train, |counter, payload| {
            verdicts.push((counter, payload.map(drop).ok_or(DropReason::BadCiphertext)));
        });
    }

    /// The second step of [`Self::open`]: accepts those of a decrypted train that are authentic and new.
    pub(crate) fn accept<'m>(
        &self,
        now: Instant,
        verdicts: &mut [Verdict<()>],
        messages: impl Iterator<Item = &'m mut [u8]>,
        mut outcome: impl FnMut(Result<&'m mut [u8], DropReason>),
    ) {
        if self.is_expired(now) {
            messages.for_each(|_| outcome(Err(DropReason::SessionExpired)));
            return;
        }
        self.mark_seen(verdicts);
        for ((_, verdict), message) in verdicts.iter().zip(messages) {
            outcome(verdict.map(|()| payload_of(message)));
        }
    }

    /// Whether sending should ask for renewal now: at most once each [`REKEY_TIMEOUT`].
    pub(crate) fn asks_for_rekey(&self, now: Instant) -> bool {
        let old = self.role == Role::Initiator && now.since(self.born) >= REKEY_AFTER_TIME;
        if !old && self.next_counter.load(Ordering::Relaxed) <= REKEY_AFTER_MESSAGES {
            return false;
        }
        let quiet_until = self.rekey_quiet_until.load(Ordering::Relaxed);
        let next = (now + REKEY_TIMEOUT).as_nanos();
        quiet_until <= now.as_nanos()
            && self
                .rekey_quiet_until
                .compare_exchange(quiet_until, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// When the session should be renewed even if it only receives: the initiator's task.
    pub(crate) fn last_minute(&self) -> Option<Instant> {
        (self.role == Role::Initiator).then(|| self.born + LAST_MINUTE_AFTER_TIME)
    }

    /// Notes that an authentic message came through; true for the first one of a responder's session.
    pub(crate) fn confirm(&self) -> bool {
        !self.confirmed.load(Ordering::Relaxed) && !self.confirmed.swap(true, Ordering::Relaxed)
    }

    /// Whether the peer is known to have the keys, so that it can be sent to.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// Takes `n` consecutive counters and returns the first. A compare-and-swap, not an addition:
    /// attempts beyond the limit must not bring the counter round to zero.
    fn take_counters(&self, n: u64) -> Result<u64, SealError> {
        self.next_counter
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                next.checked_add(n).filter(|after| *after <= REJECT_AFTER_MESSAGES)
            })
            .map_err(|_| SealError::NoSession)
    }

    /// Marks the counters of authentic messages as seen, and refuses those that were seen before.
    fn mark_seen<P>(&self, opened: &mut [Verdict<P>]) {
        // A window whose holder panicked is still a window: every state of it is a valid one.
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        for (counter, payload) in opened.iter_mut().filter(|(_, payload)| payload.is_ok()) {
            if *counter >= REJECT_AFTER_MESSAGES {
                *payload = Err(DropReason::SessionExpired);
            } else if !window.accept(*counter) {
                *payload = Err(DropReason::Replayed);
            }
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("local_index", &self.local_index)
            .field("remote_index", &self.remote_index)
            .field("role", &self.role)
            .field("born", &self.born)
            .finish_non_exhaustive()
    }
}

fn counter_of(message: &[u8]) -> u64 {
    let counter = message[8..].first_chunk().expect("a data message has a header");
    u64::from_le_bytes(*counter)
}

/// The part of a data message that is encrypted, without the tag.
fn payload_of(message: &mut [u8]) -> &mut [u8] {
    let end = message.len() - TAG_LEN;
    &mut message[DATA_HEADER_LEN..end]
}

#[cfg(test)]
mod tests;
