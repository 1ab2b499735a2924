//! What nobody should notice: hand-overs of a device's interface to a new process, while a TCP stream at full speed,
//! pings and numbered datagrams go through it, and an eavesdropper looks for nonces that are used twice. Prints a table
//! in Markdown.
//!
//! `scripts/bench handover` runs this.
//!
//! | module | has |
//! |---|---|
//! | [`chaos`] | hand-overs in which one side is killed or stopped |
//! | [`crowd`] | hand-overs of a device with thousands of peers |
//! | [`ground`] | the machines, and the tunnel between them |
//! | [`load`] | the load, and what became of it |
//! | [`stream`] | a TCP stream at full speed |
//! | [`congestion`], [`machine`], [`program`], [`summary`] | what it shares with the other benches |

mod chaos;
#[path = "../measuring/congestion.rs"]
mod congestion;
mod crowd;
mod ground;
mod load;
#[path = "../measuring/machine.rs"]
mod machine;
#[path = "../measuring/program.rs"]
mod program;
mod stream;
#[path = "../measuring/summary.rs"]
mod summary;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use wireloom_lab::{become_root, require};

use self::{ground::Ground, load::Load, program::Program, summary::surroundings};

/// Measures what hand-overs of a device cost its users.
///
/// It needs root or user namespaces. Everything that it makes is in namespaces of its own, and goes with them.
#[derive(Debug, Parser)]
#[command(name = "scripts/bench handover", bin_name = "scripts/bench handover")]
struct Arguments {
    /// Another program at the other end of the tunnel: a command line that, with the name of an interface added, makes
    /// a WireGuard interface of that name, and goes to the background.
    #[arg(value_name = "NAME=COMMAND")]
    others: Vec<Program>,

    /// The program `wireloom` [default: what cargo has built].
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_wireloom"), hide_default_value = true)]
    wireloom: PathBuf,

    /// Hand-overs in each row.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Milliseconds between two hand-overs.
    #[arg(long, default_value_t = 200)]
    interval: u64,

    /// Numbered datagrams a second.
    #[arg(long, default_value_t = 100_000)]
    datagrams: u32,

    /// How many packets wait in each of the interface's queues at most [default: as the device makes it, 500].
    #[arg(long, value_name = "N")]
    queue_length: Option<u32>,

    /// Modes to measure.
    #[arg(long, value_delimiter = ',', value_name = "MODE,…", default_values_t = [Mode::Destination, Mode::Gateway])]
    modes: Vec<Mode>,

    /// Numbers of queues to measure.
    #[arg(long, value_delimiter = ',', value_name = "N,…", default_values_t = [1, 2])]
    queues: Vec<u16>,

    /// Instead: this many hand-overs in which one side is killed or stopped at a random moment.
    #[arg(long, value_name = "N")]
    chaos: Option<u32>,

    /// For `--chaos`: where the random numbers begin.
    #[arg(long, default_value_t = 1, requires = "chaos")]
    seed: u64,

    /// Instead: hand-overs of a device that has sessions with this many peers.
    #[arg(long, value_name = "N", conflicts_with = "chaos", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    sessions: Option<u32>,

    /// Cargo passes it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What selects the peer of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    Destination,
    Gateway,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Destination => "destination",
            Self::Gateway => "gateway",
        })
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scripts/bench handover: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    become_root()?;
    require(&["ip", "ping", "wg"])?;
    println!("{}. Both ends and the load on the same machine; MTU 1420.\n", surroundings());
    let own =
        Program { name: "wireloom".to_owned(), command: format!("{} device", arguments.wireloom.display()) };
    let peers: Vec<_> = [own].into_iter().chain(arguments.others.clone()).collect();
    if let Some(count) = arguments.chaos {
        return chaos::run(arguments, &peers[0], count);
    }
    if let Some(count) = arguments.sessions {
        return crowd::run(arguments, &peers[0], count);
    }
    let mut work = Vec::new();
    println!("{}", load::HEADER);
    for mode in &arguments.modes {
        for queues in &arguments.queues {
            for peer in &peers {
                work.push(machine::other_work()?);
                let name = format!("{mode}, {queues} queues, {}", peer.name);
                let row = measure(arguments, *mode, *queues, peer);
                println!("| {name} | {}", row.unwrap_or_else(|error| format!("{error:#}")));
            }
        }
    }
    let work = summary::median(&mut work).unwrap_or(f64::NAN);
    println!("\nOther work on the machine between the rows: {work:.0} % of a CPU, in the median.");
    Ok(())
}

/// The cells of a row: first without hand-overs, for as long, then with them.
fn measure(arguments: &Arguments, mode: Mode, queues: u16, peer: &Program) -> anyhow::Result<String> {
    let mut ground = Ground::with_queues(&arguments.wireloom, mode, queues, arguments.queue_length, peer)?;
    let interval = Duration::from_millis(arguments.interval);
    let load = Load::start(&ground, arguments.datagrams)?;
    std::thread::sleep(interval * arguments.rounds);
    let before = load.stop()?;
    let load = Load::start(&ground, arguments.datagrams)?;
    let mut pauses = Vec::new();
    for _ in 0..arguments.rounds {
        std::thread::sleep(interval);
        pauses.push(ground.device.hand_over()?);
    }
    std::thread::sleep(interval);
    Ok(load.stop()?.cells(&before, &mut pauses))
}
