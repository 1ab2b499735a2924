//! What the control half of a userspace WireGuard costs its data path: the round-trip time of a lone packet beside
//! thousands of handshakes, answered or not, beside `wg show dump`, beside a flood of handshake messages, beside a
//! stream to a peer that is dead; the throughput beside a flood; and how soon a peer's own attempt is answered in it.
//! Programs run in turn, round after round. Prints a table of medians in Markdown.
//!
//! `scripts/bench control` runs this.
//!
//! | module | has |
//! |---|---|
//! | [`answers`] | thousands of peers that answer |
//! | [`attempts`] | how soon a peer's attempts are answered |
//! | [`flood`] | handshake messages with a valid MAC1, from any source |
//! | [`ground`] | the machines, and the tunnel between two of them |
//! | [`row`] | the situations and their figures |
//! | [`measuring`], [`pings`], [`program`] | what it shares with the other benches: loads, medians |

mod answers;
mod attempts;
mod flood;
mod ground;
#[path = "../measuring/mod.rs"]
mod measuring;
#[path = "../measuring/pings.rs"]
mod pings;
#[path = "../measuring/program.rs"]
mod program;
mod row;

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use wireloom_lab::{become_root, require};

use self::{
    ground::Ground,
    measuring::{
        machine::other_work,
        summary::{median, surroundings},
    },
    program::Program,
    row::Row,
};

/// Measures what the control half of a userspace WireGuard costs its data path, and prints a table of medians.
///
/// It needs root or user namespaces. Everything that it makes is in namespaces of its own, and goes with them. The
/// device that is measured has the last processor to itself, as far as the machine has more than one; the loads, and
/// the peers, have the others.
#[derive(Debug, Parser)]
#[command(name = "scripts/bench control", bin_name = "scripts/bench control")]
struct Arguments {
    /// Another program to measure: a command line that, with the name of an interface added, makes a WireGuard
    /// interface of that name.
    #[arg(value_name = "NAME=COMMAND")]
    others: Vec<Program>,

    /// The program `wireloom` that is measured first, and that serves the peers of all [default: what cargo has built].
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_wireloom"), hide_default_value = true)]
    wireloom: String,

    /// Rounds. The median counts: choose an odd number.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Seconds that each load runs.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,

    /// What to measure [default: everything].
    #[arg(long, value_delimiter = ',', value_name = "ROW,…")]
    rows: Vec<Row>,

    /// Cargo passes it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The figures of one row, of one program, in one round, or why there are none.
struct Sample {
    device: usize,
    row: Row,
    figures: Result<Vec<f64>, String>,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scripts/bench control: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    become_root()?;
    require(&["ip", "iperf3", "ping", "ss", "taskset", "wg"])?;
    // Before some of the processors are given away.
    let surroundings = surroundings();
    let processor = ground::keep_a_processor_free()?;
    let own = Program { name: "wireloom".to_owned(), command: format!("{} device", arguments.wireloom) };
    let devices: Vec<_> = [own.clone()].into_iter().chain(arguments.others).collect();
    let rows = if arguments.rows.is_empty() { Row::all() } else { arguments.rows };
    let length = Duration::from_secs(arguments.seconds.into());
    let mut samples = Vec::new();
    // Of other programs, in percent of one processor: it spoils the figures.
    let mut work = Vec::new();
    for round in 1..=arguments.rounds {
        for row in &rows {
            for (place, device) in devices.iter().enumerate() {
                eprintln!("round {round} of {}: {}", arguments.rounds, device.name);
                work.push(other_work()?);
                let figures = Ground::new(&device.command, &own.command, processor)
                    .and_then(|ground| row.take(&ground, length))
                    .map_err(|error| format!("{error:#}"));
                for (figure, (label, digits)) in row.figures().iter().enumerate() {
                    match &figures {
                        Ok(figures) => eprintln!("  {label:<70} {:.digits$}", figures[figure]),
                        Err(reason) => eprintln!("  {label:<70} {reason}"),
                    }
                }
                samples.push(Sample { device: place, row: *row, figures });
            }
        }
    }
    println!(
        "{surroundings}. Loads and peers on the same machine; MTU 1420; medians of {}.\n",
        arguments.rounds
    );
    print(&samples, &devices, &rows);
    let work = median(&mut work).unwrap_or(f64::NAN);
    println!("\nOther work on the machine between the loads: {work:.0} % of a CPU, in the median.");
    Ok(())
}

fn print(samples: &[Sample], devices: &[Program], rows: &[Row]) {
    let names: String = devices.iter().map(|device| format!(" {} |", device.name)).collect();
    println!("| |{names}\n|---|{}", "--:|".repeat(devices.len()));
    for row in rows {
        for (place, (label, digits)) in row.figures().iter().enumerate() {
            let cell = |device| {
                let here = samples.iter().filter(|it| it.row == *row && it.device == device);
                let figures: Result<Vec<_>, _> = here.map(|it| it.figures.as_ref()).collect();
                // The median of the rounds that succeeded would look better than the truth.
                figures.map_or("failed".to_owned(), |figures| {
                    let mut figures: Vec<_> = figures.iter().map(|figures| figures[place]).collect();
                    let median = median(&mut figures).unwrap_or(f64::NAN);
                    if median.is_infinite() { "lost".to_owned() } else { format!("{median:.digits$}") }
                })
            };
            let cells: String = (0..devices.len()).map(|device| format!(" {} |", cell(device))).collect();
            println!("| {label} |{cells}");
        }
    }
}
