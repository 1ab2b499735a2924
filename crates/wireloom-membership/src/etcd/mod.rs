//! Membership from etcd: records below `/wireloom/v1/MESH`.

use std::{io, path::PathBuf};

use wireloom_plan::cluster::Cluster;

use crate::{Error, Event, Following, Start};

mod client;
mod credentials;
mod layout;
mod own_record;
mod problem;
mod records;
mod watch;

pub use self::{own_record::OwnEntry, records::Records};

/// Where etcd is, and who we are there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// URLs, `http://` or `https://`; at least one.
    pub endpoints: Vec<String>,
    /// The name of the mesh.
    pub mesh: String,
    /// Certificates that the servers' are checked with; without it, the system's are used.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate.
    pub cert_file: Option<PathBuf>,
    /// Its private key.
    pub key_file: Option<PathBuf>,
    /// The user.
    pub username: Option<String>,
    /// The file with the user's password.
    pub password_file: Option<PathBuf>,
}

/// The records of the mesh, and the place of the record of this node among them. Nothing is connected yet.
#[must_use]
pub fn open(settings: &Settings, node: &str) -> (Records, OwnEntry) {
    let client = client::Client::new(settings.clone());
    (Records::new(client.clone()), OwnEntry::new(client, node))
}

/// Reads the mesh once.
pub(crate) fn read(settings: &Settings) -> Result<Cluster, Error> {
    let _ = settings;
    unimplemented!()
}

/// Follows the mesh.
pub(crate) fn follow(
    settings: &Settings,
    start: Start,
    deliver: impl Fn(Event) + Send + 'static,
) -> io::Result<Following> {
    let _ = (settings, start, deliver);
    unimplemented!()
}
