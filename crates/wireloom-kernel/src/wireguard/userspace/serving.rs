//! Which process serves a device, an extension of our own device.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use wireloom_types::interface::control_socket;

use super::Conversation;
use crate::error::Cause;

/// How long the device may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The process that serves a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serving {
    /// Its number, in its own PID namespace.
    pub process: u32,
    /// How long packets waited for the hand-over to it; `None` when it has opened the interface itself.
    pub waited: Option<Duration>,
}

/// Which process serves the device of this interface. `None` when it is one that hands nothing over.
///
/// # Errors
/// A message for people, when nobody serves it, or does not answer. It may in a moment: while a device is handed over,
/// questions are cut off.
pub fn serving(interface: &str) -> Result<Option<Serving>, String> {
    ask(&control_socket(interface)).map_err(|error| error.to_string())
}

fn ask(socket: &Path) -> Result<Option<Serving>, Cause> {
    let until = Instant::now() + TIMEOUT;
    let Some(mut conversation) = Conversation::begin(socket, b"get_handover=1\n\n", 1, TIMEOUT)? else {
        return Err(Cause::Transient("nobody serves it".into()));
    };
    match conversation.listen(until)? {
        Some(reply) if reply.ends_with("\n\n") => Ok(parse(&reply)),
        Some(_) => Err(Cause::Transient("it closed the connection without an answer".into())),
        None => Err(Cause::Transient("it does not answer".into())),
    }
}

/// `None` for a refusal.
fn parse(reply: &str) -> Option<Serving> {
    let lines = reply.strip_suffix("errno=0\n\n")?;
    let value = |key: &str| lines.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let waited = value("waited_us").and_then(|micros| micros.parse().ok()).map(Duration::from_micros);
    Some(Serving { process: value("process")?.parse().ok()?, waited })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_read_and_a_refusal_is_none() {
        let serving = |process, waited| Some(Serving { process, waited });
        assert_eq!(parse("process=7\nerrno=0\n\n"), serving(7, None));
        let waited = Some(Duration::from_micros(1500));
        assert_eq!(parse("process=7\nwaited_us=1500\nerrno=0\n\n"), serving(7, waited));
        for refused in ["errno=22\n\n", "", "process=7\n"] {
            assert_eq!(parse(refused), None);
        }
    }
}
