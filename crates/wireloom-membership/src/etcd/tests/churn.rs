//! Churn against real etcd.

use super::fixtures::{
    agent::Agent,
    churn::Churn,
    cluster::{Edition, Etcd},
    inside::inside_for,
};
use crate::{
    etcd::{Settings, client::Client, own_record::OwnEntry},
    record::Spelling,
};

#[test]
fn every_agent_has_every_node_soon_after_the_last_change() {
    let churn = Churn::from_environment(20);
    let etcd = Etcd::start(Edition::Modern, 1);
    inside_for(churn.time, &etcd.space, async || {
        let client = Client::new(etcd.settings());
        let followed = churn.followers(2379, |proxy, name| {
            let endpoints = vec![format!("http://{}", proxy.address)];
            Agent::start(&Settings { endpoints, ..etcd.settings() }, name)
        });
        let place = |name: &str| Box::new(OwnEntry::new(client.clone(), name)) as _;
        churn.run(Spelling::Snake, place, &followed).await;
    });
}
