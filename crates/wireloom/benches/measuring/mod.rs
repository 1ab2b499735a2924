//! Loads and their figures, for all benches of the program. `datagrams` and `pings` beside it are for some of them.

mod congestion;
pub(crate) mod machine;
pub(crate) mod streams;
pub(crate) mod summary;

use std::net::IpAddr;

use wireloom_lab::Space;

pub(crate) use self::congestion::RENO;

/// One end of a load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End<'a> {
    pub(crate) space: &'a Space,
    /// Where the other end reaches it.
    pub(crate) address: IpAddr,
}

/// The way of a load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way<'a> {
    pub(crate) from: End<'a>,
    pub(crate) to: End<'a>,
}
