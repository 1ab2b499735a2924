//! Watches a file through its directory, because editors replace files instead of writing them.

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

/// How often the file is looked at besides: its directory may be absent, replaced, or on a file
/// system that notifies nobody.
const GLANCE: Duration = Duration::from_secs(2);

/// A file is read when its directory was quiet for so long: editors write in several steps.
const QUIET: Duration = Duration::from_millis(10);

/// A directory that is never quiet does not put it off for longer than this.
const PATIENCE: Duration = Duration::from_millis(200);

/// Starts a thread that calls `changed` once now and then whenever the file's content differs from
/// the time before; that it can't be read (any more, or for another reason) is a difference too.
///
/// # Errors
/// The thread cannot be had.
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
        tracing::warn!("{} is looked at every {} s only: {error}", path.display(), GLANCE.as_secs());
    }
    let mut watched = None;
    let mut before = None;
    loop {
        // A directory of the same name may be another one by now.
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

/// Returns when the file should be looked at.
fn wait(events: &Receiver<notify::Result<Event>>) {
    let glance = Instant::now() + GLANCE;
    loop {
        match events.recv_timeout(glance.saturating_duration_since(Instant::now())) {
            Ok(event) if is_change(&event) => break,
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => return,
            // Without a watcher there are glances only.
            Err(RecvTimeoutError::Disconnected) => return thread::sleep(GLANCE),
        }
    }
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        match events.recv_timeout(QUIET) {
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

/// Our own reading is no change.
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

    /// The content at each call.
    fn contents(path: &Path) -> Receiver<Option<String>> {
        let (sender, receiver) = mpsc::channel();
        let watched = path.to_owned();
        watch(path.to_owned(), move || {
            let _ = sender.send(fs::read_to_string(&watched).ok());
        })
        .unwrap();
        receiver
    }

    /// The next content. A file that is written in place is empty for a moment, and may be caught so.
    fn next(contents: &Receiver<Option<String>>) -> Option<String> {
        loop {
            let content = contents.recv_timeout(Duration::from_secs(10)).unwrap();
            if content.as_deref() != Some("") {
                return content;
            }
        }
    }

    #[test]
    fn writing_replacing_and_removing_are_seen() {
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
    fn a_directory_may_come_later() {
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
    fn other_files_and_the_same_content_are_no_change() {
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
