//! `wireloom agent`: runs in the foreground until it is told to stop.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use clap::Args;
use tracing_subscriber::EnvFilter;

/// Join this node to the mesh and program Linux so that the right traffic, and only that, is encrypted.
///
/// SIGTERM stops the agent and leaves the data path up; `wireloom down` takes all of it away. SIGHUP
/// reads the settings again.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The settings [default: /etc/wireloom/agent.toml, which may be absent]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    super::require_net_admin("agent")?;
    // The journal has clocks of its own (systemd.exec(5), $JOURNAL_STREAM).
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let filter = EnvFilter::try_from_env("WIRELOOM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    if journal {
        log.without_time().init();
    } else {
        log.init();
    }
    crate::agent::run(arguments.config)?;
    Ok(ExitCode::SUCCESS)
}
