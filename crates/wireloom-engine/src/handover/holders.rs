//! Which processes have the interface's descriptors: each holds a lock on a byte of a file, which ends with it. The
//! byte's position is its number, so that others can ask for it.
//!
//! The hand-over socket names one process, and not always the right one: a taker that hangs right after *Commit* has
//! everything, but does not listen yet. So it is by this file that a process that hangs is found. A supervisor that
//! keeps descriptors holds no lock: it carries no packets.

use std::{
    fs::File,
    io,
    mem::ManuallyDrop,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
    time::Duration,
};

use nix::fcntl::{FcntlArg, fcntl};
use rustix::process::{Pid, getpid};

use super::peer::Peer;
use crate::directory::create_directory;

/// The file of an interface. It is never closed: that would end the locks that this process has on it, whichever of its
/// descriptors they were made by (fcntl_locking(2)). Nor is it removed: a process that has just opened it would hold a
/// lock that nobody sees.
pub(crate) struct Holders {
    file: ManuallyDrop<File>,
}

impl Holders {
    /// Opens the file of an interface, made with its directory if it is not there.
    ///
    /// # Errors
    /// When the system refuses, or others can put files in its directory.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            create_directory(directory)?;
        }
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(libc::O_NOFOLLOW).open(path)?;
        Ok(Self { file: ManuallyDrop::new(file) })
    }

    /// Says that this process has descriptors of the interface: before it opens the interface, or asks a giver for it.
    /// Again does no harm.
    ///
    /// # Errors
    /// When the kernel has no memory for locks.
    pub(crate) fn enter(&self) -> io::Result<()> {
        // Shared: one in another PID namespace may have the same number.
        self.lock(libc::F_RDLCK)
    }

    /// Says that it has none any more: it has closed all of them. Its end says so, too.
    ///
    /// # Errors
    /// None that is known.
    #[cfg(test)]
    pub(crate) fn leave(&self) -> io::Result<()> {
        self.lock(libc::F_UNLCK)
    }

    /// Another process that has descriptors; of several, any one. `None` when there is no other.
    ///
    /// # Errors
    /// When that process is in a PID namespace that this one does not see. Otherwise the system's error.
    pub(crate) fn another(&self) -> io::Result<Option<Peer>> {
        while let Some(pid) = self.another_pid()? {
            let peer = Peer::open(pid)?;
            // A number is used again after the process's end. One that still holds the lock was there all the time.
            if peer.is_some() && self.another_pid()? == Some(pid) {
                return Ok(peer);
            }
        }
        Ok(None)
    }

    /// Kills `named`, the process that does not answer and that the connection names, and waits until it has ended. If
    /// it had ended before, another one that has descriptors hangs, and is killed instead.
    ///
    /// # Errors
    /// As [`Peer::kill_and_wait`] and [`Self::another`]: such a process may serve.
    pub(crate) fn kill(&self, named: Option<&Peer>, limit: Duration) -> io::Result<()> {
        if let Some(named) = named
            && !named.has_ended()?
        {
            return named.kill_and_wait(limit);
        }
        match self.another()? {
            Some(other) => other.kill_and_wait(limit),
            None => Ok(()),
        }
    }

    /// The process of this number, which may be any process's by now: whoever listened may have ended long ago, while a
    /// supervisor keeps the socket. `None` unless it is one of the holders.
    pub(super) fn by_number(&self, pid: Pid) -> io::Result<Option<Peer>> {
        let Some(peer) = Peer::open(pid)? else { return Ok(None) };
        // Afterwards: it cannot change any more whose number it was.
        Ok(self.is_holder(pid)?.then_some(peer))
    }

    /// Whether this other process has descriptors. False also when it sees itself under another number, as in a PID
    /// namespace of its own.
    ///
    /// # Errors
    /// The system's error.
    fn is_holder(&self, pid: Pid) -> io::Result<bool> {
        Ok(self.conflict(byte(libc::F_WRLCK, pid))?.is_some_and(|lock| lock.l_pid == pid.as_raw_pid()))
    }

    fn another_pid(&self) -> io::Result<Option<Pid>> {
        // Whose lock would be in the way of one that nobody may share.
        let Some(lock) = self.conflict(whole_file(libc::F_WRLCK))? else { return Ok(None) };
        match Pid::from_raw(lock.l_pid) {
            Some(pid) => Ok(Some(pid)),
            None => Err(io::Error::other(
                "cannot see the process that has the interface: share its PID namespace (hostPID)",
            )),
        }
    }

    /// Another process's lock that is in the way of this one.
    fn conflict(&self, mut lock: libc::flock) -> io::Result<Option<libc::flock>> {
        fcntl(self.file.as_fd(), FcntlArg::F_GETLK(&mut lock))?;
        Ok((i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock))
    }

    fn lock(&self, kind: i32) -> io::Result<()> {
        fcntl(self.file.as_fd(), FcntlArg::F_SETLK(&byte(kind, getpid())))?;
        Ok(())
    }
}

