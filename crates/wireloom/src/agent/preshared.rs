//! The preshared key of the mesh: follows its file, and gives the key to the kernel and its hash to the planner.
//!
//! Programs that make keys, such as Rosenpass, write the file; a change reaches all peers at once. Sessions go on, and
//! the next handshake with each peer uses the new key. If the file cannot be used, the last good key stays in force.
//! Without one, nothing is planned.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::Sender,
    time::Instant,
};

use wireloom_types::{PresharedKey, PresharedKeyHash};

use super::{Agent, event::Event, key_watch::KeyWatch, log_error};
use crate::key_file;

/// The file that the mesh names.
pub(super) struct Preshared {
    events: Sender<Event>,
    file: Option<PathBuf>,
    /// Absent until a mesh names a file. It goes on when the next one names none.
    watch: Option<KeyWatch>,
}

impl Preshared {
    pub(super) fn new(events: Sender<Event>) -> Self {
        Self { events, file: None, watch: None }
    }

    fn set_watched(&mut self, path: &Path) {
        if let Some(watch) = &self.watch {
            watch.set_path(path.to_owned());
            return;
        }
        match KeyWatch::start(path.to_owned(), self.events.clone(), || Event::PresharedKey) {
            Ok(watch) => self.watch = Some(watch),
            Err(error) => tracing::warn!("changes of {} are not noticed: {error}", path.display()),
        }
    }
}

impl Agent {
    /// Follows the file that the mesh names now, if it is another one, and reads it at once.
    pub(super) fn set_preshared_key_file(&mut self, path: Option<&Path>) {
        if path == self.preshared.file.as_deref() {
            return;
        }
        self.preshared.file = path.map(Path::to_owned);
        match path {
            Some(path) => {
                self.preshared.set_watched(path);
                self.read_preshared_key();
            }
            None => {
                tracing::info!("the mesh has no preshared key any more");
                self.report.preshared_error = None;
                self.put_preshared_key_in_force(None);
            }
        }
    }

    /// Reads the file again, if the mesh names one.
    pub(super) fn read_preshared_key(&mut self) {
        let Some(path) = &self.preshared.file else { return };
        match key_file::read_preshared(path) {
            Ok(key) => {
                self.report.preshared_error = None;
                self.put_preshared_key_in_force(Some(key));
            }
            Err(error) => {
                let consequence = match self.report.preshared_key {
                    Some(_) => "the previous preshared key stays in force",
                    None => "nothing is changed until this is fixed",
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
            tracing::info!(
                "the preshared key has the hash {hash} now; the next handshake with each peer uses it"
            );
        }
        self.report.preshared_key = hash;
        self.reconciler.kernel_mut().set_preshared_key(key);
        self.reconciler.set_preshared_key(hash);
        self.due = Instant::now();
    }
}
