//! The commands, one file each.

mod device;
mod key;

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::ExitCode,
};

use clap::{Parser, Subcommand};

/// WireGuard with its concerns pulled apart: node agent, link layer, userspace device.
#[derive(Debug, Parser)]
#[command(name = "wireloom", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// To add a command: a variant here, its arm in [`Command::run`], and its file beside this one.
#[derive(Debug, Subcommand)]
enum Command {
    Device(device::Arguments),
    Key(key::Arguments),
}

impl Command {
    fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Device(arguments) => device::run(&arguments),
            Self::Key(arguments) => key::run(&arguments),
        }
    }
}

/// Runs the command that the program's arguments name; errors go to stderr with exit status 1.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse_from(spell_out(std::env::args_os()));
    arguments.command.run().unwrap_or_else(|error| {
        anstream::eprintln!("wireloom: {error:#}");
        ExitCode::FAILURE
    })
}

/// `wireloom-device IFNAME` is `wireloom device IFNAME`, so that
/// `WG_QUICK_USERSPACE_IMPLEMENTATION` can name a link to this program.
fn spell_out(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<_> = arguments.collect();
    let called = arguments.first().and_then(|path| Path::new(path).file_name());
    if called == Some(OsStr::new("wireloom-device")) {
        arguments.splice(..1, ["wireloom".into(), "device".into()]);
    }
    arguments
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
