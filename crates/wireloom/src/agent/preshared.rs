//! The preshared key of the mesh: follows its file, and gives the key to the kernel and its hash to the planner.
//!
//! Programs that make keys, such as Rosenpass, write the file; a change reaches all peers at once. Sessions go on, and
//! the next handshake with each peer uses the new key. If the file cannot be used, the last good key stays in force.
//! Without one, nothing is planned.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak, mpsc::Sender},
    thread,
    time::Instant,
};

use wireloom_types::{PresharedKey, PresharedKeyHash};

use super::{Agent, event::Event, key_watch::KeyWatch, log_error};
use crate::key_file;

/// The content of the file, or why there is no key in it.
pub(super) type Read = Result<PresharedKey, key_file::Error>;

/// The file that the mesh names.
pub(super) struct Preshared {
    events: Sender<Event>,
    followed: Option<Followed>,
}

struct Followed {
    path: PathBuf,
    /// The thread that follows the file ends when this does.
    _wanted: Arc<()>,
}

impl Preshared {
    pub(super) fn new(events: Sender<Event>) -> Self {
        Self { events, followed: None }
    }

    fn path(&self) -> Option<&Path> {
        self.followed.as_ref().map(|followed| followed.path.as_path())
    }
}

impl Agent {
    /// Follows the file that the mesh names now, if it is another one, and reads it at once.
    pub(super) fn set_preshared_key_file(&mut self, path: Option<&Path>) {
        if path == self.preshared.path() {
            return;
        }
        self.preshared.followed = None;
        let Some(path) = path else {
            tracing::info!("the mesh has no preshared key any more");
            self.report.preshared_error = None;
            return self.put_preshared_key_in_force(None);
        };
        let wanted = Arc::new(());
        let read = key_file::read_preshared(path);
        let follows = follow(path.to_owned(), known(&read), Arc::downgrade(&wanted), self.preshared.events.clone());
        if let Err(error) = follows {
            tracing::warn!("changes of {} are not noticed: {error}", path.display());
        }
        self.preshared.followed = Some(Followed { path: path.to_owned(), _wanted: wanted });
        self.take_preshared_key(path, read);
    }

    /// Reads the file again, if the mesh names one.
    pub(super) fn read_preshared_key(&mut self) {
        if let Some(path) = self.preshared.path().map(Path::to_owned) {
            self.take_preshared_key(&path, key_file::read_preshared(&path));
        }
    }

    /// Takes what is in the file.
    pub(super) fn take_preshared_key(&mut self, path: &Path, read: Read) {
        if self.preshared.path() != Some(path) {
            return;
        }
        match read {
            Ok(key) => {
                self.report.preshared_error = None;
                self.put_preshared_key_in_force(Some(key));
            }
            Err(error) => {
                let consequence = match self.report.preshared_key {
                    Some(_) => "the previous preshared key stays in force",
                    None => "no peer is configured until this is fixed",
                };
                self.report.preshared_error = Some(log_error(&error.to_string(), consequence));
            }
        }
    }

    fn put_preshared_key_in_force(&mut self, key: Option<PresharedKey>) {
        let hash = key.as_ref().map(PresharedKeyHash::of);
        if hash == self.report.preshared_key {
            return;
        }
        if let Some(hash) = hash {
            tracing::info!("the preshared key has the hash {hash} now; the next handshake with each peer uses it");
        }
        self.report.preshared_key = hash;
        self.reconciler.kernel_mut().set_preshared_key(key);
        self.reconciler.set_preshared_key(hash);
        self.due = Instant::now();
    }
}

/// By what a content is compared with the last one.
fn known(read: &Read) -> Result<PresharedKeyHash, String> {
    read.as_ref().map(PresharedKeyHash::of).map_err(ToString::to_string)
}

/// Starts a thread that sends every further content of the file.
fn follow(
    path: PathBuf,
    mut last: Result<PresharedKeyHash, String>,
    wanted: Weak<()>,
    events: Sender<Event>,
) -> std::io::Result<()> {
    let watch = KeyWatch::new(&path);
    let follow = move || {
        while wanted.upgrade().is_some() {
            let read = key_file::read_preshared(&path);
            let found = known(&read);
            if found != last {
                last = found;
                if events.send(Event::PresharedKey { path: path.clone(), read }).is_err() {
                    return;
                }
            }
            watch.wait();
        }
    };
    thread::Builder::new().name("preshared-key".into()).spawn(follow).map(drop)
}
