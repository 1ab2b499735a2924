//! Compares userspace WireGuards from end to end. Each runs in turn, round after round, on the same two machines
//! (namespaces) with the same cable and the same load. Prints a table of medians in Markdown.
//!
//! `scripts/bench` installs the others and runs this; see `scripts/bench --help`.
//!
//! | module | has |
//! |---|---|
//! | [`contestant`] | the programs that are measured |
//! | [`ground`] | the two machines, their cable, and a tunnel between them |
//! | [`measurement`] | the measurements by `iperf3` and `ping` |
//! | [`processes`] | the cost: processor time and memory |
//! | [`table`] | the figures and their medians |
//! | [`measuring`], [`program`] | what it shares with other benches: loads, medians, `NAME=COMMAND` |

mod contestant;
#[path = "../measuring/datagrams.rs"]
mod datagrams;
mod ground;
mod measurement;
#[path = "../measuring/mod.rs"]
mod measuring;
#[path = "../measuring/pings.rs"]
mod pings;
mod processes;
#[path = "../measuring/program.rs"]
mod program;
mod table;

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::Parser;
use wireloom_lab::{become_root, require};

use self::{
    contestant::Contestant,
    ground::{Ground, Underlay},
    measurement::Measurement,
    measuring::machine::other_work,
    table::{Metric, Sample, Table},
};

/// Measures Wireloom and other userspace WireGuards in turn, and prints a table of medians.
///
/// It needs root or user namespaces. Everything that it makes is in namespaces of its own, and goes with them.
#[derive(Debug, Parser)]
#[command(name = "scripts/bench", bin_name = "scripts/bench")]
struct Arguments {
    /// Another program to measure: a command line that, with the name of an interface added, makes a WireGuard
    /// interface of that name. `wg` must be able to configure it.
    #[arg(value_name = "NAME=COMMAND")]
    others: Vec<Contestant>,

    /// Rounds. The median counts: choose an odd number.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Seconds that each load runs.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,

    /// One round, with short loads, of the most important rows.
    #[arg(long, conflicts_with_all = ["rounds", "seconds", "rows"])]
    quick: bool,

    /// What to measure [default: everything].
    #[arg(long, value_delimiter = ',', value_name = "ROW,…")]
    rows: Vec<Measurement>,

    /// Which programs to measure, by name; `veth` is the bare cable [default: all].
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    only: Vec<String>,

    /// The cable between the machines: as the kernel makes it, or without segmentation and receive offload.
    #[arg(long, value_delimiter = ',', value_name = "KIND,…")]
    #[arg(default_values_t = [Underlay::Plain, Underlay::NoOffload])]
    underlay: Vec<Underlay>,

    /// Adds the figures to this file, and prints the table of all figures in it: the rounds of one table can run at
    /// different times.
    #[arg(long, value_name = "FILE")]
    add_to: Option<PathBuf>,

    /// Cargo passes it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What `--quick` measures.
const QUICK: [Measurement; 3] = [Measurement::Tcp1, Measurement::Udp64, Measurement::PingLoaded];

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scripts/bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: Arguments) -> anyhow::Result<()> {
    if arguments.quick {
        (arguments.rounds, arguments.seconds) = (1, 1);
        arguments.rows = QUICK.to_vec();
    } else if arguments.rows.is_empty() {
        arguments.rows = Measurement::all();
    }
    become_root()?;
    require(&["ethtool", "ip", "iperf3", "ping", "ss", "wg"])?;
    let contestants = contestants(&arguments)?;
    let mut samples = match &arguments.add_to {
        Some(file) => read(file)?,
        None => Vec::new(),
    };
    for round in 1..=arguments.rounds {
        for underlay in &arguments.underlay {
            for contestant in &contestants {
                eprintln!("round {round} of {}, underlay {underlay}: {}", arguments.rounds, contestant.name);
                let new = measure(&arguments, *underlay, contestant);
                if let Some(file) = &arguments.add_to {
                    append(file, &new)?;
                }
                samples.extend(new);
            }
        }
    }
    print!("{}", Table::new(&samples));
    Ok(())
}

/// Wireloom and the others, without those that are not asked for.
fn contestants(arguments: &Arguments) -> anyhow::Result<Vec<Contestant>> {
    let all: Vec<_> = Contestant::own().into_iter().chain(arguments.others.iter().cloned()).collect();
    if let Some(unknown) = arguments.only.iter().find(|name| all.iter().all(|one| one.name != **name)) {
        let names: Vec<_> = all.iter().map(|one| one.name.as_str()).collect();
        anyhow::bail!("--only: no program is called {unknown:?}; there are {}", names.join(", "));
    }
    let asked_for = |one: &Contestant| arguments.only.is_empty() || arguments.only.contains(&one.name);
    Ok(all.into_iter().filter(asked_for).collect())
}

/// Takes all measurements of one contestant, on machines of its own. A measurement that fails gives its reason instead
/// of a figure.
fn measure(arguments: &Arguments, underlay: Underlay, contestant: &Contestant) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut add = |metric: Metric, value: Result<f64, String>| {
        if metric.concerns(contestant) {
            let shown = value.as_ref().map_or_else(String::clone, |figure| format!("{figure:.2}"));
            eprintln!("  {:<56} {shown}", metric.label());
            samples.push(Sample { underlay, name: contestant.name.clone(), metric, value });
        }
    };
    add(Metric::OtherWork, other_work().map_err(|error| format!("{error:#}")));
    let ground = Ground::new(underlay, contestant);
    let seconds = Duration::from_secs(arguments.seconds.into());
    for row in &arguments.rows {
        let figures = match &ground {
            Ok(ground) => row.take(ground, seconds).map_err(|error| format!("{error:#}")),
            Err(error) => Err(format!("{error:#}")),
        };
        for (place, metric) in row.metrics().iter().enumerate() {
            add(*metric, figures.clone().map(|figures| figures[place]));
        }
    }
    samples
}

fn read(file: &Path) -> anyhow::Result<Vec<Sample>> {
    if !file.exists() {
        return Ok(Vec::new());
    }
    let in_file = || format!("cannot read {}", file.display());
    let lines = BufReader::new(File::open(file).with_context(in_file)?).lines();
    lines.map(|line| serde_json::from_str(&line?).with_context(in_file)).collect()
}

/// Appends one line of JSON for each figure.
fn append(file: &Path, samples: &[Sample]) -> anyhow::Result<()> {
    let mut text = String::new();
    for sample in samples {
        text += &serde_json::to_string(sample)?;
        text.push('\n');
    }
    let opened = File::options().append(true).create(true).open(file);
    opened
        .and_then(|mut opened| opened.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", file.display()))
}
