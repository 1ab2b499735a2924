//! Calico's objects at the API server: in the group that counts, and no more of them than this node needs.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    group::{Group, Migration, chosen},
    hash::{is_labelled, selector},
};
use crate::{
    kubernetes::{
        collection::{Objects, Selection},
        server::ApiServer,
    },
    store::{Changes, Collection, Listed, Position, StoreError, StoreProblem, Version},
};

/// How often the API server is asked whether Calico has been installed since.
const ABSENCE: Duration = Duration::from_secs(600);

/// A choice that is so young needs no second look.
const YOUNG: Duration = Duration::from_secs(5);

/// How often it is asked how far a migration is. Calico's programs stop writing meanwhile, and change over to the new
/// group after it, which takes a roll-out.
const MIGRATION: Duration = Duration::from_secs(15);

/// Every API server that we use has these. Without Calico, a watch of none of them tells that the server is there.
const ALWAYS_THERE: &str = "/apis/wireloom.io/v1alpha1/wireloomnodes";

/// In both versions of Calico's releases, the deprecated one last
/// (kube-controllers/pkg/apis/migration/v1beta1/types.go of Calico).
const MIGRATIONS: [&str; 2] = [
    "/apis/migration.projectcalico.org/v1/datastoremigrations",
    "/apis/migration.projectcalico.org/v1beta1/datastoremigrations",
];

/// What is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    IpPools,
    /// Those of all hosts.
    BlockAffinities,
    /// Those of this host, and as long as it has none those of others.
    BlockAffinitiesOf(String),
}

/// Objects of a kind of Calico's. There are none without Calico, which is no error.
pub(crate) struct CalicoObjects {
    server: Arc<ApiServer>,
    kind: Kind,
    at: At,
    /// When that was chosen.
    chosen: Option<Instant>,
}

/// Where they are, by the last list.
#[derive(Debug, Clone, PartialEq, Eq)]
enum At {
    Unknown,
    Nowhere,
    Group {
        group: Group,
        migration: Migration,
        labels: Option<String>,
        /// A list may now find out that fewer objects are enough.
        can_narrow: bool,
    },
}

impl CalicoObjects {
    pub(crate) fn new(server: Arc<ApiServer>, kind: Kind) -> Self {
        Self { server, kind, at: At::Unknown, chosen: None }
    }

    async fn list_all(&mut self) -> Result<Listed, StoreError> {
        self.at = At::Unknown;
        let Some((group, migration)) = self.choose().await? else {
            let position = self.nothing().position().await?;
            self.at = At::Nowhere;
            return Ok(Listed { position, objects: BTreeMap::new() });
        };
        let labels = match &self.kind {
            Kind::BlockAffinitiesOf(host) => Some(selector(host)),
            _ => None,
        };
        let mut at = At::Group { group, migration, labels: labels.clone(), can_narrow: false };
        let mut listed = self.objects(self.path(group), labels).list().await?;
        if listed.objects.is_empty() && matches!(self.kind, Kind::BlockAffinitiesOf(_)) {
            listed = self.objects(self.path(group), None).list().await?;
            // Whether Calico labels them is not known while there are none.
            let can_narrow = listed.objects.is_empty();
            if can_narrow || !listed.objects.values().all(|object| is_labelled(&object.value)) {
                at = At::Group { group, migration, labels: None, can_narrow };
            }
        }
        self.at = at;
        Ok(listed)
    }

    async fn watch_after(&mut self, after: Version) -> Result<Changes, StoreError> {
        let again =
            StoreError { operation: format!("watch {}", self.name()), problem: StoreProblem::Compacted };
        let holds = match &self.at {
            At::Unknown => return Err(again),
            At::Nowhere => ABSENCE,
            At::Group { .. } => YOUNG,
        };
        if self.chosen.is_none_or(|chosen| chosen.elapsed() >= holds) {
            let now = self.choose().await?;
            let is_same = match &self.at {
                At::Nowhere => now.is_none(),
                At::Group { group, migration, can_narrow: false, .. } => now == Some((*group, *migration)),
                _ => false,
            };
            if !is_same {
                return Err(again);
            }
        }
        let At::Group { group, migration, labels, .. } = self.at.clone() else {
            return self.nothing().watch(after).await;
        };
        let changes = self.objects(self.path(group), labels).watch(after).await?;
        match migration {
            Migration::Copying => Ok(changes.take_until(sleep(MIGRATION)).boxed()),
            Migration::None | Migration::Copied => Ok(changes),
        }
    }

