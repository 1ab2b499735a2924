//! This node's own record, and the entry of its key.

use std::collections::BTreeSet;

use etcd_client::{Compare, CompareOp, DeleteOptions, Txn, TxnOp};
use futures::{FutureExt as _, future::BoxFuture};
use serde::Deserialize;
use serde_json::Value;

use super::{client::Client, layout, records};
use crate::store::{Object, OwnRecord, StoreError, StoreProblem};

/// How often a write is tried while somebody else writes in between.
const TRIES: u32 = 4;

/// How many entries one transaction may delete: etcd allows 128 operations (`--max-txn-ops`), the record's among them.
const DELETIONS: usize = 100;

/// The record `nodes/NAME` in etcd, with `keys/KEY`.
pub(super) struct OwnEntry {
    client: Client,
    /// The name of this node.
    node: String,
    record: String,
    keys: String,
    /// Keys that we have published and that may still have entries.
    former: BTreeSet<String>,
}

/// What matters here of a record.
#[derive(Deserialize)]
struct Keyed {
    public_key: Option<String>,
}

/// An entry as it was read.
struct Entry {
    value: Vec<u8>,
    /// The revision of its last change.
    changed: i64,
    /// The revision in which it was made.
    made: i64,
}

impl OwnEntry {
    pub(super) fn new(client: Client, node: &str) -> Self {
        let prefix = layout::prefix(&client.settings().mesh);
        Self {
            client,
            node: node.to_owned(),
            record: format!("{prefix}{}{node}", layout::NODES),
            keys: format!("{prefix}{}", layout::KEYS),
            former: BTreeSet::new(),
        }
    }

    /// Writes the record unless another node has its key, and removes the entries of our former keys. A record that
    /// says that we leave is written without such a key.
    async fn write(&mut self, mut value: String) -> Result<(), StoreError> {
        let what = format!("write {}", self.record);
        let failed = |problem| StoreError { operation: format!("{what} in etcd"), problem };
        let mut key = public_key(value.as_bytes()).map_err(|error| {
            failed(StoreProblem::Nonsense {
                why: format!("the record is not JSON ({error}); report this bug"),
            })
        })?;
        for _ in 0..TRIES {
            let [record, claim] = self
                .read(&what, [Some(&self.record), key.as_ref().map(|key| self.entry(key)).as_ref()])
                .await?;
            if let (Some(taken), Some(claim)) = (&key, &claim)
                && claim.value != self.node.as_bytes()
            {
                if let Some(keyless) = farewell_without_key(&value) {
                    (key, value) = (None, keyless);
                    continue;
                }
                let other = String::from_utf8_lossy(&claim.value);
                return Err(failed(StoreProblem::Conflict {
                    why: format!(
                        "{other:?} has the public key {taken} since revision {}; each node needs a key of its own. If \
                         there is no such node any more, delete {}",
                        claim.made,
                        self.entry(taken)
                    ),
                }));
            }
            if let Some(former) = record.as_ref().and_then(|record| public_key(&record.value).ok().flatten())
            {
                self.former.insert(former);
            }
            if let Some(key) = &key {
                self.former.remove(key);
            }
            let mut when = vec![unchanged(&self.record, record.as_ref())];
            let mut then = Vec::new();
            if let Some(key) = &key {
                when.push(unchanged(&self.entry(key), claim.as_ref()));
                if claim.is_none() {
                    then.push(TxnOp::put(self.entry(key), self.node.as_str(), None));
                }
            }
            // Readers hear of the changes in this order.
            then.push(TxnOp::put(self.record.as_str(), value.as_str(), None));
            then.extend(self.former.iter().map(|former| self.release(&self.entry(former))));
            if self.commit(&what, when, then).await? {
                // From here on it is the record that says which key we have.
                self.former.clear();
                return Ok(());
            }
        }
        Err(failed(StoreProblem::Conflict { why: "somebody else writes it all the time".into() }))
    }

