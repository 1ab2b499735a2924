//! Writes the man pages into the directory that the argument names: `wireloom.1`, and one for each command, such as
//! `wireloom-key-generate.1`. The Debian package has them (scripts/debian-package).

use std::{env, path::PathBuf};

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let directory: PathBuf = env::args_os().nth(1).context("name a directory")?.into();
    std::fs::create_dir_all(&directory)?;
    // A page for each `help` of a command would repeat the others.
    let command = wireloom::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command, &directory)?;
    Ok(())
}
