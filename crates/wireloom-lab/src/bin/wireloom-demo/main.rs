//! The demos: meshes in network namespaces, measured with real packets.
//!
//! - `wireloom-demo`: WireGuard's usual fault with policy routing, the agent's fix, and hosts encrypted too.
//! - `wireloom-demo link`: link mode with a routing daemon.
//! - `wireloom-demo kubernetes`: the agent on a real Kubernetes cluster.

mod keep;
mod kubernetes;
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

/// How long the pings continue after a state is reached.
const AFTERMATH: Duration = Duration::from_millis(300);

/// Show on a mesh of three nodes what the agent fixes, with real packets
///
/// Builds the mesh in network namespaces of this machine, takes it through three states and measures each: plain
/// WireGuard with one policy rule for all sources (hosts lose their connections to pods), the agent's scoped rules
/// (pod to pod is encrypted, the rest is direct), and the hosts' own traffic encrypted too. Needs no root, changes
/// nothing outside its namespaces, and exits with status 1 if a result is not as promised.
#[derive(Debug, clap::Parser)]
#[command(name = "wireloom-demo", version, max_term_width = 100)]
struct Arguments {
    /// Leave everything up, and print how to look around and how to take it down
    #[arg(long, global = true)]
    keep: bool,

    #[command(subcommand)]
    other: Option<Other>,
}

/// Demos other than the mesh.
#[derive(Debug, clap::Subcommand)]
enum Other {
    /// Show link mode: four routers on one WireGuard interface, with OSPF by BIRD
    ///
    /// The routers learn each other's prefixes, one router is killed and traffic moves to another, and a forged
    /// source address is dropped by the firewall.
    Link,

    /// Show a real Kubernetes cluster, without Wireloom and with it
    ///
    /// Starts a cluster of three nodes in namespaces, and measures who reaches whom over pods, services, node ports and
    /// host ports, and what is encrypted: first without Wireloom, then with the DaemonSet. Needs root of this machine;
    /// scripts/demo builds and installs everything else.
    Kubernetes {
        /// The archive of Wireloom's image, which deploy/image/build makes
        #[arg(long, value_name = "ARCHIVE")]
        image: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.other {
        None => mesh(arguments.keep),
        Some(Other::Link) => link::run(arguments.keep),
        Some(Other::Kubernetes { image }) => kubernetes::run(&image, arguments.keep),
    };
    outcome.unwrap_or_else(|error| {
        anstream::eprintln!("wireloom-demo: {error:#}");
        ExitCode::FAILURE
    })
}

/// A program that is installed beside this one.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let program = env::current_exe().context("cannot find this program's file")?.with_file_name(name);
    if !program.is_file() {
        bail!("{} is missing: run scripts/demo, which builds it", program.display());
    }
    Ok(program)
}

fn mesh(keep: bool) -> anyhow::Result<ExitCode> {
    require(&["ip", "nft", "unshare", "mount"])?;
    if keep {
        // The printed commands use them.
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
        // Packets that the change costs may be lost a little after it.
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
