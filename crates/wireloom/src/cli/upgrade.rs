//! `wireloom upgrade`: a new process of this program takes the interface over.

use std::{
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, bail};
use wireloom_kernel::{
    Serving, serving,
    supervisor::{Supervisor, SupervisorError},
};

use super::SettingsFile;

/// Have a new process of this program carry the packets of the userspace engine, while they flow
///
/// It takes over the interface, its sessions and its counters: peers and connections notice nothing. Packets wait for
/// some milliseconds, which this command reports. Use it after an upgrade of the program, on hosts without Kubernetes.
/// The kernel's WireGuard needs nothing of the kind.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The interface [default: that of agent.toml]
    #[arg(value_name = "IFNAME")]
    interface: Option<String>,

    #[command(flatten)]
    settings: SettingsFile,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    super::require_net_admin("upgrade")?;
    let interface = match &arguments.interface {
        Some(interface) => interface.clone(),
        None => arguments.settings.load()?.settings.interface,
    };
    let before = process_of(&interface)?;
    hand_over(&interface)?;
    let after = process_of(&interface)?;
    let Some(waited) = after.waited.filter(|_| after.process != before.process) else {
        bail!(
            "another process has {interface} now, but not its sessions: they are made anew, once it is configured"
        );
    };
    println!(
        "{interface}: process {} has taken over from process {}; packets waited for {:.1} ms",
        after.process,
        before.process,
        millis(waited)
    );
    Ok(ExitCode::SUCCESS)
}

fn process_of(interface: &str) -> anyhow::Result<Serving> {
    let answer = serving(interface).map_err(anyhow::Error::msg).with_context(|| {
        format!(
            "no userspace engine answers for {interface}: with the kernel's WireGuard there is nothing to do, \
             otherwise start the agent or the device"
        )
    })?;
    answer.with_context(|| {
        format!(
            "what serves {interface} hands nothing over (an older version, or another program): restart it"
        )
    })
}

fn hand_over(interface: &str) -> anyhow::Result<()> {
    let supervisor = Supervisor::locate();
    match supervisor.status() {
        Ok(status) if status.arguments.iter().any(|argument| argument == interface) => {
            supervisor.run(&status.arguments, false).map(drop).context("the supervisor cannot do it")
        }
        Ok(_) | Err(SupervisorError::Absent(_)) => start_in_background(interface),
        Err(error) => Err(error.into()),
    }
}

/// Starts a device that nobody supervises.
fn start_in_background(interface: &str) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    command.args(["device", "--take-over", "--persistent", "--", interface]);
    let status = command.status().context("cannot start a process")?;
    if !status.success() {
        bail!("the new process has not taken over; see the error above, and `wg show {interface}`");
    }
    Ok(())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
