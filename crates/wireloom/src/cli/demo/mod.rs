//! `wireloom demo`: a mesh in namespaces, in three states, each measured with real packets.
//! `wireloom demo link`: routers on a common link, with routing daemons.

mod keep;
mod link;
mod mesh;
mod state;
mod table;

use std::{
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::lab::{become_root, require};

use self::{mesh::DemoMesh, state::State};

/// For which the pings go on when a state has come about.
const AFTERMATH: Duration = Duration::from_millis(300);

/// Build a mesh in network namespaces, as root or not: show the break, the mend and the encryption
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
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

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    match arguments.other {
        None => mesh(arguments.keep),
        Some(Other::Link) => link::run(arguments.keep),
    }
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
