//! A turn: one bounded round of work of the control thread or of a worker.

use wireloom_proto::Instant;

/// The sources that may have something to do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ready {
    /// The interface has packets.
    pub(crate) packets: bool,
    /// The UDP port has datagrams.
    pub(crate) datagrams: bool,
}

impl Ready {
    /// Every source has to be looked at.
    pub(crate) const ALL: Self = Self { packets: true, datagrams: true };
}

/// When the control thread's next turn is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextTurn {
    /// At once: there is more to do than one turn may take.
    Now,
    /// When a source becomes ready, and at this moment at the latest.
    Wait(Option<Instant>),
    /// Never: the interface is gone.
    Never,
}

/// What is left to do after a turn, in rising order of urgency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Backlog {
    /// Nothing.
    Empty,
    /// Nothing, but the turn moved so many bytes that more is likely to follow soon: busy polling for a while is
    /// cheaper than a sleep and a wake-up.
    MoreExpected,
    /// More than one turn may do.
    More,
}

/// A turn that moves this many bytes is taken for part of a bulk transfer.
const BULK: usize = 16 << 10;

impl Backlog {
    /// The backlog of a turn that moved `bytes` and left nothing behind.
    pub(crate) fn after(bytes: usize) -> Self {
        if bytes >= BULK { Self::MoreExpected } else { Self::Empty }
    }
}
