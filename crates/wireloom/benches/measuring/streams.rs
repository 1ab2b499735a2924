//! TCP streams, by `iperf3`.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use serde_json::Value;
use wireloom_lab::{PATIENCE, until};

use super::Way;

/// A program that is killed when the measurement ends.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the receiving end of `iperf3`, for one test.
pub(crate) fn server(way: Way<'_>) -> anyhow::Result<Running> {
    let mut command = Command::new("iperf3");
    command.args(["-s", "-1"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = Running(way.to.space.spawn(&mut command)?);
    until(PATIENCE, "iperf3 to listen", || {
        let listening = way.to.space.run("ss -Hltn sport = :5201").ok()?;
        (!listening.is_empty()).then_some(())
    })?;
    Ok(server)
}

pub(crate) fn client(way: Way<'_>, length: Duration, options: &[&str]) -> Command {
    let mut command = Command::new("iperf3");
    command
        .args(["-J", "-c", &way.to.address.to_string(), "-t", &length.as_secs().to_string()])
        .args(options);
    command
}

/// What was received.
pub(crate) struct Streams {
    pub(crate) gigabits: f64,
    seconds: f64,
}

impl Streams {
    pub(crate) fn gigabits_a_second(&self) -> f64 {
        self.gigabits / self.seconds
    }
}

pub(crate) fn tcp(way: Way<'_>, length: Duration, options: &[&str]) -> anyhow::Result<Streams> {
    let _server = server(way)?;
    let output = way.from.space.output_within(&mut client(way, length, options), length + 3 * PATIENCE)?;
    let report: Value =
        serde_json::from_slice(&output.stdout).context("iperf3 printed something unexpected")?;
    if let Some(error) = report["error"].as_str() {
        anyhow::bail!("iperf3: {error}");
    }
    let received = |what: &str| {
        report["end"]["sum_received"][what].as_f64().with_context(|| format!("iperf3 reported no {what}"))
    };
    Ok(Streams { gigabits: received("bytes")? * 8.0 / 1e9, seconds: received("seconds")? })
}
