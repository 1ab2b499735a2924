//! News that the data path has for the device.

use std::ops::{BitOr, BitOrAssign};

use crate::peer_id::PeerId;

/// What sealing or opening found out that the device must know: hand it to
/// [`Device::handle_signal`](crate::Device::handle_signal) on the thread that owns the device.
///
/// Signals are rare (a few for each peer and session, not one for each packet), may come late, and
/// say "look here" only: the device looks whether the cause still stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the device does not promote, rekey or arm timers without it"]
pub struct Signal {
    /// Whom it is about.
    pub peer: PeerId,
    /// What happened; more than one thing may have.
    pub news: News,
}

/// A set of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News(u8);

impl News {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// The first authenticated message of a session that we answered for: it may be used to send now.
    pub const SESSION_CONFIRMED: Self = Self(1);
    /// A session that sends is due for renewal, by age or by number of messages.
    pub const REKEY_DUE: Self = Self(1 << 1);
    /// A session that receives, and may soon expire without our sending, is due for renewal.
    pub const LAST_MINUTE: Self = Self(1 << 2);
    /// A timer was armed that is due before the device's next look at this peer.
    pub const TIMER_ARMED: Self = Self(1 << 3);

    /// Whether all events of `other` are in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The signal that carries this news, when there is any.
    pub(crate) fn about(self, peer: PeerId) -> Option<Signal> {
        (self != Self::NONE).then_some(Signal { peer, news: self })
    }
}

impl BitOr for News {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for News {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}