    /// Removes the record and the entries of all keys of this node.
    async fn remove(&mut self) -> Result<(), StoreError> {
        let what = format!("delete {}", self.record);
        let is_ours = |_: &str, entry: &Object| entry.value == self.node;
        let listed = records::list(&self.client, &what, &self.keys, is_ours).await?;
        let ours: Vec<String> = listed.objects.keys().map(|key| self.entry(key)).collect();
        let mut deletions = ours.chunks(DELETIONS);
        // The record goes with the first of them.
        let first = deletions.next().unwrap_or_default();
        let record = TxnOp::delete(self.record.as_str(), None);
        let with_record = first.iter().map(|entry| self.release(entry)).chain([record]).collect();
        self.commit(&what, Vec::new(), with_record).await?;
        for more in deletions {
            self.commit(&what, Vec::new(), more.iter().map(|entry| self.release(entry)).collect()).await?;
        }
        self.former.clear();
        Ok(())
    }

    /// The full name of a key's entry.
    fn entry(&self, key: &str) -> String {
        format!("{}{key}", self.keys)
    }

    /// Deletes the entry of a key if it is ours when that happens.
    fn release(&self, entry: &str) -> TxnOp {
        let is_ours = Compare::value(entry, CompareOp::Equal, self.node.as_str());
        TxnOp::txn(Txn::new().when([is_ours]).and_then([TxnOp::delete(entry, None::<DeleteOptions>)]))
    }

    /// What there is under these names, in one revision.
    async fn read<const N: usize>(
        &self,
        what: &str,
        names: [Option<&String>; N],
    ) -> Result<[Option<Entry>; N], StoreError> {
        let gets: Vec<TxnOp> = names.iter().flatten().map(|name| TxnOp::get(name.as_str(), None)).collect();
        let ask = |connection: super::client::Connection| {
            let txn = Txn::new().and_then(gets.clone());
            async move {
                let mut etcd = connection.etcd;
                Ok(etcd.txn(txn).await?)
            }
        };
        let answer = self.client.request(what, ask).await?;
        let mut answers = answer.op_responses().into_iter();
        Ok(names.map(|name| {
            name?;
            let Some(etcd_client::TxnOpResponse::Get(mut got)) = answers.next() else { return None };
            let entry = got.take_kvs().pop()?;
            let (changed, made) = (entry.mod_revision(), entry.create_revision());
            Some(Entry { value: entry.into_key_value().1, changed, made })
        }))
    }

    /// Does this if all of that is so, and returns whether it was. Doing it twice does no harm: a request whose answer
    /// is lost is made again.
    async fn commit(&self, what: &str, when: Vec<Compare>, then: Vec<TxnOp>) -> Result<bool, StoreError> {
        let ask = |connection: super::client::Connection| {
            let txn = Txn::new().when(when.clone()).and_then(then.clone());
            async move {
                let mut etcd = connection.etcd;
                Ok(etcd.txn(txn).await?.succeeded())
            }
        };
        self.client.request(what, ask).await
    }
}

impl OwnRecord for OwnEntry {
    fn put(&mut self, value: String) -> BoxFuture<'_, Result<(), StoreError>> {
        self.write(value).boxed()
    }

    fn delete(&mut self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.remove().boxed()
    }
}

/// That an entry is as it was read.
fn unchanged(name: &str, entry: Option<&Entry>) -> Compare {
    // What does not exist has the revision 0.
    Compare::mod_revision(name, CompareOp::Equal, entry.map_or(0, |entry| entry.changed))
}

/// A record without its key, if it says that its node leaves.
fn farewell_without_key(record: &str) -> Option<String> {
    let mut record: serde_json::Map<String, Value> = serde_json::from_str(record).ok()?;
    let leaves = record.get("encrypt") == Some(&Value::Bool(false));
    record.remove("public_key");
    leaves.then(|| Value::from(record).to_string())
}

/// The public key that a record says.
fn public_key(record: &[u8]) -> Result<Option<String>, serde_json::Error> {
    Ok(serde_json::from_slice::<Keyed>(record)?.public_key)
}
