//! Waiting for a change of a key's file. Unlike `mesh.toml` it is not read here, so that no copy of a secret is left
//! behind; and whoever reads it knows a key that is half written by its length.

use std::{
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

/// How long to wait without a notification: the directory may be absent, be replaced, or lie on a file system without
/// notifications, and the file may be a link to one elsewhere. Milliseconds.
const POLL_INTERVAL: u16 = 2_000;

/// How long notifications are gathered: whoever replaces a file does so in several steps.
const GATHER: Duration = Duration::from_millis(20);

/// What is listened for in the file's directory. A link to the file, as in Kubernetes volumes, changes there as well.
const CHANGES: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_CLOSE_WRITE)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_ONLYDIR);

/// Listens to the directory of a file.
pub(super) struct KeyWatch {
    directory: PathBuf,
    inotify: Option<Inotify>,
}

impl KeyWatch {
    /// Listens from now on. `path` is that of the file, absolute.
    pub(super) fn new(path: &Path) -> Self {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        let inotify = inotify
            .inspect_err(|error| {
                tracing::warn!("no notifications of changes of {}; it is polled: {error}", path.display());
            })
            .ok();
        let watch = Self { directory: path.parent().unwrap_or(Path::new("/")).to_owned(), inotify };
        watch.listen();
        watch
    }

    /// Waits until the file may have changed, 2 s at most.
    pub(super) fn wait(&self) {
        self.listen();
        let Some(inotify) = &self.inotify else {
            thread::sleep(Duration::from_millis(POLL_INTERVAL.into()));
            return;
        };
        let mut ready = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
        if matches!(poll(&mut ready, PollTimeout::from(POLL_INTERVAL)), Ok(1..)) {
            thread::sleep(GATHER);
            while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
        }
    }

    /// Listens to the directory that has the name now; nothing changes if it is listened to already.
    fn listen(&self) {
        if let Some(inotify) = &self.inotify {
            let _ = inotify.add_watch(&self.directory, CHANGES);
        }
    }
}
