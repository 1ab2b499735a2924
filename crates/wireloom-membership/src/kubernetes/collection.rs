//! Objects of a kind as a [`Collection`]: listed in pages, watched with bookmarks.
//!
//! Lists name no version, so the server asks etcd's quorum and not its own cache: what is listed is never older than
//! what any server said before. All pages are those of one version.

use std::sync::Arc;

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use kube::{
    api::{ListParams, WatchParams},
    core::Status,
};
use serde_json::Value;

use super::{
    lines::Lines,
    server::{ApiServer, Call, refusal},
};
use crate::store::{
    Change, Changes, Collection, Listed, Object, Position, StoreError, StoreProblem, Version,
};

/// Objects in one answer. It is what Kubernetes' own clients ask for.
const PAGE: u32 = 500;

/// How long the server keeps a watch open: up to five minutes, which is the library's bound.
const WATCH_SECONDS: std::ops::Range<u32> = 200..290;

/// Which objects: all of a kind, or those that the selectors choose.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    /// What they are in messages, such as "the WireloomNodes".
    pub(crate) name: String,
    /// Where they are, such as `/apis/wireloom.io/v1alpha1/wireloomnodes`.
    pub(crate) path: String,
    /// A label selector; without one, all.
    pub(crate) labels: Option<String>,
    /// A field selector; without one, all.
    pub(crate) fields: Option<String>,
    /// Whether only their metadata are sent.
    pub(crate) metadata_only: bool,
    /// What of an object is kept: [`Object::value`].
    pub(crate) keep: fn(Value) -> Value,
}

/// The objects of a selection at a server.
pub(crate) struct Objects {
    server: Arc<ApiServer>,
    selection: Selection,
}

impl Objects {
    pub(crate) fn new(server: Arc<ApiServer>, selection: Selection) -> Self {
        Self { server, selection }
    }

    async fn page(&self, limit: u32, next: Option<String>) -> Result<Page, StoreError> {
        let Selection { path, labels, fields, .. } = &self.selection;
        let params = ListParams {
            label_selector: labels.clone(),
            field_selector: fields.clone(),
            limit: Some(limit),
            continue_token: next,
            ..ListParams::default()
        };
        let call =
            if self.selection.metadata_only { Call::ListMetadata(&params) } else { Call::List(&params) };
        let what = format!("list {}", self.selection.name);
        let answer = self.server.ask(path, call, &what).await?;
        Page::read(answer).ok_or_else(|| StoreError {
            operation: what,
            problem: StoreProblem::Nonsense { why: "the answer is no list with a version".into() },
        })
    }

    async fn list_all(&self) -> Result<Listed, StoreError> {
        let first = self.page(PAGE, None).await?;
        let mut listed = Listed { position: first.position(), objects: Default::default() };
        let mut page = first;
        loop {
            let objects = page.items.into_iter().filter_map(|item| self.object(item));
            listed.objects.extend(objects.map(|(name, object, _)| (name, object)));
            match page.next {
                Some(next) => page = self.page(PAGE, Some(next)).await?,
                None => return Ok(listed),
            }
        }
    }

    async fn watch_after(&self, after: Version) -> Result<Changes, StoreError> {
        let Selection { path, labels, fields, keep, .. } = self.selection.clone();
        let params = WatchParams {
            label_selector: labels,
            field_selector: fields,
            // Spread by the version: watches that a cut ended together do not end together again.
            timeout: Some(
                WATCH_SECONDS.start + (after.0 % u64::from(WATCH_SECONDS.end - WATCH_SECONDS.start)) as u32,
            ),
            ..WatchParams::default()
        };
        let call = if self.selection.metadata_only {
            Call::WatchMetadata(&params, after.0)
        } else {
            Call::Watch(&params, after.0)
        };
        let (body, operation) =
            self.server.watch(&path, call, &format!("watch {}", self.selection.name)).await?;
        let lines = Lines::new(body);
        let changes = stream::unfold(Some(lines), move |lines| {
            let operation = operation.clone();
            async move {
                let mut lines = lines?;
                let change = match lines.next().await? {
                    Ok(line) => change(&line, keep),
                    Err(why) => Err(StoreProblem::Unavailable { why, retry_after: None }),
                };
                match change {
                    Ok(change) => Some((Ok(change), Some(lines))),
                    Err(problem) => Some((Err(StoreError { operation, problem }), None)),
                }
            }
        });
        Ok(changes.boxed())
    }

