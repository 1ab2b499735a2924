//! The device's counters of dropped packets, an extension of our own device.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{Conversation, UserspaceDevice};
use crate::error::Cause;

/// They are no reason to wait for a device that is busy: they can be had later.
const TIMEOUT: Duration = Duration::from_millis(200);

impl UserspaceDevice {
    /// The packets that the device dropped since its start, by the reason's name. `None` when nobody answers, or the
    /// device has no counters.
    pub(crate) fn drops(&self) -> Result<Option<BTreeMap<String, u64>>, Cause> {
        let until = Instant::now() + TIMEOUT;
        let conversation = Conversation::begin(&self.socket, b"get_drops=1\n\n", 1, TIMEOUT)?;
        let reply = conversation.map(|mut conversation| conversation.listen(until)).transpose()?;
        Ok(reply.flatten().and_then(|reply| parse(&reply)))
    }
}

/// `None` for a refusal, which a device without counters answers with.
fn parse(reply: &str) -> Option<BTreeMap<String, u64>> {
    let lines = reply.strip_suffix("errno=0\n\n")?.lines();
    let counters = lines.filter_map(|line| {
        let (reason, packets) = line.split_once('=')?;
        Some((reason.to_owned(), packets.parse().ok()?))
    });
    Some(counters.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_and_a_refusal_is_none() {
        let counters = parse("bad-mac1=3\nunknown-peer=0\nerrno=0\n\n").unwrap();
        assert_eq!(counters, [("bad-mac1".to_owned(), 3), ("unknown-peer".to_owned(), 0)].into());
        assert_eq!(parse("errno=0\n\n"), Some(BTreeMap::new()));
        for refused in ["errno=22\n\n", "", "bad-mac1=3\n"] {
            assert_eq!(parse(refused), None);
        }
    }
}
