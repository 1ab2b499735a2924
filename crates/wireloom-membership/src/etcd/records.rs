//! All objects of a mesh as one collection.

use std::collections::BTreeMap;

use etcd_client::{GetOptions, KeyValue, ResponseHeader};
use futures::{FutureExt as _, future::BoxFuture, stream::BoxStream};

use super::{
    client::{Client, Connection},
    layout,
    problem::{Failure, nonsense},
    watch,
};
use crate::store::{Change, Collection, Listed, Object, Position, StoreError, Version};

/// How many entries are asked for at once: a thousand records of a kilobyte each are a quarter of what an answer may
/// have (4 MiB, tonic's default).
const PAGE: i64 = 1000;

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
        async move { list(&self.client, &what, &self.prefix).await }.boxed()
    }

    fn watch(
        &mut self,
        after: Version,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Change, StoreError>>, StoreError>> {
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

/// Everything with this prefix, at one revision. The names are what follows the prefix.
///
/// The first page is a linearizable read, so it is no older than any answer before; the others are at its revision.
pub(super) async fn list(client: &Client, what: &str, prefix: &str) -> Result<Listed, StoreError> {
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
        objects.extend(answer.kvs().iter().map(|entry| (name(prefix, entry), object(entry))));
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

/// The name of an object: what follows the prefix.
pub(super) fn name(prefix: &str, entry: &KeyValue) -> String {
    String::from_utf8_lossy(entry.key().get(prefix.len()..).unwrap_or_default()).into_owned()
}

/// An entry as an object.
pub(super) fn object(entry: &KeyValue) -> Object {
    Object {
        value: String::from_utf8_lossy(entry.value()).into_owned(),
        born: entry.create_revision().unsigned_abs(),
        uid: String::new(),
    }
}
