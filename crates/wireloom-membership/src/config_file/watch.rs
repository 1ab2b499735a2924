//! Watching a file. The watch is on its directory, because editors replace files instead of writing to them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};

/// How often the file is read even without a notification: its directory may be absent, be replaced, or lie on a file
/// system without notifications.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// How long the directory must be quiet before the file is read: editors write in several steps.
const QUIET: Duration = Duration::from_millis(10);

/// How long a directory that is never quiet can delay the reading.
const QUIET_LIMIT: Duration = Duration::from_millis(200);

/// Starts a thread that calls `changed` once at the start, and again whenever the file's content differs from the last
/// time. A file that cannot be read counts as different from one that can, and from one that fails for another reason.
///
/// # Errors
/// The operating system's, when the thread cannot be started.
pub fn watch(path: PathBuf, changed: impl FnMut() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("watch".into()).spawn(move || run(&path, changed))?;
    Ok(())
}

fn run(path: &Path, mut changed: impl FnMut()) {
    let (sender, events) = channel();
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut watcher = notify::recommended_watcher(move |event| {
        let _ = sender.send(event);
    });
    if let Err(error) = &watcher {
        let seconds = POLL_INTERVAL.as_secs();
        tracing::warn!(
            "no notifications of changes of {}; it is read every {seconds} s: {error}",
            path.display()
        );
    }
    let mut watched = None;
    let mut before = None;
    loop {
        // The directory may have been replaced by another one of the same name.
        if let Ok(watcher) = &mut watcher {
            keep_watching(watcher, directory, &mut watched);
        }
        let now = fs::read(path).map_err(|error| error.kind());
        if before.as_ref() != Some(&now) {
            before = Some(now);
            changed();
        }
        wait(&events);
    }
}

fn keep_watching(watcher: &mut RecommendedWatcher, directory: &Path, watched: &mut Option<u64>) {
    use std::os::unix::fs::MetadataExt;
    let inode = fs::metadata(directory).ok().map(|metadata| metadata.ino());
    if *watched != inode {
        let _ = watcher.unwatch(directory);
        *watched = inode.filter(|_| watcher.watch(directory, RecursiveMode::NonRecursive).is_ok());
    }
}

/// Returns when the file should be read again.
fn wait(events: &Receiver<notify::Result<Event>>) {
    let poll = Instant::now() + POLL_INTERVAL;
    loop {
        match events.recv_timeout(poll.saturating_duration_since(Instant::now())) {
            Ok(event) if is_change(&event) => break,
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => return,
            // There is no watcher: only polling is left.
            Err(RecvTimeoutError::Disconnected) => return thread::sleep(POLL_INTERVAL),
        }
    }
    let end = Instant::now() + QUIET_LIMIT;
    while Instant::now() < end {
        match events.recv_timeout(QUIET) {
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

/// Whether an event may have changed the file. Our own reading causes events too, which do not count.
fn is_change(event: &notify::Result<Event>) -> bool {
    match event {
        Ok(event) => match event.kind {
            EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
            _ => true,
        },
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Receives the file's content at each call of `changed`.
    fn contents(path: &Path) -> Receiver<Option<String>> {
        let (sender, receiver) = mpsc::channel();
        let watched = path.to_owned();
        watch(path.to_owned(), move || {
            let _ = sender.send(fs::read_to_string(&watched).ok());
        })
        .unwrap();
        receiver
    }

    /// The next content. A file that is written in place is empty for a moment and may be read then, so that is
    /// skipped.
    fn next(contents: &Receiver<Option<String>>) -> Option<String> {
        loop {
            let content = contents.recv_timeout(Duration::from_secs(10)).unwrap();
            if content.as_deref() != Some("") {
                return content;
            }
        }
    }

    #[test]
    fn writing_replacing_and_removing_the_file_are_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mesh.toml");
        let contents = contents(&path);
        assert_eq!(next(&contents), None);
        fs::write(&path, "one").unwrap();
        assert_eq!(next(&contents).as_deref(), Some("one"));
        fs::write(directory.path().join("mesh.toml.new"), "two").unwrap();
        fs::rename(directory.path().join("mesh.toml.new"), &path).unwrap();
        assert_eq!(next(&contents).as_deref(), Some("two"));
        fs::remove_file(&path).unwrap();
        assert_eq!(next(&contents), None);
    }

    #[test]
    fn the_directory_may_be_made_later() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("etc");
        let path = directory.join("mesh.toml");
        let contents = contents(&path);
        assert_eq!(next(&contents), None);
        fs::create_dir(&directory).unwrap();
        fs::write(&path, "late").unwrap();
        assert_eq!(next(&contents).as_deref(), Some("late"));
    }

    #[test]
    fn other_files_and_rewriting_the_same_content_do_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mesh.toml");
        fs::write(&path, "same").unwrap();
        let contents = contents(&path);
        assert_eq!(next(&contents).as_deref(), Some("same"));
        fs::write(directory.path().join("other"), "x").unwrap();
        fs::write(&path, "same").unwrap();
        fs::write(&path, "different").unwrap();
        assert_eq!(next(&contents).as_deref(), Some("different"));
    }
}
