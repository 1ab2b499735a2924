//! Watches the file of a key. Its content is not read here, so that there are no more copies of the key.

use std::{
    fs, io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc::Sender},
    thread,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

use super::event::Event;

/// How often the file is looked at even without a notification: its directory may be replaced, or lie on a file system
/// without any.
const INTERVAL: Duration = Duration::from_secs(2);

/// How long notifications are gathered: other files of the directory may change all the time.
const GATHER: Duration = Duration::from_millis(10);

/// A file that has not changed for this long is taken as written: programs write or replace one in several steps, and
/// what happens to another file, or no notification at all, may have made us look in the middle of them. A program that
/// pauses for longer has its half of a file read, which is refused, and then the whole.
const SETTLE: Duration = Duration::from_millis(50);

/// How often a file that goes on changing is looked at before it is read all the same.
const SETTLE_LOOKS: usize = 40;

/// The end of a writing, and what changes what the name leads to or who may read it. Not each single write, which would
/// only wake us in the middle of a writing.
const EVENTS: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_ATTRIB);

/// The path that is watched, which can be changed.
#[derive(Debug, Clone)]
pub(super) struct KeyWatch(Arc<Mutex<PathBuf>>);

impl KeyWatch {
    /// Starts a thread that sends this event after each change of the file.
    pub(super) fn start(path: PathBuf, events: Sender<Event>, event: fn() -> Event) -> io::Result<Self> {
        let watch = Self(Arc::new(Mutex::new(path)));
        let watched = watch.clone();
        let mut seen = Stamp::of(&watched.path());
        let mut listener = Listener::new(&watched.path());
        thread::Builder::new().name("key".into()).spawn(move || {
            loop {
                listener.wait();
                let path = watched.path();
                listener.follow(&path);
                let now = Stamp::of(&path);
                if now == seen {
                    continue;
                }
                seen = now.settle(&path);
                if events.send(event()).is_err() {
                    return;
                }
            }
        })?;
        Ok(watch)
    }

    /// Watches another path from now on.
    pub(super) fn set_path(&self, path: PathBuf) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = path;
    }

    fn path(&self) -> PathBuf {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What tells one state of a file from the next.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    /// Device, inode and mode; absent when there is no file.
    file: Option<(u64, u64, u32)>,
    /// The time of the last change of content, mode or name; and the size, because two changes may have one time.
    changed: Option<(i64, i64, u64)>,
}

impl Stamp {
    fn of(path: &Path) -> Self {
        let found = fs::metadata(path).ok();
        Self {
            path: path.to_owned(),
            file: found.as_ref().map(|found| (found.dev(), found.ino(), found.mode())),
            changed: found.map(|found| (found.ctime(), found.ctime_nsec(), found.size())),
        }
    }

    /// Waits until the file stays as it is, at most for [`SETTLE_LOOKS`] times [`SETTLE`]; returns the last stamp.
    fn settle(mut self, path: &Path) -> Self {
        for _ in 0..SETTLE_LOOKS {
            thread::sleep(SETTLE);
            let before = std::mem::replace(&mut self, Self::of(path));
            if self == before {
                break;
            }
        }
        self
    }
}

/// Listens to the directory of the file.
struct Listener {
    directory: PathBuf,
    inotify: Option<Inotify>,
}

impl Listener {
    fn new(path: &Path) -> Self {
        let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
        let listen = || {
            let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            inotify.add_watch(&directory, EVENTS).map(|_| inotify)
        };
        let inotify = listen().ok();
        Self { directory, inotify }
    }

    /// Listens to the directory of another path, or to a new directory of the same name.
    fn follow(&mut self, path: &Path) {
        let is_gone = |inotify: &Inotify| {
            let events = inotify.read_events().unwrap_or_default();
            events.iter().any(|event| event.mask.contains(AddWatchFlags::IN_IGNORED))
        };
        let stays =
            path.parent() == Some(&self.directory) && self.inotify.as_ref().is_some_and(|it| !is_gone(it));
        if !stays {
            *self = Self::new(path);
        }
    }

    /// Waits for a sign, at most for [`INTERVAL`].
    fn wait(&self) {
        let Some(inotify) = &self.inotify else { return thread::sleep(INTERVAL) };
        let timeout = PollTimeout::try_from(INTERVAL).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => {}
            Ok(_) | Err(_) => thread::sleep(GATHER),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// The settling ends with the last change, and with a file that never rests.
    #[test]
    fn a_file_settles_to_what_it_is_in_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "half").unwrap();
        let half = Stamp::of(&path);
        fs::write(&path, "the whole key").unwrap();
        assert_eq!(half.settle(&path), Stamp::of(&path));
        let (stop, stopped) = channel::<()>();
        let restless = thread::spawn({
            let path = path.clone();
            move || {
                while stopped.try_recv().is_err() {
                    fs::write(&path, "again").unwrap();
                    thread::sleep(SETTLE / 5);
                }
            }
        });
        Stamp::of(&path).settle(&path);
        stop.send(()).unwrap();
        restless.join().unwrap();
    }

    #[test]
    fn each_way_to_change_the_file_is_noticed() {
        const PATIENCE: Duration = Duration::from_secs(20);
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let (sender, events) = channel();
        let watch = KeyWatch::start(at("key"), sender, || Event::Key).unwrap();
        let noticed = |what: &str| {
            let event = events.recv_timeout(PATIENCE);
            assert!(matches!(event, Ok(Event::Key)), "{what}");
        };
        fs::write(at("key"), "a").unwrap();
        noticed("made");
        fs::write(at("new"), "b").unwrap();
        fs::rename(at("new"), at("key")).unwrap();
        noticed("replaced");
        fs::remove_file(at("key")).unwrap();
        noticed("removed");
        fs::write(at("other"), "c").unwrap();
        watch.set_path(at("other"));
        noticed("another path");
        drop(events);
    }
}
