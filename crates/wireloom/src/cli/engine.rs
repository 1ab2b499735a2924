//! `wireloom engine`: supervises the userspace device.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::Args;
use tracing_subscriber::EnvFilter;

use crate::{log_output, supervisor};

/// Supervise the userspace device: start it when the agent asks for it, and again when it dies
///
/// Of two containers or units, the one with `wireloom agent` decides, and this one runs `wireloom device`. It keeps the
/// device's descriptors, so that a device that dies is replaced at once, on the same interface and port. With the
/// kernel's WireGuard it does nothing.
///
/// Requests go to the socket /run/wireloom/engine.sock, or that of the environment variable WIRELOOM_ENGINE_SOCKET. It
/// stays in the foreground and logs to standard error, with the device. SIGTERM ends both.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Become this program, with descriptors from standard input
    #[arg(long = "become", value_name = "PROGRAM", hide = true, requires = "parent")]
    program: Option<PathBuf>,

    /// The supervisor's process
    #[arg(long, value_name = "PID", hide = true, requires = "program")]
    parent: Option<u32>,

    /// The arguments of the program
    #[arg(last = true, hide = true)]
    arguments: Vec<OsString>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if let (Some(program), Some(parent)) = (&arguments.program, arguments.parent) {
        match supervisor::become_device(program, &arguments.arguments, parent)? {}
    }
    super::require_net_admin("engine")?;
    super::log::start_without_waiting(EnvFilter::new("info"));
    Ok(match supervisor::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => log_output::fail(&error),
    })
}
