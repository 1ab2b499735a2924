//! A turn of the engine, or of a queue of the interface: what it is for, and when the next one is.

use wireloom_proto::Instant;

/// What may have something to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ready {
    /// The interface has packets.
    pub packets: bool,
    /// The interface's state has changed.
    pub events: bool,
    /// The UDP port has datagrams.
    pub datagrams: bool,
}

impl Ready {
    /// Look everywhere.
    pub const ALL: Self = Self { packets: true, events: true, datagrams: true };
}

/// When the next turn is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// At once: there is more to do than one turn may take.
    None,
    /// When something becomes ready, and at this moment at the latest.
    Until(Option<Instant>),
    /// The same, and soon, probably: a bulk transfer is going on, so that a while of looking again and
    /// again costs less than falling asleep and being woken up.
    Light(Option<Instant>),
    /// Never: the interface is gone.
    Forever,
}
