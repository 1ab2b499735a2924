//! All objects of a mesh as one collection.

use std::collections::BTreeMap;

use etcd_client::{GetOptions, ResponseHeader};
use futures::{FutureExt as _, future::BoxFuture};

use super::{
    client::{Client, Connection},
    entry::{is_readable, name, object},
    layout,
    problem::{Failure, nonsense},
    watch,
};
use crate::{
    record::NAME_MAX,
    store::{Changes, Collection, Listed, Object, Position, StoreError, Version},
};

/// How many entries are asked for at once: a thousand records of a kilobyte each are a quarter of what an answer may
/// have (4 MiB, tonic's default).
const PAGE: i64 = 1000;

/// The most entries besides records and pools that are read: a mesh of 5,000 nodes has as many keys, and while keys are
/// changed twice as many.
pub(super) const OTHERS_MAX: usize = 20_000;

/// The nodes, pools and keys of a mesh in etcd: the names of its objects are what follows the mesh's name in
/// [`layout`]'s keys.
pub(super) struct Records {
    client: Client,
    prefix: String,
}

impl Records {
    pub(super) fn new(client: Client) -> Self {
        let prefix = layout::prefix(&client.settings().mesh);
        Self { client, prefix }
    }
}

impl Collection for Records {
    fn name(&self) -> String {
        self.prefix.clone()
    }

    fn list(&mut self) -> BoxFuture<'_, Result<Listed, StoreError>> {
        let what = format!("list {}", self.prefix);
        let mut kept = Kept::default();
        async move { list(&self.client, &what, &self.prefix, |name, object| kept.takes(name, object)).await }
            .boxed()
    }

    fn watch(&mut self, after: Version) -> BoxFuture<'_, Result<Changes, StoreError>> {
        watch::begin(self.client.clone(), self.prefix.clone(), after).boxed()
    }

    fn position(&mut self) -> BoxFuture<'_, Result<Position, StoreError>> {
        async {
            let what = format!("ask for the revision of {}", self.prefix);
            let ask = |connection: Connection| {
                let options =
                    GetOptions::new().with_range(layout::end(&self.prefix)).with_limit(1).with_keys_only();
                let prefix = self.prefix.clone();
                async move {
                    let mut etcd = connection.etcd;
                    let answer = etcd.get(prefix, Some(options)).await?;
                    position(answer.header())
                }
            };
            self.client.request(&what, ask).await
        }
        .boxed()
    }
}

/// Bounds what a list holds: each node may write as many entries in keys/ as it likes. Records and pools are written by
/// those whom the operator lets.
#[derive(Debug, Default)]
struct Kept {
    others: usize,
}

impl Kept {
    /// Whether the list shall hold this entry.
    fn takes(&mut self, name: &str, object: &Object) -> bool {
        if name.starts_with(layout::NODES) || name.starts_with(layout::POOLS) {
            return true;
        }
        // One more than what is read is enough to see that there are too many.
        let is_short = is_readable(name) && object.value.len() <= NAME_MAX;
        let is_taken = is_short && self.others <= OTHERS_MAX;
        self.others += usize::from(is_taken);
        is_taken
    }
}

/// What is kept of everything with this prefix, at one revision. The names are what follows the prefix.
///
/// The first page is a linearizable read, so it is no older than any answer before; the others are at its revision.
pub(super) async fn list(
    client: &Client,
    what: &str,
    prefix: &str,
    mut keep: impl FnMut(&str, &Object) -> bool,
) -> Result<Listed, StoreError> {
    let end = layout::end(prefix);
    let mut from = prefix.as_bytes().to_vec();
    let mut page = PAGE;
    let mut at: Option<Position> = None;
    let mut objects = BTreeMap::new();
    loop {
        let ask = |connection: Connection| {
            let mut options = GetOptions::new().with_range(end.clone()).with_limit(page);
            if let Some(position) = &at {
                options = options.with_revision(position.version.0.cast_signed());
            }
            let from = from.clone();
            async move {
                let mut etcd = connection.etcd;
                match etcd.get(from, Some(options)).await.map_err(Failure::from) {
                    Ok(answer) => Ok(Some((position(answer.header())?, answer))),
                    Err(Failure::TooLong) if page > 1 => Ok(None),
                    Err(failure) => Err(failure),
                }
            }
        };
        let Some((position, answer)) = client.request(what, ask).await? else {
            page = (page / 8).max(1);
            continue;
        };
        let position = at.get_or_insert(position);
        let entries = answer.kvs().iter().map(|entry| (name(prefix, entry), object(entry)));
        objects.extend(entries.filter(|(name, object)| keep(name, object)));
        match answer.kvs().last() {
            // The first key after the last one of this page.
            Some(last) if answer.more() => from = [last.key(), &[0]].concat(),
            _ => return Ok(Listed { position: position.clone(), objects }),
        }
    }
}

/// Where the store stood when it gave this answer.
pub(super) fn position(header: Option<&ResponseHeader>) -> Result<Position, Failure> {
    let header =
        header.ok_or_else(|| nonsense("the answer has no header; check that endpoints lead to etcd"))?;
    Ok(Position {
        // As etcdctl prints it.
        store: Some(format!("{:x}", header.cluster_id())),
        version: Version(header.revision().unsigned_abs()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RECORD_MAX;

    #[test]
    fn a_list_holds_all_records_and_pools_and_a_bounded_number_of_keys() {
        let value = |len| Object { value: "x".repeat(len), born: 1, uid: String::new() };
        let mut kept = Kept::default();
        assert!(!kept.takes("keys/long", &value(NAME_MAX + 1)));
        assert!(!kept.takes(&format!("keys/{}", "x".repeat(NAME_MAX + 2)), &value(1)));
        let names = (0..2 * OTHERS_MAX).map(|number| format!("keys/{number}"));
        assert_eq!(names.filter(|name| kept.takes(name, &value(1))).count(), OTHERS_MAX + 1);
        assert!(kept.takes("nodes/a", &value(RECORD_MAX)) && kept.takes("pools/a", &value(RECORD_MAX)));
    }
}
