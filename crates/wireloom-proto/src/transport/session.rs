//! A session: the keys of both directions, with the limits on their use.
//!
//! Each nonce is used once, and each message is accepted once.

use std::fmt;
use std::ops::Range;
use std::sync::PoisonError;

use wireloom_types::limits::{
    REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME, REKEY_TIMEOUT,
};
use zeroize::Zeroizing;

use crate::drop_reason::DropReason;
use crate::handover::SessionState;
use crate::limits::LAST_MINUTE_AFTER_TIME;
use crate::message::{DATA_HEADER_LEN, DATA_OVERHEAD, DataHeader, TAG_LEN};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::time::Instant;
use crate::transport::aead::TransportKey;
use crate::transport::replay_window::ReplayWindow;
use crate::transport::role::Role;

/// The number of messages whose counters are marked as received under one lock.
const MARKED_AT_ONCE: usize = 16;

/// The keys that a handshake yields. They are wiped on drop.
#[derive(Clone)]
pub struct SessionKeys {
    /// Encrypts what we send.
    pub sending: Zeroizing<[u8; 32]>,
    /// Decrypts what we receive.
    pub receiving: Zeroizing<[u8; 32]>,
}

/// What decrypting a message gave: its counter, and its payload or the reason why it is dropped.
pub(crate) type Opening<P> = (u64, Result<P, DropReason>);

/// Consecutive counters of a session. Nobody else gets them, and they are used once or never.
#[derive(Debug)]
pub(crate) struct Counters(Range<u64>);

/// Why no message can be sealed for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// There is no session that may send: none at all, one that is too old or has sent too many messages, or one that
    /// waits for its first message from the peer. See
    /// [`Transport::reserve_or_stage`](crate::Transport::reserve_or_stage).
    #[error("there is no session with the peer")]
    NoSession,
    /// The peer's endpoint is unknown. It becomes known when it is configured or when the peer sends to us.
    #[error("the peer's endpoint is unknown; configure it, or let the peer send first")]
    NoEndpoint,
}

/// A session between two indices, with the keys of both directions. Any number of threads seal and open with it.
///
/// Sealing takes counters from an atomic. The replay window has a lock, which is held only to mark counters after
/// decryption. That takes a few nanoseconds per message, and the cipher takes hundreds, so threads hardly ever wait for
/// each other there. A lock-free window of atomic words would have to clear words while other threads mark them.
pub struct Session {
    local_index: u32,
    remote_index: u32,
    role: Role,
    born: Instant,
    /// The keys themselves, for whoever the session is handed over to. They lie on the heap, where they stay until they
    /// are wiped.
    keys: Box<SessionKeys>,
    sending: TransportKey,
    receiving: TransportKey,
    next_counter: AtomicU64,
    window: Mutex<ReplayWindow>,
    /// Whether the peer has proved that it has the keys: always for an initiator, since the first message for a
    /// responder.
    confirmed: AtomicBool,
    /// When sending may ask for renewal again, in nanoseconds of the monotonic clock.
    rekey_quiet_until: AtomicU64,
}

impl Session {
    /// A session whose handshake ended at `born`. The peer addresses us by `local_index`, and we address it by
    /// `remote_index`.
    #[must_use]
    pub fn new(keys: &SessionKeys, role: Role, local_index: u32, remote_index: u32, born: Instant) -> Self {
        Self {
            local_index,
            remote_index,
            role,
            born,
            keys: Box::new(keys.clone()),
            sending: TransportKey::new(&keys.sending),
            receiving: TransportKey::new(&keys.receiving),
            next_counter: AtomicU64::new(0),
            window: Mutex::default(),
            confirmed: AtomicBool::new(role == Role::Initiator),
            rekey_quiet_until: AtomicU64::new(0),
        }
    }

    /// The session, to be handed over. It is exact once nobody seals or opens any more.
    pub(crate) fn state(&self) -> SessionState {
        SessionState {
            local_index: self.local_index,
            remote_index: self.remote_index,
            role: self.role,
            born: self.born,
            sending: self.keys.sending.clone(),
            receiving: self.keys.receiving.clone(),
            next_counter: self.next_counter.load(Ordering::Relaxed),
            window: self.window.lock().unwrap_or_else(PoisonError::into_inner).state(),
            confirmed: self.confirmed.load(Ordering::Relaxed),
            rekey_quiet_until: self.rekey_quiet_until.load(Ordering::Relaxed),
        }
    }

    /// The session that was handed over. `None` when its replay window is damaged.
    pub(crate) fn from_state(state: &SessionState) -> Option<Self> {
        let keys = SessionKeys { sending: state.sending.clone(), receiving: state.receiving.clone() };
        let window = ReplayWindow::from_state(&state.window)?;
        Some(Self {
            next_counter: AtomicU64::new(state.next_counter),
            window: Mutex::new(window),
            confirmed: AtomicBool::new(state.confirmed),
            rekey_quiet_until: AtomicU64::new(state.rekey_quiet_until),
            ..Self::new(&keys, state.role, state.local_index, state.remote_index, state.born)
        })
    }

    /// The receiver index of the peer's messages.
    pub(crate) fn local_index(&self) -> u32 {
        self.local_index
    }

    /// The receiver index of our messages.
    pub(crate) fn remote_index(&self) -> u32 {
        self.remote_index
    }

    /// When the handshake ended.
    pub(crate) fn born(&self) -> Instant {
        self.born
    }

