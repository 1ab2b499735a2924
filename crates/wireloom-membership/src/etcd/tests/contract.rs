//! The contract of all stores, on real etcd.

use std::{future::Future, path::PathBuf, sync::Mutex, time::Duration};

use etcd_client::{Client, DeleteOptions, Error};
use futures::{FutureExt as _, future::BoxFuture};
use tokio::time::{Instant, sleep};

use super::fixtures::{
    cluster::{Edition, Etcd},
    inside::inside,
    proxy::Proxy,
};
use crate::{
    contract::{self, Fixture, LIMIT},
    etcd::{self, Settings, layout},
    source::Connect,
};

#[test]
fn etcd_keeps_the_contract_of_all_stores() {
    let etcd = Etcd::start(Edition::Modern, 1);
    inside(&etcd.space.clone(), async || {
        let client = etcd.client(None).await;
        let proxy = Proxy::start("127.0.0.1:2379".parse().unwrap(), Duration::ZERO, 0);
        let settings = Settings { endpoints: vec![format!("http://{}", proxy.address)], ..etcd.settings() };
        contract::all(&Store { etcd: Mutex::new(etcd), client, proxy, settings, copy: Mutex::default() })
            .await;
    });
}

/// A member, and the agents' way to it.
struct Store {
    etcd: Mutex<Etcd>,
    client: Client,
    proxy: Proxy,
    settings: Settings,
    /// What it was when [`Fixture::remember`] was called.
    copy: Mutex<Option<PathBuf>>,
}

impl Store {
    /// Asks the member again until it answers: it may just have been started.
    async fn insist<T, Answer>(&self, ask: impl Fn(Client) -> Answer) -> T
    where
        Answer: Future<Output = Result<T, Error>>,
    {
        let limit = Instant::now() + LIMIT;
        loop {
            match ask(self.client.clone()).await {
                Ok(answer) => return answer,
                Err(error) => assert!(Instant::now() < limit, "etcd does not answer: {error}"),
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

fn key(node: &str) -> String {
    format!("{}{}{node}", layout::prefix("m"), layout::NODES)
}

impl Fixture for Store {
    fn connect(&self) -> Box<dyn Connect + Send> {
        Box::new(etcd::connect(&self.settings))
    }

    fn clear(&self) -> BoxFuture<'_, ()> {
        let everything = |mut client: Client| async move {
            client.delete(layout::prefix("m"), Some(DeleteOptions::new().with_prefix())).await
        };
        self.insist(everything).map(drop).boxed()
    }

    fn put<'a>(&'a self, name: &'a str, value: &'a str) -> BoxFuture<'a, ()> {
        self.insist(move |mut client| async move { client.put(key(name), value, None).await })
            .map(drop)
            .boxed()
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()> {
        self.insist(move |mut client| async move { client.delete(key(name), None).await }).map(drop).boxed()
    }

    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Option<String>> {
        let value = |answer: etcd_client::GetResponse| {
            answer.kvs().first().map(|entry| entry.value_str().unwrap().to_owned())
        };
        self.insist(move |mut client| async move { client.get(key(name), None).await }).map(value).boxed()
    }

    fn set_down(&self, down: bool) -> BoxFuture<'_, ()> {
        self.proxy.close(down);
        async {}.boxed()
    }

    fn cut(&self) -> BoxFuture<'_, ()> {
        self.proxy.cut();
        async {}.boxed()
    }

    fn compact(&self) -> BoxFuture<'_, ()> {
        self.proxy.cut();
        let all = |mut client: Client| async move {
            let revision = client.get("/", None).await?.header().unwrap().revision();
            match client.compact(revision, None).await {
                // It has been already, by an attempt whose answer was late.
                Err(Error::GRpcStatus(status)) if status.message().contains("has been compacted") => Ok(()),
                other => other.map(drop),
            }
        };
        self.insist(all).boxed()
    }

    fn go_back(&self) -> BoxFuture<'_, bool> {
        let mut etcd = self.etcd.lock().unwrap();
        etcd.kill(0);
        etcd.replace_data(0, self.copy.lock().unwrap().as_deref());
        etcd.start_member(0);
        async { true }.boxed()
    }

    fn remember(&self) -> BoxFuture<'_, ()> {
        let mut etcd = self.etcd.lock().unwrap();
        etcd.kill(0);
        *self.copy.lock().unwrap() = Some(etcd.copy_data(0));
        etcd.start_member(0);
        async {}.boxed()
    }
}
