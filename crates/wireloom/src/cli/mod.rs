//! The commands, one file each.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use caps::{CapSet, Capability};
use clap::{Args, CommandFactory, Parser, Subcommand, builder::NonEmptyStringValueParser};

use crate::config::{self, Config};

mod agent;
mod boot_guard;
mod completions;
mod device;
mod down;
mod engine;
mod health;
mod key;
mod leave;
mod log;
mod plan;
mod reload;
mod situation;
mod status;
mod upgrade;

/// WireGuard with routing, encryption and filtering separated: a node agent, link mode, a userspace device
#[derive(Debug, Parser)]
#[command(name = "wireloom", version, arg_required_else_help = true, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// To add a command, add a variant here, its arm in [`Command::run`], and its file beside this one.
#[derive(Debug, Subcommand)]
enum Command {
    Agent(agent::Arguments),
    Plan(plan::Arguments),
    Status(status::Arguments),
    Health(health::Arguments),
    Reload(reload::Arguments),
    Leave(leave::LeaveArguments),
    Join(leave::JoinArguments),
    Down(down::Arguments),
    BootGuard(boot_guard::Arguments),
    Device(device::Arguments),
    Engine(engine::Arguments),
    Upgrade(upgrade::Arguments),
    Key(key::Arguments),
    Completions(completions::Arguments),
    /// Says where the demo is now
    #[command(hide = true, disable_help_flag = true)]
    Demo {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<OsString>,
    },
}

impl Command {
    fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Agent(arguments) => agent::run(arguments),
            Self::Plan(arguments) => plan::run(&arguments),
            Self::Status(arguments) => status::run(&arguments),
            Self::Health(arguments) => health::run(&arguments),
            Self::Reload(arguments) => reload::run(&arguments),
            Self::Leave(arguments) => leave::leave(&arguments),
            Self::Join(arguments) => leave::join(&arguments),
            Self::Down(arguments) => down::run(&arguments),
            Self::BootGuard(arguments) => boot_guard::run(&arguments),
            Self::Device(arguments) => device::run(&arguments),
            Self::Engine(arguments) => engine::run(&arguments),
            Self::Upgrade(arguments) => upgrade::run(&arguments),
            Self::Key(arguments) => key::run(&arguments),
            Self::Completions(arguments) => completions::run(&arguments),
            Self::Demo { .. } => bail!(
                "the demo is a program of its own now: run `wireloom-demo`, or `scripts/demo` in a checkout of the \
                 source, which builds it"
            ),
        }
    }
}

/// The option of all commands that read `agent.toml`.
#[derive(Debug, Args)]
struct SettingsFile {
    /// The settings file [default: /etc/wireloom/agent.toml, which may be absent]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The name of this node, unless the settings file says it [default: the host name]
    #[arg(long, value_name = "NAME", env = "WIRELOOM_NODE", value_parser = NonEmptyStringValueParser::new())]
    node: Option<String>,
}

impl SettingsFile {
    fn load(&self) -> Result<Config, config::Error> {
        Config::load(self.config.as_deref(), self.node.as_deref())
    }
}

/// Runs the command that the program's arguments name. Errors go to standard error, with exit status 1, or 3 for
/// `wireloom status`, whose other statuses tell how the node is.
#[must_use]
pub fn main() -> ExitCode {
    let words = spell_out(std::env::args_os());
    let is_status = words.get(1).is_some_and(|command| command == "status");
    let failure = if is_status { ExitCode::from(status::FAILED) } else { ExitCode::FAILURE };
    let arguments = match Arguments::try_parse_from(words) {
        Ok(arguments) => arguments,
        Err(usage) => {
            // Not clap's own status 2, by which `wireloom plan` says that something would change.
            let shown = usage.print().is_ok();
            return if shown && !usage.use_stderr() { ExitCode::SUCCESS } else { failure };
        }
    };
    arguments.command.run().unwrap_or_else(|error| {
        anstream::eprintln!("wireloom: {error:#}");
        failure
    })
}

/// The program's commands and options, for whoever documents them: the man pages come from them.
#[must_use]
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Turns `wireloom-device IFNAME` into `wireloom device IFNAME`: wg-quick's `WG_QUICK_USERSPACE_IMPLEMENTATION` names a
/// program without arguments, which can be a symbolic link to this one.
fn spell_out(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<_> = arguments.collect();
    let called = arguments.first().and_then(|path| Path::new(path).file_name());
    if called == Some(OsStr::new("wireloom-device")) {
        arguments.splice(..1, ["wireloom".into(), "device".into()]);
    }
    arguments
}

/// Writes to standard output, coloured on a terminal only. A reader that closes the pipe (`| head`) is not an error.
fn show(text: &str) -> anyhow::Result<()> {
    match anstream::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot write"),
        _ => Ok(()),
    }
}

/// Refuses a command that an ordinary user cannot run.
fn require_net_admin(command: &str) -> anyhow::Result<()> {
    if !caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN)? {
        bail!("`wireloom {command}` needs root (CAP_NET_ADMIN); run it with sudo");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wireloom_device_is_the_device_command() {
        let spelt = |words: &[&str]| spell_out(words.iter().map(OsString::from));
        assert_eq!(spelt(&["/usr/bin/wireloom-device", "wg0"]), ["wireloom", "device", "wg0"]);
        assert_eq!(spelt(&["/usr/bin/wireloom", "plan"]), ["/usr/bin/wireloom", "plan"]);
        assert!(spelt(&[]).is_empty());
    }
}
