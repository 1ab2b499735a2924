//! The processor time of the whole machine.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::unistd::{SysconfVar, sysconf};

/// The processor time that the whole machine has used so far.
pub(crate) fn cpu_time() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let all = stat.lines().next().context("/proc/stat is empty")?;
    let fields = all.split_whitespace().skip(1).map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    // proc(5): user, nice, system, idle, iowait, irq, softirq.
    match fields[..] {
        [user, nice, system, _, _, irq, softirq, ..] => ticks(user + nice + system + irq + softirq),
        _ => anyhow::bail!("/proc/stat is not as proc(5) has it"),
    }
}

/// What other programs use at the moment, in percent of one processor.
pub(crate) fn other_work() -> anyhow::Result<f64> {
    const WATCHED: Duration = Duration::from_millis(500);
    let (start, before) = (Instant::now(), cpu_time()?);
    thread::sleep(WATCHED);
    let busy = cpu_time()? - before;
    Ok(busy.div_duration_f64(start.elapsed()) * 100.0)
}

/// The time that a count of clock ticks is, as proc(5) has it.
pub(crate) fn ticks(count: u64) -> anyhow::Result<Duration> {
    let each_second = sysconf(SysconfVar::CLK_TCK)?.context("the length of a clock tick is unknown")?;
    Ok(Duration::from_secs_f64(count as f64 / each_second as f64))
}
