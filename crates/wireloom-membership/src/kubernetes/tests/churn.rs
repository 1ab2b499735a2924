//! Churn against a real API server, and what agents cost it that start at once. `scripts/soak kubernetes-churn` does it
//! for longer, and with more agents.

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
        proxy::Proxy,
    },
    record::Spelling,
    store::OwnRecord,
};

/// How many agents start at once, unless `WIRELOOM_AGENTS` in the environment says so.
const RESTARTED: u64 = 20;

/// The most requests of an agent until it has its first snapshot and its watches.
const REQUESTS: u64 = 20;

#[test]
fn every_agent_has_every_node_soon_after_the_last_change() {
    let churn = Churn::from_environment(15);
    let rest = from_environment("WIRELOOM_REST_SECONDS").map(Duration::from_secs);
    let server = RealServer::start();
    inside_for(churn.time + rest.unwrap_or_default(), server.space(), async || {
        let client = server.client();
        let mut places = HashMap::new();
        for name in Churn::names() {
            let place: Box<dyn OwnRecord> = Box::new(new_node(&client, &name).await);
            places.insert(name, place);
        }
        let followed =
            churn.followers(PORT, |proxy, name| Agent::follow(&server.source(proxy.address.port()), name));
        churn.run(Spelling::Camel, |name| places.remove(name).unwrap(), &followed).await;
        // The agents are still there, and would ask the server for as long as they reach it.
        followed.iter().for_each(|(proxy, _)| proxy.close(true));
        restart_of_all(&server, rest).await;
    });
}

/// Starts agents at once, each of which lists everything. With `WIRELOOM_REST_SECONDS` in the environment it also
/// measures for so long what one of them receives while nothing changes.
async fn restart_of_all(server: &RealServer, rest: Option<Duration>) {
    let number = from_environment("WIRELOOM_AGENTS").unwrap_or(RESTARTED);
    let way = || Proxy::start(([127, 0, 0, 1], PORT).into(), Duration::ZERO, 0);
    let proxy = way();
    let source = server.source(proxy.address.port());
    let one = Agent::follow(&source, "n000");
    until("the first snapshot", async || one.seen().mesh.is_some().then_some(())).await;
    let all = one.nodes();
    println!("{} nodes: an agent has received {} bytes for its first snapshot", all.len(), proxy.received());
    if let Some(rest) = rest {
        // Until its watches are there.
        sleep(Duration::from_secs(2)).await;
        let received = proxy.received();
        sleep(rest).await;
        println!("at rest: {} bytes received in {rest:?}", proxy.received() - received);
    }

    proxy.close(true);

    let proxy = way();
    let source = server.source(proxy.address.port());
    let before = server.requests();
    let begun = Instant::now();
    let agents: Vec<Agent> =
        (0..number).map(|index| Agent::follow(&source, &format!("n{index:03}"))).collect();
    for agent in &agents {
        until("a first snapshot", async || (agent.nodes() == all).then_some(())).await;
    }
    println!(
        "{number} agents start at once: the last one has its first snapshot after {:?}",
        begun.elapsed()
    );
    // Until their watches are there, and noted.
    sleep(Duration::from_secs(2)).await;
    println!("they receive {} bytes each, with TLS", proxy.received() / number);
    let mut requests = server.requests();
    requests.iter_mut().for_each(|(request, count)| *count -= before.get(request).unwrap_or(&0));
    requests.retain(|_, count| *count > 0);
    for (request, count) in &requests {
        println!("{count:5} {request}");
    }
    let sum: u64 = requests.values().sum();
    assert!((number..=number * REQUESTS).contains(&sum), "{sum} requests of {number} agents");
}

fn from_environment(name: &str) -> Option<u64> {
    env::var(name).ok().and_then(|text| text.parse().ok())
}
