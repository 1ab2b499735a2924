//! Reaps the processes that nobody waits for: in a container the agent is process 1, which the kernel makes the parent
//! of every process whose own parent has ended. A device is one of them: it went to the background.

use std::time::{Duration, Instant};

use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    unistd::Pid,
};

/// How long after its end a process is reaped. Whoever started it waits for it sooner than that, and must find it.
const INTERVAL: Duration = Duration::from_secs(2);

/// The ended process that was seen last, and when.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    seen: Option<Pid>,
    looked: Option<Instant>,
}

impl Orphans {
    /// Looks for processes that have ended, and reaps the one that had ended when it looked last. Does nothing more
    /// often than every two seconds.
    pub(super) fn look(&mut self, now: Instant) {
        if self.looked.is_some_and(|looked| now < looked + INTERVAL) {
            return;
        }
        self.looked = Some(now);
        while let Some(ended) = ended() {
            if self.seen != Some(ended) {
                self.seen = Some(ended);
                return;
            }
            match waitpid(ended, Some(WaitPidFlag::WNOHANG)) {
                Ok(status) => tracing::debug!("a process that nobody waited for has ended: {status:?}"),
                Err(error) => tracing::debug!("cannot reap process {ended}: {error}"),
            }
            self.seen = None;
        }
        self.seen = None;
    }
}

/// A child of ours that has ended, and that nobody has waited for.
fn ended() -> Option<Pid> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::All, flags) {
        Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => Some(pid),
        Ok(_) | Err(Errno::ECHILD) => None,
        Err(error) => {
            tracing::debug!("cannot look for processes that have ended: {error}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, process::Command, thread::sleep};

    use super::*;

    #[test]
    fn a_process_that_nobody_waits_for_is_reaped_and_not_at_once() {
        let start =
            |program: &str| PathBuf::from(format!("/proc/{}", Command::new(program).spawn().unwrap().id()));
        let (one, other) = (start("true"), start("false"));
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut orphans = Orphans::default();
        let mut now = Instant::now();
        while one.exists() || other.exists() {
            assert!(Instant::now() < deadline, "they are never reaped");
            let seen = orphans.seen;
            orphans.look(now);
            orphans.look(now + INTERVAL / 2);
            if let (None, Some(first)) = (seen, orphans.seen) {
                assert!(PathBuf::from(format!("/proc/{first}")).exists(), "it is reaped at once");
            }
            now += INTERVAL;
            sleep(Duration::from_millis(10));
        }
        assert_eq!(ended(), None);
    }
}
