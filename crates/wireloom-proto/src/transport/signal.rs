//! Signals: what the data path reports to the device.

use std::ops::{BitOr, BitOrAssign};

use crate::peer_id::PeerId;
use crate::sync::atomic::{AtomicU8, Ordering};

/// What sealing or opening found out that the device must know. Give it to
/// [`Device::handle_signal`](crate::Device::handle_signal) on the thread that owns the device.
///
/// Signals are few: some per session, one when a first packet waits, and one for all packets to an unreachable peer
/// while the device seeks it. A late one is harmless, because the device checks whether its cause still holds. The
/// news themselves stay with the peer until the device takes them, so that the next signal makes up for one that was
/// lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "without it the device does not use a confirmed session, renew a session or run a timer"]
pub struct Signal {
    pub(crate) peer: PeerId,
}

/// The events of one peer that the device has not heard of yet.
#[derive(Debug, Default)]
pub(crate) struct News(AtomicU8);

impl News {
    /// Adds events. Returns whether there are any, so that the device must be told.
    pub(crate) fn add(&self, events: Events) -> bool {
        // Release: whoever takes the news sees what caused it.
        events != Events::NONE && {
            self.0.fetch_or(events.0, Ordering::Release);
            true
        }
    }

    /// Adds events. Returns whether one of them is new, so that the device must be told.
    pub(crate) fn add_once(&self, events: Events) -> bool {
        let known = Events(self.0.load(Ordering::Relaxed));
        !known.contains(events) && !Events(self.0.fetch_or(events.0, Ordering::AcqRel)).contains(events)
    }

    /// All events as bits, to be handed over.
    pub(crate) fn bits(&self) -> u8 {
        self.0.load(Ordering::Acquire)
    }

    /// Adds events that were handed over.
    pub(crate) fn add_bits(&self, bits: u8) {
        self.0.fetch_or(bits, Ordering::Release);
    }

    /// Takes all events, but leaves [`Events::SOUGHT`] behind if it is there: until [`Self::end_search`], nobody has to
    /// tell the device again.
    pub(crate) fn take(&self) -> Events {
        if self.0.load(Ordering::Relaxed) == 0 {
            return Events::NONE;
        }
        Events(self.0.fetch_and(Events::SOUGHT.0, Ordering::Acquire))
    }

    /// Has the next packet for the peer, if it is unreachable still, tell the device.
    pub(crate) fn end_search(&self) {
        if Events(self.0.load(Ordering::Relaxed)).contains(Events::SOUGHT) {
            self.0.fetch_and(!Events::SOUGHT.0, Ordering::Relaxed);
        }
    }
}

/// A set of events that concern one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Events(u8);

impl Events {
    pub(crate) const NONE: Self = Self(0);
    /// The first authentic message arrived in a session of which we are the responder: it may be used to send now.
    pub(crate) const SESSION_CONFIRMED: Self = Self(1);
    /// A session that sends is due for renewal, by its age or its number of messages.
    pub(crate) const REKEY_DUE: Self = Self(1 << 1);
    /// A session that receives is due for renewal, because it expires soon and may send nothing until then.
    pub(crate) const LAST_MINUTE: Self = Self(1 << 2);
    /// A timer was armed that is due before the device's next check of the peer.
    pub(crate) const TIMER_ARMED: Self = Self(1 << 3);

    /// Packets wait for a session.
    pub(crate) const PACKETS_WAIT: Self = Self(1 << 4);
    /// A packet was dropped because the peer is unreachable. This stays while an attempt to get a session is under way.
    pub(crate) const SOUGHT: Self = Self(1 << 5);

    /// Whether this set contains all events of `other`.
    pub(crate) const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Events {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Events {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}
