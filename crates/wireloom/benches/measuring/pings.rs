//! Round-trip times, by `ping`.

use std::{process::Command, time::Duration};

use wireloom_lab::PATIENCE;

use crate::measuring::Way;

/// Between two pings.
const PING_INTERVAL: Duration = Duration::from_millis(5);

/// How many times longer pings may take beside a load that starves them.
pub(crate) const SLOW_PINGS: u32 = 10;

/// The round trips of some pings.
pub(crate) struct Pings {
    /// Microseconds, sorted; infinity for each that was not answered.
    times: Vec<f64>,
}

impl Pings {
    /// Sends pings for this long.
    pub(crate) fn send(way: Way<'_>, length: Duration) -> anyhow::Result<Self> {
        let count = length.div_duration_f64(PING_INTERVAL) as usize;
        let mut command = Command::new("ping");
        command.args(["-n", "-W1", "-i", &PING_INTERVAL.as_secs_f64().to_string(), "-c", &count.to_string()]);
        let patience = SLOW_PINGS * length + PATIENCE;
        let output = way.from.space.output_within(command.arg(way.to.address.to_string()), patience)?;
        let output = String::from_utf8_lossy(&output.stdout);
        let answers = output
            .lines()
            .filter_map(|line| line.split_once(" time=")?.1.split(' ').next()?.parse::<f64>().ok());
        let mut times: Vec<f64> = answers.map(|milliseconds| milliseconds * 1e3).collect();
        let answered = times.len();
        anyhow::ensure!(answered <= count, "ping counted {answered} answers to {count} requests");
        times.resize(count, f64::INFINITY);
        times.sort_by(f64::total_cmp);
        Ok(Self { times })
    }

    /// The time within which this part of all pings, from 0 to 1, was answered: microseconds.
    pub(crate) fn percentile(&self, part: f64) -> f64 {
        let count = self.times.len();
        self.times[((count as f64 * part).ceil() as usize).clamp(1, count) - 1]
    }

    pub(crate) fn sent(&self) -> usize {
        self.times.len()
    }

    pub(crate) fn unanswered(&self) -> usize {
        self.times.iter().filter(|time| time.is_infinite()).count()
    }
}
