//! `wireloom key`: keys, as `wg genkey` and `wg pubkey` make them, and what follows from them.

use std::{
    io::{self, Read, Write},
    process::ExitCode,
};

use anyhow::Context;
use wireloom_kernel::random_key;
use wireloom_types::{LinkAddress, PrivateKey, PublicKey};
use zeroize::Zeroizing;

/// Make keys.
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
    /// Prints the link address of the peer with a public key: its name on a link (`wireloom device
    /// --peer-lookup gateway`) and in the firewall.
    LinkAddress {
        /// The public key; it is read from standard input when absent.
        key: Option<PublicKey>,
    },
}

/// More than any private key with white space around it, in bytes.
const INPUT_MAX: u64 = 1024;

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let text = match &arguments.command {
        Command::Generate => random_key().context("cannot draw a key")?.expose_base64(),
        Command::Public => {
            let key = PrivateKey::from_base64(&input()?).context("standard input holds no private key")?;
            Zeroizing::new(key.public_key().to_string())
        }
        Command::LinkAddress { key } => {
            let key = match key {
                Some(key) => *key,
                None => input()?.parse().context("standard input holds no public key")?,
            };
            Zeroizing::new(LinkAddress::of(key).to_string())
        }
    };
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", text.as_str()).context("cannot print the key")?;
    Ok(ExitCode::SUCCESS)
}

/// The key on standard input, without the white space around it.
fn input() -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(INPUT_MAX as usize));
    io::stdin().take(INPUT_MAX).read_to_string(&mut text).context("cannot read standard input")?;
    Ok(Zeroizing::new(text.trim().to_owned()))
}
