//! `wireloom down`: removes everything that the agent programmed.

use std::{
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use owo_colors::OwoColorize;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};
use wireloom_kernel::{
    Kernel, Linux,
    state::{AgentLock, LOCK_PATIENCE, Programmed, StateDir, remove_if_there},
    wording,
};
use wireloom_plan::{diff::teardown, settings::Settings};
use wireloom_types::interface::{control_socket, handover_socket, holders_file};

use super::{SettingsFile, boot_guard};
use crate::run_file::RunFile;

/// Remove everything that the agent programmed, and keep the private key unless --purge is given
///
/// Removes the policy rules, the routes, the interface with its device process, the firewall table, the unit of
/// `wireloom boot-guard` and the agent's records, and restores sysctls. Stop the agent first. The agent recorded what
/// it programmed, so neither a valid agent.toml nor a mesh file is needed.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: SettingsFile,
    /// Remove the private key too, and the whole state directory
    #[arg(long)]
    purge: bool,
    /// For containers: first wait until the agent has ended, and afterwards until SIGTERM or SIGINT comes
    #[arg(long)]
    stay: bool,
}

/// How long to wait for the agent's end. Whoever started this container starts it again then.
const A_DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    super::require_net_admin("down")?;
    if !arguments.stay {
        return remove(arguments, LOCK_PATIENCE);
    }
    // One that comes meanwhile ends this afterwards: what has begun to go shall go wholly.
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot wait for signals")?;
    let removed = remove(arguments, A_DAY)?;
    signals.forever().next();
    Ok(removed)
}

fn remove(arguments: &Arguments, patience: Duration) -> anyhow::Result<ExitCode> {
    let state = StateDir::locate();
    let lock =
        state.lock(patience).with_context(|| format!("cannot lock {}/agent.lock", state.path().display()))?;
    let Some(lock) = lock else {
        // A record that nobody can read is no reason not to name the agent.
        let recorded = state.programmed().ok().flatten();
        let interface =
            recorded.map_or_else(|| Settings::defaults("").interface, |it| it.interface().to_owned());
        bail!("{}", agent_runs(&interface));
    };
    for aside in state.set_aside_damaged(&lock)? {
        anstream::eprintln!("{} {aside}", "warning:".yellow().bold());
    }
    let programmed = what_is_programmed(arguments, &state)?;
    let interface = programmed.interface();

    let mut kernel = Linux::open(interface, programmed.table(), state.clone())?;
    kernel.finish_creation()?;
    let ops = teardown(&kernel.observe_for_removal()?);
    for op in &ops {
        anstream::println!("{} {}", "-".red(), wording::op(op, interface));
    }
    kernel.apply(&ops).map_err(|errors| {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", texts.join("\n"))
    })?;
    if let Some(left) = teardown(&kernel.observe_for_removal()?).first() {
        bail!(
            "something came back while it was removed, and it is still necessary to {}; find out which other program \
             made it",
            wording::op(left, interface)
        );
    }
    remove_stale_socket(&control_socket(interface))?;
    for left in [handover_socket(interface), holders_file(interface)] {
        remove_if_there(&left).with_context(|| format!("cannot remove {}", left.display()))?;
    }
    // Before the records: what it would load at the next boot goes with them.
    let boot_unit = boot_guard::remove(Path::new("/"))?;
    for path in &boot_unit {
        anstream::println!("{} remove {}", "-".red(), path.display());
    }
    let proven = state.proofs()?;
    let published = state.identity()?.is_some();
    // Whoever has left has told the others to expect nothing more.
    let has_left = state.left()?.is_some_and(|left| left.gone);
    RunFile::remove(interface).context("cannot remove the run file")?;
    crate::agent::remove_socket().context("cannot remove the agent's socket")?;
    state.clear().with_context(|| format!("cannot clear {}", state.path().display()))?;
    if arguments.purge {
        purge(arguments, &state, &lock)?;
    }
    drop(lock);
    let expecting: Vec<_> =
        proven.nodes.into_iter().filter(|(_, proof)| proof.holds()).map(|(name, _)| name).collect();
    if !expecting.is_empty() && !has_left {
        let fix = way_out(published);
        anstream::println!(
            "{} these nodes still expect encryption, and refuse what the workloads here send in plaintext: {}; to \
             change that, {fix}",
            "note:".yellow().bold(),
            expecting.join(" ")
        );
    }
    if ops.is_empty() && boot_unit.is_empty() && !arguments.purge {
        anstream::println!("nothing to remove: Wireloom has programmed nothing here");
    }
    Ok(ExitCode::SUCCESS)
}

/// What makes the other nodes expect no encryption from this one, after it was removed.
fn way_out(is_published: bool) -> &'static str {
    match is_published {
        true => {
            "write \"encrypt\": false into this node's record in the store, wait 20 s, and delete the record then: one \
             that merely vanishes stays in force there for 10 minutes (next time run `wireloom leave` before `wireloom \
             down`)"
        }
        false => {
            "write encrypt = false for this node in the mesh file (next time 15 s before `wireloom down`)"
        }
    }
}

/// Removes the control socket of a device that was killed, as one that ends with its container is: nobody listens
/// there.
fn remove_stale_socket(socket: &Path) -> anyhow::Result<()> {
    match UnixStream::connect(socket) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            remove_if_there(socket).with_context(|| format!("cannot remove {}", socket.display()))
        }
        _ => Ok(()),
    }
}

/// Removes the private key, wherever `agent.toml` has it, and the state directory.
fn purge(arguments: &Arguments, state: &StateDir, lock: &AgentLock) -> anyhow::Result<()> {
    // Nobody can say where the key of a damaged agent.toml is, if it is not in the state directory.
    let key = arguments.settings.load().map(|config| config.private_key_file);
    let gone = key.ok().into_iter().chain([state.path().to_owned()]);
    let gone: Vec<PathBuf> = gone.filter(|path| path.exists()).collect();
    for path in &gone {
        let removed = if path == state.path() { state.purge(lock) } else { remove_if_there(path) };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
        anstream::println!("{} remove {}", "-".red(), path.display());
    }
    Ok(())
}

/// The interface and table that the agent recorded; without a record those of `agent.toml`, and the defaults when that
/// cannot be read.
fn what_is_programmed(arguments: &Arguments, state: &StateDir) -> anyhow::Result<Programmed> {
    if let Some(programmed) = state.programmed()? {
        return Ok(programmed);
    }
    let settings = arguments.settings.load().map(|config| config.settings);
    let Settings { interface, table, .. } = settings.unwrap_or_else(|error| {
        let defaults = Settings::defaults("");
        anstream::eprintln!(
            "{} {error}; assuming interface {} and table {}",
            "warning:".yellow().bold(),
            defaults.interface,
            defaults.table
        );
        defaults
    });
    Programmed::new(interface, table).map_err(anyhow::Error::msg)
}

fn agent_runs(interface: &str) -> String {
    match RunFile::read(interface) {
        Some(RunFile { pid, .. }) => {
            format!(
                "the agent is running (process {pid}); stop it first, with `systemctl stop wireloom` or `kill {pid}`"
            )
        }
        None => "the agent is running; stop it first, with `systemctl stop wireloom`".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_store_has_the_record_no_mesh_file_is_named() {
        let store = way_out(true);
        assert!(!store.contains("mesh file"));
        let announced = store.find("\"encrypt\": false").unwrap();
        assert!(announced < store.find("delete").unwrap(), "a vanished record stays in force");
        assert!(store.contains("wireloom leave"));
    }
}