    /// Whether the session has reached [`REJECT_AFTER_TIME`], after which it neither sends nor receives.
    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        now.since(self.born) >= REJECT_AFTER_TIME
    }

    /// Seals a batch of messages, each laid out as by [`message::frame`](crate::message::frame), with consecutive
    /// counters. Either all of them are sealed or none.
    ///
    /// # Errors
    /// [`SealError::NoSession`] when the session is too old or has too few counters left.
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

    /// Takes counters for that many messages, which [`Self::seal_reserved`] may use later.
    pub(crate) fn reserve(&self, now: Instant, messages: usize) -> Result<Counters, SealError> {
        if self.is_expired(now) {
            return Err(SealError::NoSession);
        }
        let first = self.take_counters(messages as u64)?;
        Ok(Counters(first..first + messages as u64))
    }

    /// Seals messages as [`Self::seal`] does. Panics when there are more of them than counters.
    pub(crate) fn seal_reserved<'m>(
        &self,
        counters: Counters,
        messages: impl ExactSizeIterator<Item = &'m mut [u8]>,
    ) {
        assert!(counters.0.end - counters.0.start >= messages.len() as u64, "more messages than counters");
        let batch = counters.0.zip(messages).map(|(counter, message)| {
            assert!(message.len() >= DATA_OVERHEAD, "no room for header and tag");
            DataHeader { receiver: self.remote_index, counter }.write(message);
            (counter, message)
        });
        self.sending.seal(batch);
    }

    /// Opens a batch of data messages for this session's local index, each in place. Reports each in order: the padded
    /// payload, empty for a keepalive, or the reason why it is dropped.
    ///
    /// # Panics
    /// When a message is shorter than [`DATA_OVERHEAD`]. [`MessageKind::classify`](crate::MessageKind::classify)
    /// refuses such datagrams.
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
        let mut batch = messages.map(|message| (counter_of(message), message));
        // Some are decrypted at a time, and then marked with the lock taken once.
        loop {
            let mut opened = [const { (0, Err(DropReason::BadCiphertext)) }; MARKED_AT_ONCE];
            let mut count = 0;
            self.receiving.open(batch.by_ref().take(MARKED_AT_ONCE), |counter, payload| {
                opened[count] = (counter, payload.ok_or(DropReason::BadCiphertext));
                count += 1;
            });
            if count == 0 {
                return;
            }
            self.mark_received(&mut opened[..count]);
            opened.into_iter().take(count).for_each(|(_, payload)| outcome(payload));
        }
    }

    /// The first step of [`Self::open`], on any thread: decrypts each message in place and appends its outcome. The
    /// session does not change, so no message is accepted yet.
    pub(crate) fn decrypt<'m>(
        &self,
        messages: impl Iterator<Item = &'m mut [u8]>,
        openings: &mut Vec<Opening<()>>,
    ) {
        let batch = messages.map(|message| (counter_of(message), message));
        self.receiving.open(batch, |counter, payload| {
            openings.push((counter, payload.map(drop).ok_or(DropReason::BadCiphertext)));
        });
    }

    /// The second step of [`Self::open`]: accepts the decrypted messages that are authentic and new.
    pub(crate) fn accept<'m>(
        &self,
        now: Instant,
        openings: &mut [Opening<()>],
        messages: impl Iterator<Item = &'m mut [u8]>,
        mut outcome: impl FnMut(Result<&'m mut [u8], DropReason>),
    ) {
        if self.is_expired(now) {
            messages.for_each(|_| outcome(Err(DropReason::SessionExpired)));
            return;
        }
        self.mark_received(openings);
        for ((_, opening), message) in openings.iter().zip(messages) {
            outcome(opening.map(|()| payload_of(message)));
        }
    }

    /// Whether sending makes renewal due: by the session's age, which is the initiator's task, or its number of
    /// messages.
    pub(crate) fn is_due_for_rekey(&self, now: Instant) -> bool {
        let old = self.role == Role::Initiator && now.since(self.born) >= REKEY_AFTER_TIME;
        old || self.next_counter.load(Ordering::Relaxed) > REKEY_AFTER_MESSAGES
    }

    /// Whether sending should ask for renewal now, which it does at most once per [`REKEY_TIMEOUT`].
    pub(crate) fn asks_for_rekey(&self, now: Instant) -> bool {
        if !self.is_due_for_rekey(now) {
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

    /// When receiving should ask for renewal, even if nothing is sent: the initiator's task.
    pub(crate) fn last_minute(&self) -> Option<Instant> {
        (self.role == Role::Initiator).then(|| self.born + LAST_MINUTE_AFTER_TIME)
    }

    /// Records that an authentic message arrived. Returns whether it was the first one of a responder's session.
    pub(crate) fn confirm(&self) -> bool {
        !self.confirmed.load(Ordering::Relaxed) && !self.confirmed.swap(true, Ordering::Relaxed)
    }

    /// Whether the peer has proved that it has the keys, so that we may send to it.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// Takes `n` consecutive counters and returns the first. This is a compare-and-swap, not an addition, so that
    /// attempts beyond the limit never wrap the counter around to zero.
    fn take_counters(&self, n: u64) -> Result<u64, SealError> {
        self.next_counter
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                next.checked_add(n).filter(|after| *after <= REJECT_AFTER_MESSAGES)
            })
            .map_err(|_| SealError::NoSession)
    }

    /// Marks the counters of authentic messages as received, and drops the messages whose counters were received
    /// before.
    fn mark_received<P>(&self, opened: &mut [Opening<P>]) {
        // If a thread panicked while it held the lock, the window is still valid: every state of it is.
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
mod models;
#[cfg(test)]
mod tests;