/// The byte of a process.
fn byte(kind: i32, pid: Pid) -> libc::flock {
    libc::flock { l_start: pid.as_raw_pid().into(), l_len: 1, ..whole_file(kind) }
}

fn whole_file(kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        env,
        io::{BufRead, BufReader, Read},
        process::{Child, Command, Stdio},
    };

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);
    /// Makes the test below another process that holds the lock on this file, or looks for holders.
    const HOLDS: &str = "WIRELOOM_TEST_HOLDS";
    const SEES: &str = "WIRELOOM_TEST_SEES";

    /// Locks are a process's, so there must be another one.
    #[test]
    fn another_process() {
        if let Some(path) = env::var_os(SEES) {
            let another = Holders::open(Path::new(&path)).expect("it opens").another().expect("no error");
            println!("{}", if another.is_some() { "sees a holder" } else { "sees nobody" });
        }
        let Some(path) = env::var_os(HOLDS) else { return };
        let holders = Holders::open(Path::new(&path)).expect("it opens");
        holders.enter().expect("a lock");
        println!("holds");
        // Until it is killed, or the test has ended.
        let _ = io::stdin().read(&mut [0]);
    }

    pub(in crate::handover) fn holder(path: &Path) -> Child {
        let mut child = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", "handover::holders::tests::another_process", "--nocapture"])
            .env(HOLDS, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        assert!(output.lines().any(|line| line.expect("a line").contains("holds")));
        child
    }

    #[test]
    fn holders_are_found_and_ended_one_by_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("inner/wg0.holders");
        let holders = Holders::open(&path).expect("it opens");
        holders.enter().expect("a lock");
        assert!(holders.another().expect("no error").is_none(), "it is itself no other");

        let mut children = [(); 3].map(|()| holder(&path));
        let is_holder = |pid| holders.is_holder(pid).expect("no error");
        assert!(children.iter().all(|child| is_holder(Pid::from_child(child))));
        assert!(!is_holder(getpid()), "asked about itself, it sees no other's lock");
        // As a process that has taken over or failed to.
        {
            let _again = Holders::open(&path).expect("it opens");
        }
        let named = Peer::open(Pid::from_child(&children[2])).expect("no error").expect("it lives");
        holders.kill(Some(&named), LIMIT).expect("it ends");
        assert!(named.has_ended().expect("no error"));
        assert!(!children[2].wait().expect("it was ours").success());
        for left in [Some(&named), None] {
            let other = holders.another().expect("no error").expect("one is left");
            assert!(!other.has_ended().expect("no error"));
            holders.kill(left, LIMIT).expect("it ends");
            assert!(other.has_ended().expect("no error"));
        }
        assert!(holders.another().expect("no error").is_none());
        holders.kill(None, LIMIT).expect("nobody is left");
        for child in &mut children[..2] {
            assert!(!child.wait().expect("it was ours").success());
        }

        let mut after = holder(&path);
        holders.leave().expect("no error");
        after.kill().expect("it lives");
        after.wait().expect("it was ours");
    }

    /// Its lock ends neither when it opens the file again, nor when it closes that.
    #[test]
    fn a_holder_that_tries_again_stays_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("wg0.holders");
        let holders = Holders::open(&path).expect("it opens");
        holders.enter().expect("a lock");
        {
            let _again = Holders::open(&path).expect("it opens");
        }
        let sees = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", "handover::holders::tests::another_process", "--nocapture"])
            .env(SEES, &path)
            .output()
            .expect("it starts");
        assert!(String::from_utf8_lossy(&sees.stdout).contains("sees a holder"), "{sees:?}");
        holders.leave().expect("no error");
    }
}
