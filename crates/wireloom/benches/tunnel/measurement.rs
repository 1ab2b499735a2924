//! The measurements, by `iperf3` and `ping`.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use clap::ValueEnum;
use wireloom_lab::PATIENCE;

use crate::{
    ground::Ground,
    measuring::{
        datagrams, machine,
        streams::{self, Running},
    },
    table::Metric,
};

/// A measurement. It may fill more than one row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Measurement {
    PingIdle,
    #[value(name = "tcp-1")]
    Tcp1,
    #[value(name = "tcp-1-reverse")]
    Tcp1Reverse,
    #[value(name = "tcp-4")]
    Tcp4,
    #[value(name = "tcp-4-reverse")]
    Tcp4Reverse,
    PingLoaded,
    #[value(name = "udp-1372")]
    Udp1372,
    #[value(name = "udp-64")]
    Udp64,
    /// The last one: after all loads.
    Memory,
}

/// Between two pings.
const PING_INTERVAL: Duration = Duration::from_millis(5);

/// Time for the load to reach its full rate before the first ping.
const RISE: Duration = Duration::from_millis(500);

/// How many times longer pings may take beside a load that starves them.
const SLOW_PINGS: u32 = 10;

impl Measurement {
    pub(crate) fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    /// The rows that it fills.
    pub(crate) fn metrics(self) -> &'static [Metric] {
        match self {
            Self::PingIdle => &[Metric::PingIdleMedian, Metric::PingIdleHigh],
            Self::Tcp1 => &[Metric::Tcp1, Metric::MachineTime, Metric::TunnelTime],
            Self::Tcp1Reverse => &[Metric::Tcp1Reverse],
            Self::Tcp4 => &[Metric::Tcp4],
            Self::Tcp4Reverse => &[Metric::Tcp4Reverse],
            Self::PingLoaded => &[Metric::PingLoadedMedian, Metric::PingLoadedHigh],
            Self::Udp1372 => &[Metric::Udp1372],
            Self::Udp64 => &[Metric::Udp64],
            Self::Memory => &[Metric::Memory],
        }
    }

    /// Takes the measurement: a figure for each of its metrics.
    pub(crate) fn take(self, ground: &Ground, length: Duration) -> anyhow::Result<Vec<f64>> {
        match self {
            Self::PingIdle => pings(ground, length),
            Self::Tcp1 => tcp_with_cost(ground, length),
            Self::Tcp1Reverse => tcp(ground, length, &["-R"]),
            Self::Tcp4 => tcp(ground, length, &["-P4"]),
            Self::Tcp4Reverse => tcp(ground, length, &["-P4", "-R"]),
            Self::PingLoaded => loaded_pings(ground, length),
            Self::Udp1372 => datagrams::highest_load(ground.way(), 1372).map(|rate| vec![rate / 1e3]),
            Self::Udp64 => datagrams::highest_load(ground.way(), 64).map(|rate| vec![rate / 1e3]),
            Self::Memory => {
                let most = ground.a.tunnel.memory()?.max(ground.b.tunnel.memory()?);
                Ok(vec![most as f64 / f64::from(1 << 20)])
            }
        }
    }
}

fn tcp(ground: &Ground, length: Duration, options: &[&str]) -> anyhow::Result<Vec<f64>> {
    streams::tcp(ground.way(), length, options).map(|streams| vec![streams.gigabits_a_second()])
}

/// One stream, and the processor time that a gigabit costs, in milliseconds: of the whole machine, and of the tunnel's
/// processes at both ends.
fn tcp_with_cost(ground: &Ground, length: Duration) -> anyhow::Result<Vec<f64>> {
    let times = || -> anyhow::Result<[Duration; 2]> {
        Ok([machine::cpu_time()?, ground.a.tunnel.cpu_time()? + ground.b.tunnel.cpu_time()?])
    };
    let before = times()?;
    let streams = streams::tcp(ground.way(), length, &[])?;
    let after = times()?;
    let cost = |which: usize| (after[which] - before[which]).as_secs_f64() * 1e3 / streams.gigabits;
    Ok(vec![streams.gigabits_a_second(), cost(0), cost(1)])
}

fn loaded_pings(ground: &Ground, length: Duration) -> anyhow::Result<Vec<f64>> {
    let _server = streams::server(ground.way())?;
    // A load that starves ping makes it take longer than it should.
    let mut load = streams::client(ground.way(), SLOW_PINGS * (RISE + length), &[]);
    let mut load = Running(ground.a.space.spawn(load.stdout(Stdio::null()))?);
    std::thread::sleep(RISE);
    let times = pings(ground, length)?;
    anyhow::ensure!(load.0.try_wait()?.is_none(), "the load ended before the pings");
    Ok(times)
}

/// Round-trip times in microseconds: the median and the 99th percentile. A lost ping counts as infinitely slow.
fn pings(ground: &Ground, length: Duration) -> anyhow::Result<Vec<f64>> {
    let count = length.div_duration_f64(PING_INTERVAL) as usize;
    let target = ground.b.address;
    let mut command = Command::new("ping");
    command.args(["-n", "-W1", "-i", &PING_INTERVAL.as_secs_f64().to_string(), "-c", &count.to_string()]);
    let patience = SLOW_PINGS * (RISE + length) + PATIENCE;
    let output = ground.a.space.output_within(command.arg(target.to_string()), patience)?;
    let output = String::from_utf8_lossy(&output.stdout);
    let answers =
        output.lines().filter_map(|line| line.split_once(" time=")?.1.split(' ').next()?.parse().ok());
    let mut times: Vec<f64> = answers.collect();
    let answered = times.len();
    anyhow::ensure!(answered <= count, "ping counted {answered} answers to {count} requests");
    times.resize(count, f64::INFINITY);
    times.sort_by(f64::total_cmp);
    let percentile = |part: f64| times[((count as f64 * part).ceil() as usize).clamp(1, count) - 1];
    let (median, high) = (percentile(0.5), percentile(0.99));
    anyhow::ensure!(high.is_finite(), "{} of {count} pings unanswered", count - answered);
    Ok(vec![median * 1e3, high * 1e3])
}