    fn object(&self, item: Value) -> Option<(String, Object, Version)> {
        object(item, self.selection.keep)
    }
}

impl Collection for Objects {
    fn name(&self) -> String {
        self.selection.name.clone()
    }

    fn list(&mut self) -> BoxFuture<'_, Result<Listed, StoreError>> {
        self.list_all().boxed()
    }

    fn watch(&mut self, after: Version) -> BoxFuture<'_, Result<Changes, StoreError>> {
        self.watch_after(after).boxed()
    }

    fn position(&mut self) -> BoxFuture<'_, Result<Position, StoreError>> {
        async { Ok(self.page(1, None).await?.position()) }.boxed()
    }
}

/// A part of a list.
struct Page {
    version: Version,
    items: Vec<Value>,
    /// What continues the list.
    next: Option<String>,
}

impl Page {
    fn read(mut answer: Value) -> Option<Self> {
        let metadata = answer.get("metadata")?;
        let version = version(metadata)?;
        let next = metadata.get("continue").and_then(Value::as_str).filter(|next| !next.is_empty());
        let next = next.map(str::to_owned);
        let items = match answer.get_mut("items").map(Value::take) {
            // Go writes an empty list as null where it never was one.
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => return None,
        };
        Some(Self { version, items, next })
    }

    fn position(&self) -> Position {
        Position { store: None, version: self.version }
    }
}

/// What a line of a watch says.
fn change(line: &[u8], keep: fn(Value) -> Value) -> Result<Change, StoreProblem> {
    let nonsense = |why: &str| StoreProblem::Nonsense { why: format!("the watch says {why}") };
    let mut event: Value =
        serde_json::from_slice(line).map_err(|error| nonsense(&format!("what is no JSON ({error})")))?;
    let item = event.get_mut("object").map(Value::take).unwrap_or_default();
    let kind = event.get("type").and_then(Value::as_str).unwrap_or_default();
    let unnamed = || nonsense("something about an object without a name and a version");
    match kind {
        "ADDED" | "MODIFIED" => {
            let (name, object, version) = object(item, keep).ok_or_else(unnamed)?;
            Ok(Change::Put(name, object, version))
        }
        "DELETED" => {
            let (name, _, version) = object(item, keep).ok_or_else(unnamed)?;
            Ok(Change::Gone(name, version))
        }
        "BOOKMARK" => item.get("metadata").and_then(version).map(Change::Progress).ok_or_else(unnamed),
        "ERROR" => Err(serde_json::from_value::<Status>(item)
            .map_or_else(|_| nonsense("that it failed, but not why"), |status| refusal(&status, None))),
        other => Err(nonsense(&format!("{other:?}, which is no event"))),
    }
}

/// An object with its name and version. Its managed fields, which only writers read, are dropped here.
fn object(mut item: Value, keep: fn(Value) -> Value) -> Option<(String, Object, Version)> {
    let metadata = item.get_mut("metadata")?.as_object_mut()?;
    metadata.remove("managedFields");
    let text = |field: &str| metadata.get(field).and_then(Value::as_str);
    let name = text("name").filter(|name| !name.is_empty())?.to_owned();
    let version = text("resourceVersion").and_then(|version| version.parse().ok()).map(Version)?;
    let (uid, born) = (text("uid").unwrap_or_default().to_owned(), born(text("creationTimestamp")));
    Some((name, Object { value: keep(item).to_string(), born, uid }, version))
}

/// A resource version. It has been opaque by its definition, but a number in every server: since 1.35 it is one by
/// definition, too.
fn version(metadata: &Value) -> Option<Version> {
    metadata.get("resourceVersion")?.as_str()?.parse().ok().map(Version)
}

/// Seconds from 1970 to this time; one that cannot be read is no old claim.
fn born(timestamp: Option<&str>) -> u64 {
    let time = timestamp.and_then(|text| text.parse::<k8s_openapi::jiff::Timestamp>().ok());
    time.and_then(|time| time.as_second().try_into().ok()).unwrap_or(u64::MAX)
}
