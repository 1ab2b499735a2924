//! This node's own record, and the entry of its key.

use futures::future::join_all;

use super::fixtures::{
    cluster::{Edition, Etcd},
    inside::inside,
};
use crate::{
    etcd,
    store::{Collection as _, OwnRecord as _, StoreProblem},
};

fn record(key: &str) -> String {
    format!("{{\"public_key\":\"{key}\",\"endpoints\":[\"192.0.2.1:51820\"]}}")
}

#[test]
fn no_two_nodes_have_the_same_key() {
    for edition in [Edition::Modern, Edition::Old] {
        let etcd = Etcd::start(edition, 1);
        inside(&etcd.space, async || {
            let (mut records, mut a) = etcd.open("a").await;
            let (_, mut b) = etcd::open(&etcd.settings(), "b");
            let mut names = async || -> Vec<String> {
                records
                    .list()
                    .await
                    .unwrap()
                    .objects
                    .into_iter()
                    .map(|(name, object)| format!("{name}={}", object.value))
                    .filter(|entry| entry.starts_with("keys/"))
                    .collect()
            };
            a.put(record("K1")).await.unwrap();
            // Writing it again changes nothing.
            a.put(record("K1")).await.unwrap();
            assert_eq!(names().await, ["keys/K1=a"]);

            let conflict = b.put(record("K1")).await.unwrap_err();
            let StoreProblem::Conflict { why } = &conflict.problem else { panic!("{conflict}") };
            assert!(why.starts_with("\"a\" has the public key K1 since revision"), "{why}");
            assert!(why.ends_with("delete /wireloom/v1/m/keys/K1"), "{why}");
            // It can leave all the same.
            b.put(record("K1").replace('}', ",\"encrypt\":false}")).await.unwrap();
            assert_eq!(names().await, ["keys/K1=a"]);
            let mut client = etcd.client(None).await;
            let farewell = client.get("/wireloom/v1/m/nodes/b", None).await.unwrap();
            let farewell = String::from_utf8_lossy(farewell.kvs()[0].value()).into_owned();
            assert!(farewell.contains("\"encrypt\":false") && !farewell.contains("K1"), "{farewell}");
            b.put(record("K2")).await.unwrap();
            assert_eq!(names().await, ["keys/K1=a", "keys/K2=b"]);

            // A key that is given up is free again, also for an agent that does not remember it.
            let (_, mut a_again) = etcd::open(&etcd.settings(), "a");
            a_again.put(record("K3")).await.unwrap();
            assert_eq!(names().await, ["keys/K2=b", "keys/K3=a"]);
            b.put(record("K1")).await.unwrap();
            assert_eq!(names().await, ["keys/K1=b", "keys/K3=a"]);
            // Without a key there is no entry.
            b.put("{\"workloads\":[\"10.1.1.0/24\"]}".into()).await.unwrap();
            assert_eq!(names().await, ["keys/K3=a"]);

            // The entry of another stays, even where our record says its key.
            client.put("/wireloom/v1/m/nodes/b", record("K3"), None).await.unwrap();
            b.put(record("K4")).await.unwrap();
            assert_eq!(names().await, ["keys/K3=a", "keys/K4=b"]);

            // Of many that want one key at the same time, one gets it.
            let mut rivals: Vec<_> =
                (0..8).map(|index| etcd::open(&etcd.settings(), &format!("r{index}")).1).collect();
            let outcomes = join_all(rivals.iter_mut().map(|rival| rival.put(record("K5")))).await;
            assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");

            b.delete().await.unwrap();
            b.delete().await.unwrap();
            let (_, mut a) = etcd::open(&etcd.settings(), "a");
            a.delete().await.unwrap();
            let left = names().await;
            assert!(left.len() == 1 && left[0].starts_with("keys/K5=r"), "{left:?}");
        });
    }
}
