//! `wireloom agent`: runs in the foreground until a signal ends it.

use std::process::ExitCode;

use clap::Args;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::SettingsFile;
use crate::agent::Asked;

/// The environment variable that sets how much is logged.
const LOG: &str = "WIRELOOM_LOG";

/// Run the node agent: join this node to the mesh, and encrypt the right traffic and no other
///
/// The agent reads agent.toml and the mesh file, programs policy rules, routes, the WireGuard interface and the
/// firewall, and repairs whatever other programs change. It stays in the foreground and logs to standard error; the
/// environment variable WIRELOOM_LOG sets the level (error, warn, info, debug, trace).
///
/// SIGTERM and SIGINT end the agent and leave the data path up, so a restart drops no packet; `wireloom down` removes
/// it. Changes of agent.toml, the mesh file and the private key are applied once they are completely written.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: SettingsFile,
    /// Take over from an agent that runs on this node, without a gap, or wait for its end if it cannot be asked
    ///
    /// Settings, key and mesh are read first, and nothing is touched if they have a mistake. The other agent then
    /// waits passively, and serves again only if nobody has for 2 s. For units and pods whose next version starts
    /// beside the one before.
    #[arg(long)]
    take_over: bool,
    /// Wait as one that has let another instance serve
    #[arg(long, hide = true)]
    passive: bool,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    super::require_net_admin("agent")?;
    let wanted = std::env::var(LOG).unwrap_or_default();
    let parsed = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).parse(&wanted);
    let mistake = parsed.as_ref().err().map(ToString::to_string);
    super::log::start(parsed.unwrap_or_else(|_| EnvFilter::new("info")));
    if let Some(mistake) = mistake {
        tracing::warn!(
            "{LOG}={wanted:?} is not understood ({mistake}), so the level is info; write error, warn, info, debug or \
             trace"
        );
    }
    let Arguments { settings: SettingsFile { config, node }, take_over, passive } = arguments;
    crate::agent::run(Asked { config, node, take_over, passive })?;
    Ok(ExitCode::SUCCESS)
}
