//! Calico's objects at the API server: in the group that counts, and no more of them than this node needs.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    group::{Group, Migration, chosen},
    hash::{is_labelled, selector},
};
use crate::{
    kubernetes::{
        collection::{Objects, Selection},
        server::ApiServer,
    },
    store::{Change, Collection, Listed, Position, StoreError, StoreProblem, Version},
};

/// How often the API server is asked whether Calico has been installed since.
const ABSENCE: Duration = Duration::from_secs(600);

/// How often it is asked how far a migration is. Calico's programs stop writing meanwhile, and change over to the new
/// group after it, which takes a roll-out.
const MIGRATION: Duration = Duration::from_secs(15);

/// Every API server has these, and whoever follows Calico may list them.
const ALWAYS_THERE: &str = "/apis/wireloom.io/v1alpha1/wireloomnodes";

const MIGRATIONS: &str = "/apis/migration.projectcalico.org/v1/datastoremigrations";

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
        Self { server, kind, at: At::Unknown }
    }

    async fn list_all(&mut self) -> Result<Listed, StoreError> {
        self.at = At::Unknown;
        let Some((group, migration)) = self.choose().await? else {
            let position = self.objects(ALWAYS_THERE.into(), None).position().await?;
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

    async fn watch_after(
        &mut self,
        after: Version,
    ) -> Result<BoxStream<'static, Result<Change, StoreError>>, StoreError> {
        let again =
            StoreError { operation: format!("watch {}", self.name()), problem: StoreProblem::Compacted };
        let now = self.choose().await?;
        match self.at.clone() {
            At::Nowhere if now.is_none() => {
                let later = async move {
                    sleep(ABSENCE).await;
                    Err(again)
                };
                Ok(stream::once(later).boxed())
            }
            At::Group { group, migration, labels, can_narrow: _ } if now == Some((group, migration)) => {
                let changes = self.objects(self.path(group), labels).watch(after).await?;
                match migration {
                    Migration::Copying => Ok(changes.take_until(sleep(MIGRATION)).boxed()),
                    Migration::None | Migration::Copied => Ok(changes),
                }
            }
            _ => Err(again),
        }
    }

    /// The group that counts now; `None` without Calico.
    async fn choose(&self) -> Result<Option<(Group, Migration)>, StoreError> {
        let mut served = [false; 2];
        for (group, is_served) in [Group::V1, Group::V3].into_iter().zip(&mut served) {
            *is_served = self.server.knows(&self.path(group), &format!("look for {}", self.name())).await?;
        }
        let [v1, v3] = served;
        let mut migration = Migration::None;
        if v1 && v3 && self.server.knows(MIGRATIONS, "look for Calico's DatastoreMigrations").await? {
            let selection = selection("Calico's DatastoreMigrations", MIGRATIONS.into(), None, phase);
            let listed = Objects::new(Arc::clone(&self.server), selection).list().await?;
            migration = Migration::of(&listed.objects);
        }
        Ok(chosen(v1, v3, migration).map(|group| (group, migration)))
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

    fn watch(
        &mut self,
        after: Version,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Change, StoreError>>, StoreError>> {
        self.watch_after(after).boxed()
    }

    fn position(&mut self) -> BoxFuture<'_, Result<Position, StoreError>> {
        let path = match &self.at {
            At::Group { group, .. } => self.path(*group),
            At::Unknown | At::Nowhere => ALWAYS_THERE.into(),
        };
        let mut objects = self.objects(path, None);
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
