//! The functional tests' executable, and the tests in it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};

/// Builds the executable as cargo does for a test run, with the tests that need a kernel with WireGuard.
pub(crate) fn functional_tests() -> anyhow::Result<PathBuf> {
    let features = if cfg!(feature = "slow") {
        "functional,slow,kernel-wireguard"
    } else {
        "functional,kernel-wireguard"
    };
    let tests = ["test", "--no-run", "--locked", "--workspace", "--test", "functional"];
    let options = ["--features", features, "--message-format", "json-render-diagnostics"];
    let messages = cargo(&[&tests[..], &options].concat())?;
    for message in serde_json::Deserializer::from_slice(&messages).into_iter::<serde_json::Value>() {
        let message = message.context("cargo's messages are unreadable")?;
        if message["target"]["name"] == "functional"
            && let Some(path) = message["executable"].as_str()
        {
            return Ok(path.into());
        }
    }
    bail!("cargo names no executable")
}

/// Runs cargo, and returns what it prints to standard output.
fn cargo(arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        // An emulated processor is slow enough. Dependencies are optimised anyway.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo ended ({})", output.status);
    Ok(output.stdout)
}

/// The names of its tests, such as `agent::matrix::TEST`, in its own order.
pub(crate) fn names(tests: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new(tests).args(["--list", "--format", "terse"]).output()?;
    ensure!(output.status.success(), "it ended ({})", output.status);
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}
