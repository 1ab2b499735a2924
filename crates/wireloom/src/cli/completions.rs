//! `wireloom completions`: what makes a shell complete our commands and options.

use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;

/// Print the completions of a shell, such as `wireloom completions bash`
///
/// The Debian package installs them for bash, zsh and fish. Otherwise write them where the shell looks:
/// /usr/share/bash-completion/completions/wireloom, /usr/share/zsh/site-functions/_wireloom or
/// /usr/share/fish/vendor_completions.d/wireloom.fish.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::command(), "wireloom", &mut script);
    super::show(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}
