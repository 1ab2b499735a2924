//! A file of Linux: opened without side effects, and listened to with inotify(7).

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};

use super::{
    error::{ReadError, SIZE_LIMIT},
    follow::Disk,
    whole::{SETTLE, Sign, Stamp},
};

/// How long signs are gathered before they are handed out together: a program that never stops writing must not cost a
/// processor.
const GATHER: Duration = Duration::from_millis(5);

/// What is listened for in the file's directory, where the name may come to mean another file.
const OF_DIRECTORY: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVE)
    .union(OF_FILE)
    // Not what happens to a file after it was removed.
    .union(AddWatchFlags::from_bits_retain(libc::IN_EXCL_UNLINK))
    .union(AddWatchFlags::IN_ONLYDIR);

/// What is listened for at the file itself, which may lie elsewhere and be reached by links.
const OF_FILE: AddWatchFlags = AddWatchFlags::IN_MODIFY.union(AddWatchFlags::IN_CLOSE_WRITE);

/// The file at a path.
#[derive(Debug)]
pub(super) struct Linux {
    path: PathBuf,
    inotify: Option<Inotify>,
    /// The watch on the directory, and the directory's inode.
    directory: Option<(WatchDescriptor, u64)>,
    /// The watch on the file that was opened last.
    file: Option<WatchDescriptor>,
    /// What was opened last, with `O_PATH`.
    opened: Option<File>,
    /// Signs that were seen outside of [`Disk::wait`].
    waiting: Vec<Sign>,
}

impl Linux {
    pub(super) fn new(path: PathBuf) -> Self {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .inspect_err(|error| {
                tracing::warn!("no notifications of changes of {}; it is polled: {error}", path.display());
            })
            .ok();
        Self { path, inotify, directory: None, file: None, opened: None, waiting: Vec::new() }
    }

    /// Watches the directory. It may have been replaced by another one of the same name.
    fn watch_directory(&mut self) {
        let Some(inotify) = &self.inotify else { return };
        let directory = match self.path.parent() {
            Some(directory) if directory.as_os_str().is_empty() => Path::new("."),
            Some(directory) => directory,
            None => Path::new("/"),
        };
        let inode = fs::metadata(directory).ok().map(|metadata| metadata.ino());
        if self.directory.map(|(_, inode)| inode) == inode {
            return;
        }
        if let Some((old, _)) = self.directory.take() {
            let _ = inotify.rm_watch(old);
            self.waiting.push(Sign::Lost);
        }
        let watch = inotify.add_watch(directory, OF_DIRECTORY).ok();
        self.directory = watch.zip(inode);
    }

    /// Watches the file that this descriptor stands for, and no other any more.
    fn watch_file(&mut self, file: Option<&File>) {
        let Some(inotify) = &self.inotify else { return };
        // The same file has the same watch.
        let watch = file.and_then(|file| inotify.add_watch(&*descriptor_path(file), OF_FILE).ok());
        if let Some(old) = self.file.filter(|old| Some(*old) != watch) {
            let _ = inotify.rm_watch(old);
        }
        self.file = watch;
    }

    /// What an event says about the file.
    fn sign(&mut self, event: &InotifyEvent) -> Option<Sign> {
        let has = |flag| event.mask.intersects(flag);
        if has(AddWatchFlags::IN_Q_OVERFLOW) {
            return Some(Sign::Lost);
        }
        if Some(event.wd) == self.file {
            if has(AddWatchFlags::IN_IGNORED) {
                self.file = None;
            }
            return content_sign(event);
        }
        if Some(event.wd) != self.directory.map(|(watch, _)| watch) {
            return None;
        }
        if has(AddWatchFlags::IN_IGNORED) {
            self.directory = None;
            return Some(Sign::Lost);
        }
        if event.name.as_deref() != self.path.file_name() {
            return has(AddWatchFlags::IN_MOVED_TO).then_some(Sign::NeighbourRenamed);
        }
        let sign = if has(AddWatchFlags::IN_MOVED_TO) {
            Sign::Replaced
        } else if has(AddWatchFlags::IN_CREATE) {
            match fs::symlink_metadata(&self.path) {
                Ok(made) if made.is_symlink() || made.nlink() > 1 => Sign::Replaced,
                _ => Sign::Created,
            }
        } else if has(AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM) {
            Sign::Removed
        } else {
            return content_sign(event);
        };
        // What happens to the file of before no longer matters.
        self.watch_file(None);
        Some(sign)
    }

    fn error(&self, error: &io::Error) -> ReadError {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        ReadError::System { path: self.path.clone(), errno }
    }
}

