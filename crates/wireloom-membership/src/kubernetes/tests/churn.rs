//! Churn against a real API server, and what agents cost it.
//!
//! ```text
//! cargo test -p wireloom-membership --features functional --lib -- --ignored --nocapture churn::figures
//! ```

use std::{
    collections::HashMap,
    env,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::api_server::{PORT, RealServer, new_node};
use crate::{
    etcd::tests::fixtures::{
        agent::Agent,
        churn::Churn,
        inside::{inside_for, until},
        nodes::node,
        proxy::Proxy,
    },
    record::{self, Spelling},
    store::OwnRecord,
};

/// How many agents restart at once.
const RESTARTED: usize = 200;

#[test]
fn every_agent_has_every_node_soon_after_the_last_change() {
    let churn = Churn::from_environment(15);
    let server = RealServer::start();
    inside_for(churn.time, server.space(), async || {
        let client = server.client();
        let mut places = HashMap::new();
        for name in Churn::names() {
            let place: Box<dyn OwnRecord> = Box::new(new_node(&client, &name).await);
            places.insert(name, place);
        }
        let followed =
            churn.followers(PORT, |proxy, name| Agent::follow(&server.source(proxy.address.port()), name));
        churn.run(Spelling::Camel, |name| places.remove(name).unwrap(), &followed).await;
    });
}

/// With `WIRELOOM_REST_SECONDS` in the environment it rests for another time than a minute.
#[test]
#[ignore = "prints figures"]
fn figures_at_rest_and_after_a_restart_of_all() {
    let rest = env::var("WIRELOOM_REST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let rest = Duration::from_secs(rest);
    let server = RealServer::start();
    inside_for(rest, server.space(), async || {
        let client = server.client();
        let mut count = 0;
        for name in Churn::names() {
            count += 1;
            let record = record::write(&node(count), Spelling::Camel);
            new_node(&client, &name).await.put(record).await.unwrap();
        }
        let way = || Proxy::start(([127, 0, 0, 1], PORT).into(), Duration::ZERO, 0);
        let has_all = |agent: &Agent| (agent.names().len() == usize::from(count)).then_some(());

        let proxy = way();
        let source = server.source(proxy.address.port());
        let one = Agent::follow(&source, "n000");
        until("the first snapshot", async || has_all(&one)).await;
        println!("{count} nodes: an agent has received {} bytes for its first snapshot", proxy.received());
        // Until its watches are there.
        sleep(Duration::from_secs(2)).await;
        let received = proxy.received();
        sleep(rest).await;
        println!("at rest: {} bytes received in {rest:?}", proxy.received() - received);

        let proxy = way();
        let source = server.source(proxy.address.port());
        let before = server.requests();
        let begun = Instant::now();
        let agents: Vec<Agent> =
            Churn::names().take(RESTARTED).map(|name| Agent::follow(&source, &name)).collect();
        for agent in &agents {
            until("a first snapshot", async || has_all(agent)).await;
        }
        let took = begun.elapsed();
        sleep(Duration::from_secs(2)).await;
        println!("{RESTARTED} agents start at once: the last one has its first snapshot after {took:?}");
        println!("they receive {} bytes each, with TLS", proxy.received() / RESTARTED as u64);
        for (request, number) in server.requests() {
            let number = number - before.get(&request).unwrap_or(&0);
            if number > 0 {
                println!("{number:5} {request}");
            }
        }
    });
}
