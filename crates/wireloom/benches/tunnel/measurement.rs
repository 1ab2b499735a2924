//! The measurements, by `iperf3` and `ping`.

use std::{process::Stdio, time::Duration};

use clap::ValueEnum;

use crate::{
    datagrams,
    ground::Ground,
    measuring::{
        machine,
        streams::{self, Running},
    },
    pings::{Pings, SLOW_PINGS},
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

/// Time for the load to reach its full rate before the first ping.
const RISE: Duration = Duration::from_millis(500);

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

/// Round-trip times in microseconds: the median and the 99th percentile.
fn pings(ground: &Ground, length: Duration) -> anyhow::Result<Vec<f64>> {
    let pings = Pings::send(ground.way(), length)?;
    let figures = [0.5, 0.99].map(|part| pings.percentile(part));
    anyhow::ensure!(figures[1].is_finite(), "{} of {} pings unanswered", pings.unanswered(), pings.sent());
    Ok(figures.to_vec())
}
