//! Whether a file is whole, or somebody is in the middle of writing it. Pure: the time is an argument.
//!
//! A read lease (fcntl(2), `F_SETLEASE`) would say whether anybody has a file open for writing. No safe Rust function
//! takes one, and not every file system or owner allows it. So the file's notifications are followed instead
//! (inotify(7)): whoever changes a file in place is heard, and so is the close after that.
//!
//! Two things cannot be heard. Who had the file open before we listened, writes to it on another machine, or replaces
//! it behind a link, is judged by the file's times: it must not have changed for [`SETTLE`]. And of two programs that
//! write to one file at the same time, the first one's close counts.

use std::time::{Duration, Instant};

/// How long a file whose writers cannot be heard must have been unchanged.
pub(super) const SETTLE: Duration = Duration::from_secs(1);

/// Something that happened to the file, in the order of the happenings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// A new file was created under the name. Whoever created it has it open.
    Created,
    /// A file was renamed or linked to the name. Such files are finished before.
    Replaced,
    /// The name was removed.
    Removed,
    /// Something beside the file was renamed. It may be a link on the way to the file, which leads to another one now:
    /// that is how Kubernetes replaces all files of a ConfigMap at once.
    NeighbourRenamed,
    /// The content was changed, or cut off.
    Written,
    /// Somebody who had opened the file for writing closed it.
    Closed,
    /// Signs may have been lost.
    Lost,
}

/// What tells one state of a file from another: stat(2) without the access time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Device and inode.
    pub(super) inode: (u64, u64),
    /// Bytes.
    pub(super) size: u64,
    /// When the content was last modified, in seconds and nanoseconds.
    pub(super) modified: (i64, i64),
    /// When content or inode last changed, in seconds and nanoseconds. No program can set it.
    pub(super) changed: (i64, i64),
}

/// Whether to read the file now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nobody is in the middle of writing.
    Whole {
        /// True when its signs say so, false when only its times do.
        heard: bool,
    },
    /// It changed a moment ago, and nobody was heard. Look again after this time.
    Settling(Duration),
    /// Somebody who writes to it has not closed it. There will be a sign.
    BeingWritten,
}

/// What is known about the file's writers.
#[derive(Debug, Clone, Copy)]
enum Known {
    Nothing,
    /// Somebody is writing.
    Writer,
    /// The writer is done. The first stamp after that belongs to the finished file.
    Done(Option<Stamp>),
}

/// The judge of one file.
#[derive(Debug)]
pub(super) struct Wholeness {
    known: Known,
    /// The inode that `known` is about; `None` when it is the one that the next stamp shows.
    inode: Option<(u64, u64)>,
    /// The last stamp, and when it was first seen.
    last: Option<(Stamp, Instant)>,
}

impl Wholeness {
    pub(super) fn new() -> Self {
        Self { known: Known::Nothing, inode: None, last: None }
    }

    /// Takes note of a sign.
    pub(super) fn hear(&mut self, sign: Sign) {
        match sign {
            Sign::Created => (self.known, self.inode) = (Known::Writer, None),
            Sign::Replaced => (self.known, self.inode) = (Known::Done(None), None),
            Sign::Removed => (self.known, self.inode) = (Known::Nothing, None),
            // If it matters, the next stamp shows another inode.
            Sign::NeighbourRenamed => {}
            Sign::Written => self.known = Known::Writer,
            Sign::Closed => self.known = Known::Done(None),
            Sign::Lost => self.known = Known::Nothing,
        }
    }

    /// Judges the file by all signs so far and its stamp. `age` is the time since the stamp's `changed`, by the clock
    /// of the wall; zero when that lies in the future.
    pub(super) fn judge(&mut self, stamp: Stamp, age: Duration, now: Instant) -> Verdict {
        if self.inode.replace(stamp.inode).is_some_and(|inode| inode != stamp.inode) {
            self.known = Known::Nothing;
        }
        let since = match self.last {
            Some((last, since)) if last == stamp => since,
            _ => now,
        };
        self.last = Some((stamp, since));
        match self.known {
            Known::Writer => return Verdict::BeingWritten,
            Known::Done(None) => {
                self.known = Known::Done(Some(stamp));
                return Verdict::Whole { heard: true };
            }
            Known::Done(Some(done)) if done == stamp => return Verdict::Whole { heard: true },
            // The finished file has changed since, and nobody was heard.
            Known::Done(Some(_)) | Known::Nothing => self.known = Known::Nothing,
        }
        let unchanged = age.max(now.saturating_duration_since(since));
        if unchanged < SETTLE {
            return Verdict::Settling(SETTLE - unchanged);
        }
        self.known = Known::Done(Some(stamp));
        Verdict::Whole { heard: false }
    }
}
