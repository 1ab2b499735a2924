//! `wireloom key`: keys, as `wg genkey` and `wg pubkey` make them.

use std::{
    io::{self, Read, Write},
    process::ExitCode,
};

use anyhow::Context;
use wireloom_engine::{PrivateKey, keys};
use zeroize::Zeroizing;

/// Makes keys.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Prints a new private key.
    Generate,
    /// Reads a private key from standard input and prints its public key.
    Public,
}

/// More than any private key with white space around it, in bytes.
const INPUT_MAX: u64 = 1024;

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let text = match arguments.command {
        Command::Generate => keys::generate().context("cannot draw a key")?.expose_base64(),
        Command::Public => {
            let mut text = Zeroizing::new(String::with_capacity(INPUT_MAX as usize));
            io::stdin().take(INPUT_MAX).read_to_string(&mut text).context("cannot read standard input")?;
            let key = PrivateKey::from_base64(text.trim()).context("standard input holds no private key")?;
            Zeroizing::new(key.public_key().to_string())
        }
    };
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", text.as_str()).context("cannot print the key")?;
    Ok(ExitCode::SUCCESS)
}
