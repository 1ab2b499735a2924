//! `wireloom key`: keys, as `wg genkey`, `wg genpsk` and `wg pubkey` make them, and what derives from them.

use std::{
    io::{self, Read, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use wireloom_kernel::{random_key, random_preshared_key};
use wireloom_types::{LinkAddress, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use crate::key_file;

/// Make a private or preshared key, or derive a public key or a link address
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print a new private key, as `wg genkey` does
    Generate {
        /// Write the key to this file instead, and print its public key
        ///
        /// The file is readable by its owner only (0600), and so is its directory if it has to be made. A file that
        /// is there already stays as it is, and is an error.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Print a new preshared key, as `wg genpsk` does
    Preshared,
    /// Read a private key from standard input and print its public key, as `wg pubkey` does
    Public,
    /// Print the link address of the peer with a public key
    ///
    /// The link address is the MAC address by which the kernel and the firewall know a peer in link mode
    /// (`wireloom device --peer-lookup gateway`).
    LinkAddress {
        /// The public key [default: read from standard input]
        key: Option<PublicKey>,
    },
}

/// The most that is read from standard input, in bytes: more than any key with white space around it.
const INPUT_MAX: u64 = 1024;

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let text = match &arguments.command {
        Command::Generate { out: None } => random_key().context("cannot make a key")?.expose_base64(),
        Command::Generate { out: Some(path) } => {
            let key = key_file::create(path)?;
            Zeroizing::new(key.public_key().to_string())
        }
        Command::Preshared => random_preshared_key().context("cannot make a key")?.expose_base64(),
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
