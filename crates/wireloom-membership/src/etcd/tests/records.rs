//! The collection: lists and watches.

use etcd_client::{CompactionOptions, Txn, TxnOp};
use futures::StreamExt as _;

use super::fixtures::{
    cluster::{Edition, Etcd},
    inside::{inside, soon},
};
use crate::store::{Change, Collection as _, StoreProblem, Version};

/// More than two pages.
const NODES: usize = 2_500;

#[test]
fn lists_are_whole_and_watches_report_everything_in_order() {
    reads(Edition::Modern);
}

#[test]
fn lists_and_watches_work_with_etcd_3_4() {
    reads(Edition::Old);
}

fn reads(edition: Edition) {
    let etcd = Etcd::start(edition, 1);
    inside(&etcd.space, async || {
        let mut client = etcd.client(None).await;
        let (mut records, _) = etcd.open("n").await;
        let nothing = records.list().await.unwrap();
        assert!(nothing.objects.is_empty());

        // As many as fit in a transaction (`--max-txn-ops`).
        let names: Vec<String> = (0..NODES).map(|index| format!("nodes/n{index:04}")).collect();
        for names in names.chunks(128) {
            let puts: Vec<TxnOp> = names
                .iter()
                .map(|name| TxnOp::put(format!("/wireloom/v1/m/{name}"), name.as_str(), None))
                .collect();
            client.txn(Txn::new().and_then(puts)).await.unwrap();
        }
        // Neither is of this mesh. The second sorts after the last of it.
        client.put("/wireloom/v1/l/nodes/a", "no", None).await.unwrap();
        client.put("/wireloom/v1/m0", "no", None).await.unwrap();
        // Ten values of a megabyte are more than an answer may have.
        for index in 0..10 {
            client.put(format!("/wireloom/v1/m/pools/huge{index}"), vec![b'x'; 1 << 20], None).await.unwrap();
        }

        let listed = records.list().await.unwrap();
        assert_eq!(listed.objects.len(), NODES + 10);
        assert!(names.iter().all(|name| listed.objects[name].value == *name));
        assert_eq!(listed.position, records.position().await.unwrap());
        assert_eq!(listed.position.store, nothing.position.store);
        assert!(listed.objects["nodes/n0000"].born < listed.objects["nodes/n2499"].born);

        let Version(after) = listed.position.version;
        let mut watch = records.watch(listed.position.version).await.unwrap();
        client.put("/wireloom/v1/m/nodes/n0000", "other", None).await.unwrap();
        client.put("/wireloom/v1/m0", "still no", None).await.unwrap();
        client.delete("/wireloom/v1/m/nodes/n0001", None).await.unwrap();
        client.put("/wireloom/v1/m/keys/a/b+c=", "n0000", None).await.unwrap();
        let mut next = async || soon("a change", watch.next()).await.unwrap().unwrap();
        let Change::Put(name, object, version) = next().await else { panic!("not a put") };
        assert_eq!(
            (name.as_str(), object.value.as_str(), version),
            ("nodes/n0000", "other", Version(after + 1))
        );
        assert_eq!(object.born, listed.objects["nodes/n0000"].born);
        assert_eq!(next().await, Change::Gone("nodes/n0001".into(), Version(after + 3)));
        let Change::Put(name, object, version) = next().await else { panic!("not a put") };
        assert_eq!((name.as_str(), version), ("keys/a/b+c=", Version(after + 4)));
        assert_eq!(object.born, after + 4);

        // What was missed is made up for, as long as it is kept.
        let mut later = records.watch(Version(after + 2)).await.unwrap();
        let first = soon("a change", later.next()).await.unwrap().unwrap();
        assert_eq!(first, Change::Gone("nodes/n0001".into(), Version(after + 3)));
        client
            .compact(i64::try_from(after).unwrap() + 4, Some(CompactionOptions::new().with_physical()))
            .await
            .unwrap();
        let missed = async {
            match records.watch(Version(after + 1)).await {
                Ok(mut watch) => watch.next().await.unwrap().unwrap_err(),
                Err(error) => error,
            }
        };
        assert_eq!(soon("the end of a watch", missed).await.problem, StoreProblem::Compacted);
        // Those that had seen it go on.
        client.put("/wireloom/v1/m/nodes/n0002", "last", None).await.unwrap();
        for watch in [&mut watch, &mut later] {
            let mut seen = soon("a change", watch.next()).await.unwrap().unwrap();
            while !matches!(&seen, Change::Put(name, ..) if name == "nodes/n0002") {
                seen = soon("a change", watch.next()).await.unwrap().unwrap();
            }
        }

        // Nothing can be watched from the future.
        let future = records.watch(Version(after + 1000)).await;
        let future = future.err().map(|error| error.problem);
        assert!(
            matches!(&future, Some(StoreProblem::Unavailable { why, .. }) if why.contains("it is at revision"))
        );
    });
}
