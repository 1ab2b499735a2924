//! What the network stack is told at once about a packet that it sent.

use std::time::Duration;

use wireloom_proto::Instant;

use crate::{
    icmp::{self, Problem, Way},
    runtime::limiter::Limiter,
};

/// The rate of errors of one queue, whoever they are for: the kernel's default `icmp_msgs_per_sec`.
const ERROR_INTERVAL: Duration = Duration::from_millis(1);
const ERROR_BURST: u32 = 250;

/// An answer, if there is one: an ICMP error, or in link mode a frame.
#[derive(Debug)]
pub struct Answer {
    pub(crate) bytes: Vec<u8>,
    limiter: Limiter,
}

impl Default for Answer {
    fn default() -> Self {
        Self { bytes: Vec::new(), limiter: Limiter::new(ERROR_INTERVAL, ERROR_BURST) }
    }
}

impl Answer {
    /// Reports a problem with a packet to its sender, unless there are too many reports already: see [`icmp::report`].
    pub(crate) fn report(&mut self, now: Instant, problem: Problem, packet: &[u8], way: Option<Way>) {
        if self.limiter.allows(now) {
            icmp::report(problem, packet, way, &mut self.bytes);
        }
    }
}