    /// The group that counts now; `None` without Calico.
    async fn choose(&mut self) -> Result<Option<(Group, Migration)>, StoreError> {
        let what = format!("look for {}", self.name());
        let v1 = self.server.knows(&self.path(Group::V1), &what).await?;
        let v3 = self.server.knows(&self.path(Group::V3), &what).await;
        let is_down = |error: &StoreError| matches!(error.problem, StoreProblem::Unavailable { .. });
        let mut migrations = None;
        if v1 && v3.as_ref().map_or_else(is_down, |served| *served) {
            for path in MIGRATIONS {
                if migrations.is_none()
                    && self.server.knows(path, "look for Calico's DatastoreMigrations").await?
                {
                    migrations = Some(path);
                }
            }
        }
        let v3 = match v3 {
            // An API server of Calico's that serves a view of the old group is down.
            Err(error) if v1 && migrations.is_none() && is_down(&error) => false,
            v3 => v3?,
        };
        let mut migration = Migration::None;
        if let Some(path) = migrations {
            let selection = selection("Calico's DatastoreMigrations", path.into(), None, phase);
            let listed = Objects::new(Arc::clone(&self.server), selection).list().await?;
            migration = Migration::of(&listed.objects);
        }
        self.chosen = Some(Instant::now());
        Ok(chosen(v1, v3, migration).map(|group| (group, migration)))
    }

    /// No object, of a kind that is there.
    fn nothing(&self) -> Objects {
        let fields = Some("metadata.name=none".into());
        let selection = selection(&self.name(), ALWAYS_THERE.into(), None, essence);
        Objects::new(Arc::clone(&self.server), Selection { fields, ..selection })
    }

    fn objects(&self, path: String, labels: Option<String>) -> Objects {
        Objects::new(Arc::clone(&self.server), selection(&self.name(), path, labels, essence))
    }

    fn path(&self, group: Group) -> String {
        let (group, version) = group.group_and_version();
        let kind = if self.kind == Kind::IpPools { "ippools" } else { "blockaffinities" };
        format!("/apis/{group}/{version}/{kind}")
    }
}

impl Collection for CalicoObjects {
    fn name(&self) -> String {
        let kind = if self.kind == Kind::IpPools { "IPPools" } else { "BlockAffinities" };
        format!("Calico's {kind}")
    }

    fn list(&mut self) -> BoxFuture<'_, Result<Listed, StoreError>> {
        self.list_all().boxed()
    }

    fn watch(&mut self, after: Version) -> BoxFuture<'_, Result<Changes, StoreError>> {
        self.watch_after(after).boxed()
    }

    fn position(&mut self) -> BoxFuture<'_, Result<Position, StoreError>> {
        let mut objects = match &self.at {
            At::Group { group, .. } => self.objects(self.path(*group), None),
            At::Unknown | At::Nowhere => self.nothing(),
        };
        async move { objects.position().await }.boxed()
    }
}

fn selection(name: &str, path: String, labels: Option<String>, keep: fn(Value) -> Value) -> Selection {
    Selection { name: name.to_owned(), path, labels, fields: None, metadata_only: false, keep }
}

/// What is read of a pool or an affinity.
fn essence(mut object: Value) -> Value {
    json!({ "metadata": { "labels": object["metadata"]["labels"].take() }, "spec": object["spec"].take() })
}

/// What is read of a migration.
fn phase(mut object: Value) -> Value {
    json!({ "status": { "phase": object["status"]["phase"].take() } })
}
