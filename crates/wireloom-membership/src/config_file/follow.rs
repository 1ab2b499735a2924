//! Following a file on any [`Disk`]: when to look, when to read, and what is new.

use std::time::{Duration, Instant};

use super::{
    error::{PATIENCE, ReadError},
    whole::{Sign, Stamp, Verdict, Wholeness},
};

/// How often the file is looked at even without a sign: its directory may be absent, be replaced, or lie on a file
/// system without notifications.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// How long nothing may happen to the file after it was read: programs replace a file in several steps, and the sign of
/// a change comes a moment after the change.
const QUIET: Duration = Duration::from_millis(10);

/// What a follower needs of the operating system. The tests have one in memory.
pub(super) trait Disk {
    /// The time now.
    fn now(&self) -> Instant;

    /// Waits until something happens to the file, at most for this time.
    fn wait(&mut self, limit: Duration) -> Vec<Sign>;

    /// Opens the file that the path leads to now, listens to that file from then on, and returns its stamp and the time
    /// since its last change by the clock of the wall.
    fn open(&mut self) -> Result<(Stamp, Duration), ReadError>;

    /// Reads what was opened last, and returns its stamp after the reading.
    fn read(&mut self) -> Result<(Vec<u8>, Stamp), ReadError>;

    /// The error of a file that has been unfinished for [`PATIENCE`].
    fn unfinished(&self) -> ReadError;

    /// Called once when changes turn out not to be announced.
    fn changes_are_silent(&self);
}

/// The follower of one file.
#[derive(Debug)]
pub(super) struct Follower<D> {
    disk: D,
    wholeness: Wholeness,
    /// Since when the file has been unfinished.
    unfinished: Option<Instant>,
    /// The stamp of the content in `returned`.
    read: Option<Stamp>,
    /// What [`Follower::next`] returned last.
    returned: Option<Result<Vec<u8>, ReadError>>,
    silent: bool,
}

/// What a look at the file found.
enum Look {
    /// Nothing that could be new. Look again after this time, or at a sign.
    Wait(Duration),
    /// This. With a content comes its stamp.
    Found(Result<(Vec<u8>, Stamp), ReadError>),
}

impl<D: Disk> Follower<D> {
    pub(super) fn new(disk: D) -> Self {
        let wholeness = Wholeness::new();
        Self { disk, wholeness, unfinished: None, read: None, returned: None, silent: false }
    }

    /// Waits until the file is whole and has another content than was returned last, or cannot be read for another
    /// reason than was returned last.
    pub(super) fn next(&mut self) -> Result<Vec<u8>, ReadError> {
        loop {
            let pause = match self.look() {
                Look::Wait(pause) => pause,
                // Something has happened meanwhile: what was found may be half of it.
                Look::Found(_) if self.listen(QUIET) => continue,
                Look::Found(found) => {
                    self.read = found.as_ref().ok().map(|(_, stamp)| *stamp);
                    let found = found.map(|(content, _)| content);
                    if self.returned.as_ref() != Some(&found) {
                        self.returned = Some(found.clone());
                        return found;
                    }
                    POLL_INTERVAL
                }
            };
            self.listen(pause);
        }
    }

    #[cfg(test)]
    pub(super) fn into_disk(self) -> D {
        self.disk
    }

    /// Waits for signs, at most for this time, and returns whether there were any.
    fn listen(&mut self, limit: Duration) -> bool {
        let signs = self.disk.wait(limit);
        for sign in &signs {
            self.wholeness.hear(*sign);
        }
        !signs.is_empty()
    }

    fn look(&mut self) -> Look {
        let (stamp, age) = match self.disk.open() {
            Ok(opened) => opened,
            Err(error) => {
                self.unfinished = None;
                return Look::Found(Err(error));
            }
        };
        let now = self.disk.now();
        let pause = match self.wholeness.judge(stamp, age, now) {
            Verdict::Whole { heard } => return self.read(stamp, heard),
            Verdict::Settling(pause) => pause,
            Verdict::BeingWritten => POLL_INTERVAL,
        };
        let since = *self.unfinished.get_or_insert(now);
        match PATIENCE.checked_sub(now.saturating_duration_since(since)) {
            Some(left) if !left.is_zero() => Look::Wait(pause.min(left).min(POLL_INTERVAL)),
            _ => Look::Found(Err(self.disk.unfinished())),
        }
    }

    /// Reads the file, which has this stamp and is whole.
    fn read(&mut self, stamp: Stamp, heard: bool) -> Look {
        self.unfinished = None;
        if self.read == Some(stamp) {
            return Look::Wait(POLL_INTERVAL);
        }
        // At the first reading, nobody could have been heard.
        if !heard && self.returned.is_some() && !self.silent {
            self.silent = true;
            self.disk.changes_are_silent();
        }
        match self.disk.read() {
            Ok((_, after)) if after != stamp => Look::Wait(QUIET),
            found => Look::Found(found),
        }
    }
}
