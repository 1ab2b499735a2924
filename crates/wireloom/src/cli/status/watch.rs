//! `--watch`: the status again and again.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::Context;

use super::{Arguments, tell};

/// The time from one status to the next.
const INTERVAL: Duration = Duration::from_secs(2);

/// Erases the terminal and begins at its top (ECMA-48: CUP, ED).
const ERASE: &str = "\x1b[H\x1b[2J";

/// Shows the status until somebody ends the program, or nobody reads it any more. A terminal shows the last one only.
/// Elsewhere one follows another after an empty line, or, as JSON, one on each line.
pub(super) fn watch(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let is_terminal = io::stdout().is_terminal();
    let mut before = "";
    loop {
        let (text, status) = tell(arguments)?;
        if is_terminal {
            before = ERASE;
        }
        let mut output = anstream::stdout();
        match write!(output, "{before}{text}").and_then(|()| output.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(status),
            written => written.context("cannot write")?,
        }
        if !arguments.json {
            before = "\n";
        }
        thread::sleep(INTERVAL);
    }
}
