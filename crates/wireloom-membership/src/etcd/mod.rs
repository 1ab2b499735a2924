//! Membership from etcd: records below `/wireloom/v1/MESH`.

use std::{io, path::PathBuf};

use futures::FutureExt as _;
use wireloom_plan::cluster::Cluster;

use self::{client::Client, entries::Entries, own_record::OwnEntry, records::Records};
use crate::{
    Error, Event, Following, Start,
    record::Spelling,
    source::{self, Connect, Followed, Stores},
    store_address,
};

mod client;
mod credentials;
mod entries;
mod entry;
mod layout;
mod own_record;
mod problem;
mod records;
#[cfg(all(test, feature = "functional"))]
pub(crate) mod tests;
mod watch;

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
fn open(settings: &Settings, node: &str) -> (Records, OwnEntry) {
    let client = Client::new(settings.clone());
    (Records::new(client.clone()), OwnEntry::new(client, node))
}

/// Reads the mesh once.
pub(crate) fn read(settings: &Settings) -> Result<Cluster, Error> {
    source::read(connect(settings))
}

/// Follows the mesh.
pub(crate) fn follow(
    settings: &Settings,
    start: Start,
    deliver: impl Fn(Event) + Send + 'static,
) -> io::Result<Following> {
    source::follow(start, deliver, connect(settings))
}

/// What the source's thread connects with.
fn connect(settings: &Settings) -> impl Connect + Send + 'static {
    let settings = settings.clone();
    move |node: &str| {
        let (records, own_entry) = open(&settings, node);
        let settings = settings.clone();
        async move {
            Ok(Stores {
                spelling: Spelling::Snake,
                followed: vec![Followed::new(records, Entries::new(&settings.mesh))],
                own_record: Some(Box::new(own_entry)),
                addresses: store_address::of_urls(&settings.endpoints).await,
                reports: None,
            })
        }
        .boxed()
    }
}
