//! The columns of the table.

use std::fmt;

use wireloom_plan::routing::Family;

/// A column of the table: protocol and family of the calls in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// The protocol.
    pub protocol: Protocol,
    /// The family of the addresses.
    pub family: Family,
}

/// The protocol of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A TCP connection: a line each way.
    Tcp,
    /// A UDP datagram each way: first from a socket that is connected, then from one that is not.
    Udp,
}

impl Protocol {
    /// How many calls a cell needs at least.
    pub(super) fn calls(self) -> usize {
        match self {
            Self::Tcp => 1,
            Self::Udp => 2,
        }
    }
}

impl Column {
    /// All columns, in the order in which they are shown.
    pub const ALL: [Self; 4] = [
        Self { protocol: Protocol::Tcp, family: Family::V4 },
        Self { protocol: Protocol::Tcp, family: Family::V6 },
        Self { protocol: Protocol::Udp, family: Family::V4 },
        Self { protocol: Protocol::Udp, family: Family::V6 },
    ];
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match (self.protocol, self.family) {
            (Protocol::Tcp, Family::V4) => "TCP IPv4",
            (Protocol::Tcp, Family::V6) => "TCP IPv6",
            (Protocol::Udp, Family::V4) => "UDP IPv4",
            (Protocol::Udp, Family::V6) => "UDP IPv6",
        })
    }
}
