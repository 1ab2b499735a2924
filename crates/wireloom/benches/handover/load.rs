//! Everything at once: a stream, pings of both families, numbered datagrams, and an eavesdropper.

use std::time::Duration;

use wireloom_lab::{FAMILIES, NonceReport, Nonces, Numbered, NumberedReport, PingReport, Pinger};
use wireloom_plan::routing::Family;

use crate::{
    ground::Ground,
    stream::{FullStream, StreamFigures},
    summary::median,
};

/// Between two pings.
const PING_INTERVAL: Duration = Duration::from_millis(10);
/// The payload of a numbered datagram, in bytes.
const DATAGRAM: usize = 64;

/// The head of the table.
pub(crate) const HEADER: &str = "\
| mode, queues, other end | hand-overs | packets waited, p50 / longest, ms | pings lost (without) \
| slowest ping, ms (without) | TCP resets \
| Gbit/s (without) | longest gap, ms (without) | datagrams sent | lost (without) | twice | out of order (without) \
| messages on the wire | sent again as they were | nonces twice | backwards | plaintext |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|";

/// The load. Datagrams go out from the device that hands over, and the stream comes in to it.
pub(crate) struct Load {
    nonces: Nonces,
    pingers: Vec<Pinger>,
    stream: FullStream,
    numbered: Numbered,
}

/// What became of it.
pub(crate) struct Figures {
    nonces: NonceReport,
    pings: Vec<PingReport>,
    stream: StreamFigures,
    numbered: NumberedReport,
}

impl Load {
    pub(crate) fn start(ground: &Ground, datagrams: u32) -> anyhow::Result<Self> {
        let [near, far] = &ground.ends;
        let nonces = Nonces::watch(ground.lab.underlay())?;
        let stream = FullStream::start(far, near, Family::V6)?;
        let numbered = Numbered::start(near, far, Family::V4, datagrams, DATAGRAM)?;
        let start = |family| Pinger::start(near, far, family, PING_INTERVAL);
        let pingers = FAMILIES.into_iter().map(start).collect::<Result<_, _>>()?;
        Ok(Self { nonces, pingers, stream, numbered })
    }

    pub(crate) fn stop(self) -> anyhow::Result<Figures> {
        let pings = self.pingers.into_iter().map(Pinger::stop).collect::<Result<_, _>>()?;
        let numbered = self.numbered.stop()?;
        let stream = self.stream.stop();
        Ok(Figures { nonces: self.nonces.report()?, pings, stream, numbered })
    }
}

impl Figures {
    fn slowest_ping(&self) -> Duration {
        self.pings.iter().map(|report| report.slowest).max().unwrap_or_default()
    }

    /// The cells of a row, beside the same load `before`, without hand-overs.
    pub(crate) fn cells(&self, before: &Self, pauses: &mut [Duration]) -> String {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let mut waited: Vec<_> = pauses.iter().copied().map(ms).collect();
        let typical = median(&mut waited).unwrap_or(f64::NAN);
        let longest = waited.last().copied().unwrap_or(f64::NAN);
        let lost = |figures: &Self| figures.pings.iter().map(|report| report.lost).sum::<usize>();
        let sent: usize = self.pings.iter().map(|report| report.sent).sum();
        let Self { nonces, stream, numbered, .. } = self;
        [
            format!("{}", pauses.len()),
            format!("{typical:.1} / {longest:.1}"),
            format!("{} of {sent} ({})", lost(self), lost(before)),
            format!("{:.1} ({:.1})", ms(self.slowest_ping()), ms(before.slowest_ping())),
            format!("{}", u8::from(stream.broken)),
            format!("{:.2} ({:.2})", stream.gigabits_a_second, before.stream.gigabits_a_second),
            format!("{:.1} ({:.1})", ms(stream.longest_gap), ms(before.stream.longest_gap)),
            format!("{}", numbered.sent),
            format!("{} ({})", numbered.lost, before.numbered.lost),
            format!("{}", numbered.twice),
            format!("{} ({})", numbered.backwards, before.numbered.backwards),
            format!("{}", nonces.messages),
            format!("{}", nonces.copies),
            format!("{}", nonces.twice),
            format!("{}", nonces.backwards),
            format!("{} |", nonces.plaintext),
        ]
        .join(" | ")
    }
}
