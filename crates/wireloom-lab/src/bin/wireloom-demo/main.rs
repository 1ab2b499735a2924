//! `wireloom-demo`: a mesh in network namespaces, in three states, each measured with real packets.
//! `wireloom-demo link`: routers on one link, with routing daemons.

mod keep;
mod link;
mod mesh;
mod state;
mod table;

use std::{
    env,
    path::PathBuf,
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Parser as _;
use wireloom_lab::{become_root, require};

use self::{mesh::DemoMesh, state::State};

/// For which the pings go on when a state has come about.
const AFTERMATH: Duration = Duration::from_millis(300);

/// Build a mesh in network namespaces, as root or not: show the fault, the fix and the encryption
#[derive(Debug, clap::Parser)]
#[command(name = "wireloom-demo", version)]
struct Arguments {
    /// Leave the mesh up, and say how to look around in it
    #[arg(long, global = true)]
    keep: bool,

    #[command(subcommand)]
    other: Option<Other>,
}

/// Demos beside the mesh.
#[derive(Debug, clap::Subcommand)]
enum Other {
    /// Four routers on one link with BIRD: OSPF finds the ways, one router dies, a forged source is refused
    Link,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.other {
        None => mesh(arguments.keep),
        Some(Other::Link) => link::run(arguments.keep),
    };
    outcome.unwrap_or_else(|error| {
        anstream::eprintln!("wireloom-demo: {error:#}");
        ExitCode::FAILURE
    })
}

/// The program `wireloom`, which is installed beside this one.
fn wireloom() -> anyhow::Result<PathBuf> {
    let wireloom = env::current_exe().context("cannot find this program's file")?.with_file_name("wireloom");
    if !wireloom.is_file() {
        bail!(
            "{} is missing: build it with `cargo build --package wireloom`, or run scripts/demo",
            wireloom.display()
        );
    }
    Ok(wireloom)
}

fn mesh(keep: bool) -> anyhow::Result<ExitCode> {
    require(&["ip", "nft", "unshare", "mount"])?;
    if keep {
        // What the hints name.
        require(&["nsenter", "ping"])?;
    }
    become_root()?;
    let began = Instant::now();
    let mut mesh = DemoMesh::new()?;
    table::introduction(mesh.nodes());

    let mut broken = Vec::new();
    for state in State::ALL {
        let pings = mesh.pings()?;
        mesh.enter(state)?;
        let matrix = mesh.settle(state)?;
        // What the switch costs may come a little after it.
        sleep(AFTERMATH);
        table::show(state, &matrix, &pings.stop()?);
        broken.extend(table::broken(state, &matrix));
    }
    table::conclusion(&broken, began.elapsed());
    if !broken.is_empty() {
        mesh.print_logs()?;
    }
    if keep {
        keep::mesh(mesh)?;
    }
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