impl Disk for Linux {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wait(&mut self, limit: Duration) -> Vec<Sign> {
        let mut signs = std::mem::take(&mut self.waiting);
        if self.inotify.is_none() {
            thread::sleep(limit);
        }
        let end = Instant::now() + limit;
        while signs.is_empty() {
            let Some(inotify) = &self.inotify else { break };
            let left = end.saturating_duration_since(Instant::now());
            // Rounded up, or the last millisecond would be spent polling.
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => break,
                Ok(_) | Err(_) => thread::sleep(GATHER),
            }
            let Some(inotify) = &self.inotify else { break };
            let mut events = Vec::new();
            while let Ok(more) = inotify.read_events() {
                events.extend(more);
            }
            signs.extend(events.iter().filter_map(|event| self.sign(event)));
        }
        signs
    }

    fn open(&mut self) -> Result<(Stamp, Duration), ReadError> {
        self.opened = None;
        self.watch_directory();
        let opened = open_path(&self.path).map_err(|error| self.error(&error))?;
        let kind = opened.metadata().map_err(|error| self.error(&error))?.file_type();
        if !kind.is_file() {
            self.watch_file(None);
            return Err(ReadError::NotAFile { path: self.path.clone(), kind: kind_name(kind) });
        }
        // The stamp is taken after the watch has begun: what changes after the stamp is heard.
        self.watch_file(Some(&opened));
        let metadata = opened.metadata().map_err(|error| self.error(&error))?;
        if metadata.len() > SIZE_LIMIT {
            return Err(ReadError::TooBig { path: self.path.clone(), size: metadata.len() });
        }
        let stamp = stamp(&metadata);
        let real = fs::read_link(descriptor_path(&opened));
        let age = if real.is_ok_and(|real| is_published_whole(&real)) { SETTLE } else { age(stamp) };
        self.opened = Some(opened);
        Ok((stamp, age))
    }

    fn read(&mut self) -> Result<(Vec<u8>, Stamp), ReadError> {
        let Some(opened) = &self.opened else { return Err(self.error(&Errno::EBADF.into())) };
        let read = || {
            // O_NONBLOCK: some files of /proc and tracefs call themselves regular, and block all the same.
            let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
            let file =
                OpenOptions::new().read(true).custom_flags(flags.bits()).open(descriptor_path(opened))?;
            let mut content = Vec::new();
            (&file).take(SIZE_LIMIT + 1).read_to_end(&mut content)?;
            Ok((content, stamp(&file.metadata()?)))
        };
        let (content, after) = read().map_err(|error: io::Error| self.error(&error))?;
        let size = content.len() as u64;
        if size > SIZE_LIMIT {
            return Err(ReadError::TooBig { path: self.path.clone(), size });
        }
        Ok((content, after))
    }

    fn unfinished(&self) -> ReadError {
        ReadError::Unfinished { path: self.path.clone() }
    }

    fn changes_are_silent(&self) {
        tracing::debug!(
            "changes of {} are not announced, as on a network file system; it is read when it has not changed for a \
             while",
            self.path.display()
        );
    }
}

/// What an event of the file itself says about its content.
fn content_sign(event: &InotifyEvent) -> Option<Sign> {
    if event.mask.intersects(AddWatchFlags::IN_MODIFY) {
        Some(Sign::Written)
    } else if event.mask.intersects(AddWatchFlags::IN_CLOSE_WRITE) {
        Some(Sign::Closed)
    } else {
        None
    }
}

/// Opens whatever is at a path just enough to ask what it is (open(2), `O_PATH`): no FIFO blocks, no device starts.
fn open_path(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path)
}

/// Whether a file, by its path without links, belongs to a volume of Kubernetes, such as a ConfigMap. The kubelet
/// writes all files of one into a new directory, `..TIMESTAMP`, before the link `..data` leads there
/// (`pkg/volume/util/atomic_writer.go`). So they are finished, and a new container need not wait for them to settle.
fn is_published_whole(real: &Path) -> bool {
    let directory = real.parent().and_then(Path::file_name);
    directory.is_some_and(|name| name.as_encoded_bytes().starts_with(b".."))
}

/// The path that leads to what is open, whatever has become of its name.
fn descriptor_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn kind_name(kind: fs::FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_block_device() {
        "a block device"
    } else {
        "something else"
    }
}

fn stamp(metadata: &Metadata) -> Stamp {
    Stamp {
        inode: (metadata.dev(), metadata.ino()),
        size: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }
}

/// The time since a stamp's last change, by the clock of the wall; zero when that lies in the future.
fn age(stamp: Stamp) -> Duration {
    let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(stamp.changed.0), u32::try_from(stamp.changed.1))
    else {
        return Duration::ZERO;
    };
    let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    changed.elapsed().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_kubernetes_volumes_are_published_whole() {
        for (path, expected) in [
            ("/etc/wireloom/..2026_11_28_17_00_00.123456789/agent.toml", true),
            ("/etc/wireloom/agent.toml", false),
            ("/etc/wireloom/..agent.toml", false),
            ("/etc/..wireloom/conf/agent.toml", false),
            ("/agent.toml", false),
        ] {
            assert_eq!(is_published_whole(Path::new(path)), expected, "{path}");
        }
    }
}
