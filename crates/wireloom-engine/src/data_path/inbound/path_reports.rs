//! Path MTUs that the network reports. Anybody can forge such reports, in any number, so what they cost is bounded.

use std::{collections::BTreeMap, mem, net::IpAddr, time::Duration};

use wireloom_proto::Instant;

use super::super::Turn;
use crate::{tun::TunQueue, udp::Udp};

/// The most messages that a turn reads from each socket's error queue.
const READS: usize = 32;

/// The most addresses that wait. What is dropped is reported again for the next datagram that is too long.
const WAITING_MAX: usize = 64;

/// The least time between two times that the device takes them: it goes through all of its peers then, which takes a
/// fraction of a millisecond with thousands of them.
const PAUSE: Duration = Duration::from_millis(10);

/// Reports that wait for the device.
#[derive(Default)]
pub(super) struct PathReports {
    /// The path MTU in bytes, by the destination.
    waiting: BTreeMap<IpAddr, usize>,
    /// When the device takes the next ones, at the earliest.
    next: Option<Instant>,
}

impl PathReports {
    /// Reads reports, and has the device take them now or in a later turn.
    pub(super) fn take(&mut self, turn: &mut Turn<'_, impl TunQueue, impl Udp>) {
        turn.udp.path_mtus(READS, |remote, path_mtu| {
            if self.waiting.len() < WAITING_MAX || self.waiting.contains_key(&remote) {
                self.waiting.insert(remote, path_mtu);
            }
        });
        let now = turn.now.monotonic;
        if !self.waiting.is_empty() && self.next.is_none_or(|next| next <= now) {
            self.next = Some(now + PAUSE);
            turn.punter.punt_path_mtus(mem::take(&mut self.waiting));
        }
    }
}
