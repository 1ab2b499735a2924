//! Where an interface is: in which network namespace, and under which index.

/// Where an interface is. Nothing else is there as long as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The number that our network namespace has for the interface's; `None` when that is our own.
    pub(super) namespace: Option<i32>,
    pub(super) index: u32,
}
