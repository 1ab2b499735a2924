//! The objects of the twin, and how they came to be.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// All objects at one version, with the history that is kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct Objects {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
    history: Vec<Logged>,
    /// The changes up to this version are forgotten.
    compacted: u64,
    /// Lists that have been begun, by their versions.
    lists: BTreeMap<(String, u64), Vec<Value>>,
    uids: u64,
}

/// A change.
#[derive(Debug, Clone)]
pub(super) struct Logged {
    pub(super) version: u64,
    pub(super) path: String,
    pub(super) kind: &'static str,
    pub(super) object: Value,
}

/// Why something is not done, as the code of the answer.
pub(super) type Refusal = u16;

impl Objects {
    pub(super) fn new(version: u64) -> Self {
        Self { version, ..Self::default() }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn get(&self, path: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(path.to_owned(), name.to_owned()))
    }

    pub(super) fn all(&self, path: &str) -> impl Iterator<Item = (&String, &Value)> {
        self.objects
            .iter()
            .filter(move |((there, _), _)| there == path)
            .map(|((_, name), object)| (name, object))
    }

    /// Makes or changes an object, whatever version it says.
    pub(super) fn put(&mut self, path: &str, mut object: Value) {
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        self.version += 1;
        let metadata = object["metadata"].as_object_mut().unwrap();
        if metadata.get("managedFields") == Some(&json!([{}])) {
            metadata.remove("managedFields");
        }
        let before = self.objects.get(&(path.to_owned(), name.clone()));
        if let Some(before) = before {
            metadata.insert("uid".into(), before["metadata"]["uid"].clone());
            metadata.insert("creationTimestamp".into(), before["metadata"]["creationTimestamp"].clone());
        } else {
            self.uids += 1;
            metadata.insert("uid".into(), format!("uid-{}", self.uids).into());
            // Objects are a minute apart from each other, in the order in which they were made.
            let (hours, minutes) = (self.uids / 60 % 24, self.uids % 60);
            metadata
                .insert("creationTimestamp".into(), format!("2026-01-01T{hours:02}:{minutes:02}:00Z").into());
            metadata.insert("managedFields".into(), json!([{"manager": "wireloom", "operation": "Update"}]));
        }
        metadata.insert("resourceVersion".into(), self.version.to_string().into());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.history.push(Logged { version: self.version, path: path.into(), kind, object: object.clone() });
        self.objects.insert((path.into(), name), object);
    }

    pub(super) fn remove(&mut self, path: &str, name: &str) -> Option<Value> {
        let mut object = self.objects.remove(&(path.into(), name.into()))?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let logged =
            Logged { version: self.version, path: path.into(), kind: "DELETED", object: object.clone() };
        self.history.push(logged);
        Some(object)
    }

    pub(super) fn create(&mut self, path: &str, object: Value) -> Result<Value, Refusal> {
        let name = object["metadata"]["name"].as_str().ok_or(422_u16)?.to_owned();
        if self.get(path, &name).is_some() {
            return Err(409);
        }
        self.put(path, object);
        Ok(self.get(path, &name).unwrap().clone())
    }

    pub(super) fn replace(&mut self, path: &str, name: &str, object: Value) -> Result<Value, Refusal> {
        let before = self.get(path, name).ok_or(404_u16)?;
        let given = &object["metadata"]["resourceVersion"];
        if !given.is_null() && *given != before["metadata"]["resourceVersion"] {
            return Err(409);
        }
        self.put(path, object);
        Ok(self.get(path, name).unwrap().clone())
    }

    /// Applies a JSON merge patch (RFC 7396).
    pub(super) fn merge(&mut self, path: &str, name: &str, patch: &Value) -> Result<Value, Refusal> {
        let mut object = self.get(path, name).ok_or(404_u16)?.clone();
        merge(&mut object, patch);
        self.put(path, object);
        Ok(self.get(path, name).unwrap().clone())
    }

    /// A page of a list: the version of the list, the objects, and what continues it.
    pub(super) fn page(
        &mut self,
        path: &str,
        matches: impl Fn(&Value) -> bool,
        limit: usize,
        next: Option<&str>,
    ) -> Result<(u64, Vec<Value>, Option<String>), Refusal> {
        let (version, skip) = match next {
            None => (self.version, 0),
            Some(next) => {
                let (version, skip) = next.split_once('-').ok_or(400_u16)?;
                (version.parse().map_err(|_| 400_u16)?, skip.parse().map_err(|_| 400_u16)?)
            }
        };
        if version < self.compacted {
            return Err(410);
        }
        let key = (path.to_owned(), version);
        if next.is_none() {
            let all = self.all(path).map(|(_, object)| object).filter(|object| matches(object)).cloned();
            let all = all.collect();
            self.lists.insert(key.clone(), all);
        }
        let all = self.lists.get(&key).ok_or(410_u16)?;
        let items: Vec<Value> = all.iter().skip(skip).take(limit).cloned().collect();
        let next = (skip + items.len() < all.len()).then(|| format!("{version}-{}", skip + items.len()));
        if next.is_none() {
            self.lists.remove(&key);
        }
        Ok((version, items, next))
    }

    /// The changes of a collection after a version.
    pub(super) fn since(&self, path: &str, version: u64) -> Result<Vec<Logged>, Refusal> {
        if version < self.compacted {
            return Err(410);
        }
        let first = self.history.partition_point(|logged| logged.version <= version);
        Ok(self.history[first..].iter().filter(|logged| logged.path == path).cloned().collect())
    }

    pub(super) fn compact(&mut self) {
        self.version += 1;
        self.compacted = self.version;
        self.history.clear();
        self.lists.clear();
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().unwrap();
    for (field, value) in patch {
        if value.is_null() {
            target.remove(field);
        } else {
            merge(target.entry(field).or_insert(Value::Null), value);
        }
    }
}
