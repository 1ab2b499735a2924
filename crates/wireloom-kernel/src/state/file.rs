//! Files that one process writes and others read: whole at every moment, and never waited for.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

/// Bytes. A longer file is none of ours: the run file of a mesh of 100,000 nodes has 8 MiB.
const LONGEST: u64 = 64 << 20;

/// What the name of a file ends with while it is being written.
const UNFINISHED: &str = ".unfinished";

/// Reads a file that an agent wrote; `None` when there is none. It never waits, whatever is in the file's place.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when it is not a regular file of at most 64 MiB; otherwise the operating system's
/// error.
pub fn read_file(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let invalid = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata?,
    };
    // Not even opened: that waits for the other end of a FIFO, and may do anything to a device.
    if !metadata.is_file() {
        return invalid("it is not a regular file");
    }
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let mut content = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut content)?;
    if content.len() as u64 > LONGEST { invalid("it is longer than 64 MiB") } else { Ok(Some(content)) }
}

/// Replaces a file: readers see either the old file or the new one, even after a power cut. One process at a time
/// writes: the one that holds the [`AgentLock`](super::AgentLock).
///
/// # Errors
/// The operating system's error.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    // The same name each time, so that a writer that was killed leaves one file at most.
    let unfinished = with_suffix(path, UNFINISHED);
    remove_if_there(&unfinished)?;
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    File::open(directory)?.sync_all()
}

/// Removes a file that was [written atomically](write_atomically), and what a writer that was killed has left of it.
///
/// # Errors
/// The operating system's error.
pub fn remove_written(path: &Path) -> io::Result<()> {
    remove_if_there(&with_suffix(path, UNFINISHED))?;
    remove_if_there(path)
}

/// Removes a file if it exists.
///
/// # Errors
/// The operating system's error.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Renames a file to `….damaged`, or with a number if there is such a file already.
pub(super) fn move_aside(path: &Path) -> io::Result<PathBuf> {
    let names = (1..).map(|number| match number {
        1 => with_suffix(path, ".damaged"),
        number => with_suffix(path, &format!(".damaged-{number}")),
    });
    let mut free = names.filter(|name| fs::symlink_metadata(name).is_err());
    let kept = free.next().ok_or_else(|| io::Error::other("every name is taken"))?;
    fs::rename(path, &kept)?;
    Ok(kept)
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
