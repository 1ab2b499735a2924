//! Followed meshes while members die, hang, come back, and come back as somebody else.

use std::time::{Duration, Instant};

use etcd_client::Client;

use super::fixtures::{
    agent::Agent,
    cluster::{Edition, Etcd},
    inside::{inside, until},
    nodes::{node, record},
};
use crate::etcd::{Settings, layout};

/// Writes a record as somebody else would, until a member takes it.
async fn put(client: &Client, name: &str, number: u16) {
    let key = format!("{}{}{name}", layout::prefix("m"), layout::NODES);
    let value = record(&node(number));
    until("a member to take a record", async || {
        let mut client = client.clone();
        client.put(key.as_str(), value.as_str(), None).await.ok()
    })
    .await;
}

#[test]
fn nothing_is_lost_when_members_die_hang_and_return() {
    let mut etcd = Etcd::start(Edition::Modern, 3);
    inside(&etcd.space.clone(), async || {
        let client = etcd.client(None).await;
        // Each asks another member first.
        let agents: Vec<Agent> = (0..3)
            .map(|index| {
                let mut settings = etcd.settings();
                settings.endpoints.rotate_left(index);
                Agent::start(&settings, &format!("a{index}"))
            })
            .collect();
        for (index, agent) in agents.iter().enumerate() {
            agent.following.publish(Some(node(index as u16 + 1)));
        }
        let all_have = async |name: &str| {
            let begun = Instant::now();
            for agent in &agents {
                agent.until_it_has(name).await;
            }
            begun.elapsed()
        };
        for name in ["a0", "a1", "a2"] {
            all_have(name).await;
        }

        // The leader dies. Its cluster has another after about a second.
        let leader = etcd.leader().await;
        etcd.kill(leader);
        put(&client, "b1", 11).await;
        println!("leader killed: all have the next record {:?} after it was taken", all_have("b1").await);
        etcd.start_member(leader);
        etcd.serves(leader).await;

        // A member hangs: its connections stay open, and nobody answers.
        let hanging = (leader + 1) % 3;
        etcd.pause(hanging);
        put(&client, "b2", 12).await;
        println!("member hangs: all have the next record {:?} after it was taken", all_have("b2").await);
        etcd.resume(hanging);

        // All are gone. What was known stays, and it is said that nobody answers.
        (0..3).for_each(|index| etcd.kill(index));
        let says_so = async || agents.iter().all(|agent| !agent.seen().problems.is_empty()).then_some(());
        until("all agents to say that etcd is gone", says_so).await;
        assert!(agents.iter().all(|agent| agent.names() == ["a0", "a1", "a2", "b1", "b2"]));
        (0..3).for_each(|index| etcd.start_member(index));
        put(&client, "b3", 13).await;
        println!("all members back: all have the next record {:?} after it was taken", all_have("b3").await);
        assert!(agents.iter().all(|agent| agent.names() == ["a0", "a1", "a2", "b1", "b2", "b3"]));
        assert!(agents.iter().all(|agent| agent.seen().left_out.is_empty()));
    });
}

#[test]
fn a_store_that_went_back_or_is_another_is_noticed() {
    let mut etcd = Etcd::start(Edition::Modern, 1);
    inside(&etcd.space.clone(), async || {
        let client = etcd.client(None).await;
        let agent = Agent::start(&etcd.settings(), "a");
        agent.following.publish(Some(node(1)));
        agent.until_it_has("a").await;
        put(&client, "b1", 11).await;
        agent.until_it_has("b1").await;
        etcd.kill(0);
        let old = etcd.copy_data(0);
        etcd.start_member(0);
        put(&client, "b2", 12).await;
        put(&client, "b3", 13).await;
        agent.until_it_has("b3").await;

        // An older snapshot is restored. What it lacks has merely vanished.
        let says = async |what: &str| {
            let found =
                async || agent.seen().problems.iter().any(|problem| problem.contains(what)).then_some(());
            until(what, found).await;
        };
        etcd.kill(0);
        etcd.replace_data(0, Some(&old));
        etcd.start_member(0);
        put(&client, "b4", 14).await;
        says("went back in time").await;
        agent.until_it_has("b4").await;
        assert_eq!(agent.names(), ["a", "b1", "b2", "b3", "b4"]);

        // Another cluster has the old one's address.
        etcd.kill(0);
        etcd.replace_data(0, None);
        etcd.rename_cluster(0, "another");
        etcd.start_member(0);
        put(&client, "b5", 15).await;
        says("is another one than before").await;
        agent.until_it_has("b5").await;
        assert_eq!(agent.names(), ["a", "b1", "b2", "b3", "b4", "b5"]);
        // The agent's own record is there again.
        let own = async || {
            let mut client = client.clone();
            client.get("/wireloom/v1/m/nodes/a", None).await.ok()?.kvs().first().map(|_| ())
        };
        until("the agent's own record in the new cluster", own).await;
    });
}

#[test]
fn a_member_that_drops_packets_is_skipped_in_seconds() {
    let etcd = Etcd::start(Edition::Modern, 1);
    inside(&etcd.space.clone(), async || {
        // The neighbour there is known, but not there.
        for command in [
            "link add nowhere type veth peer name beyond",
            "link set nowhere up",
            "link set beyond up",
            "addr add 192.0.2.1/24 dev nowhere",
            "neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev nowhere",
        ] {
            etcd.space.run(&format!("ip {command}")).unwrap();
        }
        let mut endpoints = etcd.settings().endpoints;
        endpoints.insert(0, "http://192.0.2.2:2379".into());
        let agent = Agent::start(&Settings { endpoints, ..etcd.settings() }, "a");
        let begun = Instant::now();
        let listed = async || agent.seen().mesh.is_some().then_some(());
        until("the first snapshot", listed).await;
        let elapsed = begun.elapsed();
        // The kernel would try for two minutes (tcp_syn_retries, tcp(7)).
        assert!(elapsed < Duration::from_secs(15), "{elapsed:?}");
    });
}
