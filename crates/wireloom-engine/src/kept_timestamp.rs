//! Keeps, across restarts, what the timestamps of our handshakes have reached: peers refuse earlier ones, and so would
//! ignore us once the clock was set back. The file has one line, the public key that the timestamps belong to and the
//! seconds since the Unix epoch:
//!
//! ```text
//! 6YyJ8hm3h0ySUXUQeQZxnHSUDkmqZUz5LTo9s1e0NxA= 1790000128
//! ```

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process,
    sync::mpsc::{Receiver, Sender, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use wireloom_proto::{Device, Now, UnixTime};
use wireloom_types::PublicKey;

use crate::directory::create_directory;

/// The file of one device. A thread writes it, because a disk may take long.
pub(crate) struct KeptTimestamp {
    path: PathBuf,
    /// Whose timestamps are kept.
    own: Option<PublicKey>,
    /// What the file has, or will have soon.
    kept: Option<UnixTime>,
    /// What the device's timestamps had reached when it was last asked what to keep.
    reached: Option<UnixTime>,
    contents: Sender<String>,
    writer: JoinHandle<()>,
}

/// What the log says when the file cannot be used.
pub(crate) fn complaint(directory: &Path, error: &io::Error) -> String {
    format!(
        "cannot keep the time of the last handshake in {}: {error}; if the clock is set back, peers ignore this device \
         after a restart",
        directory.display()
    )
}

impl KeptTimestamp {
    /// The file of this interface, in a directory that is made if it is not there.
    ///
    /// # Errors
    /// When the directory cannot be made, or others can put files in it: they could make peers ignore us for ever.
    pub(crate) fn open(directory: &Path, interface: &str) -> io::Result<Self> {
        create_directory(directory)?;
        let path = directory.join(format!("{interface}.timestamp"));
        let (contents, waiting) = channel();
        let written = path.clone();
        let writer =
            thread::Builder::new().name("timestamp".into()).spawn(move || write_all(&written, &waiting))?;
        Ok(Self { path, own: None, kept: None, reached: None, contents, writer })
    }

    /// Goes on where the timestamps of this key ended, once it is the device's. With another key they begin anew.
    pub(crate) fn take_up(&mut self, own: PublicKey, device: &mut Device, now: Now) {
        if self.own == Some(own) {
            return;
        }
        self.own = Some(own);
        self.kept = read(&self.path, &own).unwrap_or_else(|error| {
            tracing::warn!("cannot read {}: {error}; handshakes go by the clock", self.path.display());
            None
        });
        if let Some(kept) = self.kept {
            device.continue_timestamps_after(kept);
        }
        self.keep(device.timestamp_to_keep(now));
    }

    /// Goes on with the timestamps of a device that was handed over: it knows itself what they have reached.
    pub(crate) fn go_on(&mut self, own: PublicKey, device: &Device, now: Now) {
        self.own = Some(own);
        self.kept = read(&self.path, &own).unwrap_or_default();
        self.keep(device.timestamp_to_keep(now));
    }

    /// Keeps what the device's timestamps have reached, and will reach soon.
    pub(crate) fn follow(&mut self, device: &Device, now: Now) {
        let reached = device.timestamp_reached();
        if reached != self.reached {
            self.reached = reached;
            self.keep(device.timestamp_to_keep(now));
        }
    }

    fn keep(&mut self, time: UnixTime) {
        if self.kept.is_none_or(|kept| kept < time) {
            self.kept = Some(time);
            self.write(time);
        }
    }

    fn write(&self, time: UnixTime) {
        if let Some(own) = self.own {
            // It fails when the thread has panicked.
            let _ = self.contents.send(format!("{own} {}\n", time.since_epoch().as_secs()));
        }
    }

    /// Keeps what the timestamps have reached and no more, because the device has ended: whatever is next to use the
    /// key may go by the clock. Waits until it is written.
    pub(crate) fn finish(self, device: &Device) {
        match device.timestamp_reached() {
            Some(reached) => self.write(reached),
            None if self.own.is_some() => drop(self.contents.send(String::new())),
            None => {}
        }
        drop(self.contents);
        let _panicked = self.writer.join();
    }
}

/// Writes what comes, only the last one when several wait. An empty content removes the file.
fn write_all(path: &Path, contents: &Receiver<String>) {
    let mut failed = false;
    while let Ok(first) = contents.recv() {
        let content = contents.try_iter().last().unwrap_or(first);
        let outcome = if content.is_empty() { remove_if_there(path) } else { write(path, &content) };
        if let Err(error) = &outcome
            && !failed
        {
            tracing::warn!(
                "cannot keep the time of the last handshake in {}: {error}; if the clock is set back, peers ignore \
                 this device after a restart",
                path.display()
            );
        }
        failed = outcome.is_err();
    }
}

/// Replaces the file: it is whole at every moment, even after a power cut.
fn write(path: &Path, content: &str) -> io::Result<()> {
    // A process that hands the device over may still write.
    let unfinished = path.with_extension(format!("timestamp.{}.unfinished", process::id()));
    remove_if_there(&unfinished)?;
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What was kept of this key; `None` when nothing was, or of another key.
fn read(path: &Path, own: &PublicKey) -> io::Result<Option<UnixTime>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path);
    let file = match file {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut content = String::new();
    file.take(256).read_to_string(&mut content)?;
    let parsed = content
        .strip_suffix('\n')
        .and_then(|line| line.split_once(' '))
        .and_then(|(key, seconds)| Some((PublicKey::from_base64(key).ok()?, seconds.parse().ok()?)));
    match parsed {
        Some((key, seconds)) if key == *own => Ok(Some(UnixTime::from_epoch(Duration::from_secs(seconds)))),
        Some(_) => Ok(None),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "it is damaged")),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        os::unix::fs::{MetadataExt, PermissionsExt},
    };

    use tempfile::TempDir;
    use wireloom_proto::Instant;
    use wireloom_types::PrivateKey;

    use super::*;

    const NOON: u64 = 1_790_000_000;

    fn at(seconds: u64) -> Now {
        Now { monotonic: Instant::from_nanos(0), unix: UnixTime::from_epoch(Duration::from_secs(seconds)) }
    }

    fn key(number: u8) -> PrivateKey {
        PrivateKey::from_bytes([number; 32])
    }

    /// A device with this key and a peer, and its file.
    fn start(directory: &TempDir, number: u8, now: Now) -> (Device, KeptTimestamp) {
        let mut device = Device::new(&[number; 32]);
        device.configure(now, |configuration| {
            configuration.set_private_key(Some(key(number)));
            let mut peer = configuration.add_peer(key(9).public_key()).expect("a peer");
            peer.set_endpoint(([192, 0, 2, 1], 51820).into());
        });
        let mut file = KeptTimestamp::open(directory.path(), "wg0").expect("a file");
        file.take_up(key(number).public_key(), &mut device, now);
        (device, file)
    }

    /// Sends an initiation.
    fn greet(device: &mut Device, file: &mut KeptTimestamp, now: Now) {
        let peer = device.peer(&key(9).public_key()).expect("it was added").id;
        device.begin_handshake(now, peer);
        file.follow(device, now);
        assert!(device.poll_transmit(now).is_some());
    }

    fn content(directory: &TempDir) -> String {
        fs::read_to_string(directory.path().join("wg0.timestamp")).unwrap_or_default()
    }

    /// Ends as a process that is killed does, but for what was written before.
    fn kill(file: KeptTimestamp) {
        drop(file.contents);
        file.writer.join().expect("no panic");
    }

    #[test]
    fn a_device_that_ended_leaves_what_it_reached_and_one_that_was_killed_what_it_might_have() {
        let directory = tempfile::tempdir().expect("a directory");
        let own = key(1).public_key();
        let (mut device, mut file) = start(&directory, 1, at(NOON));
        greet(&mut device, &mut file, at(NOON));
        file.finish(&device);
        assert_eq!(content(&directory), format!("{own} {NOON}\n"));
        let mode = fs::metadata(directory.path().join("wg0.timestamp")).expect("a file").mode();
        assert_eq!(mode & 0o777, 0o600);

        let (mut device, mut file) = start(&directory, 1, at(NOON + 10));
        greet(&mut device, &mut file, at(NOON + 10));
        kill(file);
        let kept = device.timestamp_to_keep(at(NOON + 10));
        assert!(kept.since_epoch() >= Duration::from_secs(NOON + 10 + 128));
        assert_eq!(content(&directory), format!("{own} {}\n", kept.since_epoch().as_secs()));
    }

    #[test]
    fn the_next_device_goes_on_from_there_with_a_clock_that_was_set_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut device, mut file) = start(&directory, 1, at(NOON));
        greet(&mut device, &mut file, at(NOON));
        file.finish(&device);
        let (mut device, mut file) = start(&directory, 1, at(NOON - 3600));
        greet(&mut device, &mut file, at(NOON - 3600));
        assert_eq!(device.timestamp_reached(), Some(at(NOON + 1).unix));
        file.finish(&device);
        let own = key(1).public_key();
        assert_eq!(content(&directory), format!("{own} {}\n", NOON + 1));
    }

    #[test]
    fn another_key_begins_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut device, mut file) = start(&directory, 1, at(NOON));
        greet(&mut device, &mut file, at(NOON));
        file.finish(&device);
        let (mut device, mut file) = start(&directory, 2, at(NOON - 3600));
        greet(&mut device, &mut file, at(NOON - 3600));
        assert_eq!(device.timestamp_reached(), Some(at(NOON - 3600).unix));
        file.finish(&device);
        assert_eq!(content(&directory), format!("{} {}\n", key(2).public_key(), NOON - 3600));
    }

    #[test]
    fn a_damaged_file_is_replaced_and_one_of_a_device_that_sent_nothing_goes() {
        let directory = tempfile::tempdir().expect("a directory");
        for damaged in ["", "x", "x y\n", "\0", &format!("{} 17", key(1).public_key()), &"9".repeat(10_000)] {
            fs::write(directory.path().join("wg0.timestamp"), damaged).expect("written");
            let (_, file) = start(&directory, 1, at(NOON));
            kill(file);
            assert!(content(&directory).starts_with(&key(1).public_key().to_string()), "{damaged}");
        }
        fs::remove_file(directory.path().join("wg0.timestamp")).expect("removed");
        let (device, file) = start(&directory, 1, at(NOON));
        file.finish(&device);
        assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 0);
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).expect("changed");
        let error = KeptTimestamp::open(directory.path(), "wg0").err().expect("it is refused");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}
