//! What the guard costs: throughput between two nodes with agents, without the guard, with connection tracking alone
//! (which the guard switches on), and with the guard. The settings of the running agents are switched in turn, round
//! after round. Prints a table of medians in Markdown.
//!
//! `scripts/bench guard` runs this.
//!
//! | module | has |
//! |---|---|
//! | [`fleet`] | the nodes, their agents and their settings |
//! | [`measuring`] | what it shares with `benches/tunnel`: loads, medians |

#[path = "../measuring/datagrams.rs"]
mod datagrams;
mod fleet;
#[path = "../measuring/mod.rs"]
mod measuring;

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use wireloom_lab::{become_root, require};

use self::{
    fleet::{Fleet, Route, Setting},
    measuring::{
        Way,
        machine::other_work,
        streams,
        summary::{median, surroundings},
    },
};

/// Measures what the guard costs in throughput, and prints a table of medians.
///
/// It needs root or user namespaces. Everything that it makes is in namespaces of its own, and goes with them.
#[derive(Debug, Parser)]
#[command(name = "scripts/bench guard", bin_name = "scripts/bench guard")]
struct Arguments {
    /// Rounds. The median counts: choose an odd number.
    #[arg(default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Seconds that each TCP stream runs.
    #[arg(default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,

    /// Cargo passes it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    Tcp,
    Udp,
}

impl Load {
    const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// Its label, and its digits after the decimal point.
    fn about(self) -> (&'static str, usize) {
        match self {
            Self::Tcp => ("TCP, 1 stream, Gbit/s", 2),
            Self::Udp => ("UDP, 64 bytes, thousands a second with < 1 % lost", 0),
        }
    }

    fn measure(self, way: Way<'_>, length: Duration) -> anyhow::Result<f64> {
        match self {
            Self::Tcp => streams::tcp(way, length, &[]).map(|stream| stream.gigabits_a_second()),
            Self::Udp => datagrams::highest_load(way, 64).map(|rate| rate / 1e3),
        }
    }
}

/// One figure.
struct Sample {
    route: Route,
    load: Load,
    setting: Setting,
    value: f64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scripts/bench guard: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    become_root()?;
    require(&["ip", "iperf3", "nft", "ping", "ss"])?;
    let fleet = Fleet::new()?;
    let length = Duration::from_secs(arguments.seconds.into());
    let mut samples = Vec::new();
    // Of other programs, in percent of one processor: it spoils the figures.
    let mut work = 0.0_f64;
    for round in 1..=arguments.rounds {
        for setting in Setting::ALL {
            eprintln!("round {round} of {}: {}", arguments.rounds, setting.label());
            work = work.max(other_work()?);
            fleet.switch(setting)?;
            for (route, load) in rows() {
                let value = load.measure(fleet.way(route), length)?;
                let (label, digits) = load.about();
                eprintln!("  {:<20}  {label:<49} {value:.digits$}", route.label());
                samples.push(Sample { route, load, setting, value });
            }
        }
    }
    print(&samples, arguments.rounds);
    println!("\nOther work on the machine between the loads: at most {work:.0} % of a CPU.");
    Ok(())
}

fn rows() -> impl Iterator<Item = (Route, Load)> {
    Route::ALL.into_iter().flat_map(|route| Load::ALL.map(|load| (route, load)))
}

/// The medians, and their ratios to those without the guard.
fn print(samples: &[Sample], rounds: u32) {
    println!(
        "{}. Both nodes and the load on this machine, IPv4, no offload on the underlay; pods' MTU 1420, reno; medians \
         of {rounds}; × is the ratio to `guard = false`.\n",
        surroundings()
    );
    let [off, others @ ..] = Setting::ALL;
    let columns: String = others.map(|other| format!(" {} | × |", other.label())).concat();
    println!("| | {} |{columns}\n|---|--:|{}", off.label(), "--:|".repeat(2 * others.len()));
    for (route, load) in rows() {
        let (label, digits) = load.about();
        let cell = |setting| {
            let here = samples.iter().filter(|it| (it.route, it.load, it.setting) == (route, load, setting));
            median(&mut here.map(|it| it.value).collect::<Vec<_>>()).unwrap_or(f64::NAN)
        };
        let without = cell(off);
        let cells = others.map(|other| format!(" {:.digits$} | {:.2} |", cell(other), cell(other) / without));
        println!("| {}: {label} | {without:.digits$} |{}", route.label(), cells.concat());
    }
}
