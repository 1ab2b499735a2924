//! The measurements, by `iperf3` and `ping`.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use clap::ValueEnum;
use serde_json::Value;
use wireloom_lab::{PATIENCE, until};

use crate::{datagrams, ground::Ground, processes::machine_cpu_time, table::Metric};

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
            Self::Tcp1Reverse => tcp(ground, length, &["-R"]).map(|stream| vec![stream.gigabits_a_second]),
            Self::Tcp4 => tcp(ground, length, &["-P4"]).map(|stream| vec![stream.gigabits_a_second]),
            Self::Tcp4Reverse => {
                tcp(ground, length, &["-P4", "-R"]).map(|stream| vec![stream.gigabits_a_second])
            }
            Self::PingLoaded => loaded_pings(ground, length),
            Self::Udp1372 => datagrams::highest_load(ground, 1372).map(|rate| vec![rate / 1e3]),
            Self::Udp64 => datagrams::highest_load(ground, 64).map(|rate| vec![rate / 1e3]),
            Self::Memory => {
                let most = ground.a.tunnel.memory()?.max(ground.b.tunnel.memory()?);
                Ok(vec![most as f64 / f64::from(1 << 20)])
            }
        }
    }
}

/// A program that is killed when the measurement ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the receiving end of `iperf3`, for one test.
fn server(ground: &Ground) -> anyhow::Result<Running> {
    let mut command = Command::new("iperf3");
    command.args(["-s", "-1"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Running(ground.b.space.spawn(&mut command)?);
    until(PATIENCE, "iperf3 to listen", || {
        let listening = ground.b.space.run("ss -Hltn sport = :5201").ok()?;
        (!listening.is_empty()).then_some(())
    })?;
    Ok(server)
}

fn client(ground: &Ground, length: Duration, options: &[&str]) -> Command {
    let mut command = Command::new("iperf3");
    command
        .args(["-J", "-c", &ground.b.address.to_string(), "-t", &length.as_secs().to_string()])
        .args(options);
    command
}

struct Streams {
    gigabits: f64,
    gigabits_a_second: f64,
}

fn tcp(ground: &Ground, length: Duration, options: &[&str]) -> anyhow::Result<Streams> {
    let _server = server(ground)?;
    let output = ground.a.space.output_within(&mut client(ground, length, options), length + 3 * PATIENCE)?;
    let report: Value =
        serde_json::from_slice(&output.stdout).context("iperf3 printed something unexpected")?;
    if let Some(error) = report["error"].as_str() {
        anyhow::bail!("iperf3: {error}");
    }
    let received = |what: &str| {
        report["end"]["sum_received"][what].as_f64().with_context(|| format!("iperf3 reported no {what}"))
    };
    Ok(Streams {
        gigabits: received("bytes")? * 8.0 / 1e9,
        gigabits_a_second: received("bits_per_second")? / 1e9,
    })
}

/// One stream, and the processor time that a gigabit costs, in milliseconds: of the whole machine, and of the tunnel's
/// processes at both ends.
fn tcp_with_cost(ground: &Ground, length: Duration) -> anyhow::Result<Vec<f64>> {
    let times = || -> anyhow::Result<[Duration; 2]> {
        Ok([machine_cpu_time()?, ground.a.tunnel.cpu_time()? + ground.b.tunnel.cpu_time()?])
    };
    let before = times()?;
    let Streams { gigabits, gigabits_a_second } = tcp(ground, length, &[])?;
    let after = times()?;
    let cost = |which: usize| (after[which] - before[which]).as_secs_f64() * 1e3 / gigabits;
    Ok(vec![gigabits_a_second, cost(0), cost(1)])
}

fn loaded_pings(ground: &Ground, length: Duration) -> anyhow::Result<Vec<f64>> {
    let _server = server(ground)?;
    // A load that starves ping makes it take longer than it should.
    let mut load = client(ground, SLOW_PINGS * (RISE + length), &[]);
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
