//! What the tables of all benches have in common.

use std::{fs, num::NonZero, process::Command, thread};

/// `None` when there are no figures.
pub(crate) fn median(figures: &mut [f64]) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let count = figures.len();
    (count > 0).then(|| f64::midpoint(figures[(count - 1) / 2], figures[count / 2]))
}

/// Date, hardware, kernel, and the version of `iperf3`.
pub(crate) fn surroundings() -> String {
    let first_line = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
    };
    let known = |text: Option<String>| text.unwrap_or_else(|| "unknown".to_owned());
    let processor = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let count = thread::available_parallelism().map_or(0, NonZero::get);
    format!(
        "{}, {count} × {}, {}, {}",
        known(first_line("date", "+%F")),
        known(processor),
        known(first_line("uname", "-srm")),
        known(first_line("iperf3", "--version"))
    )
}
