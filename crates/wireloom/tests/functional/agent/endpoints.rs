//! Endpoints by name: the agent looks them up, again while a peer does not answer.

use serde_json::Value;
use wireloom_lab::{Layout, Promise, agent, mesh::MEMBERS};

use crate::fixtures::fleet::{Fleet, run};

const SCOPED: &str = "encrypt_host_traffic = false";

/// Files that a node has in the place of the machine's.
const HOSTS: &str = "/run/hosts";
const RESOLVERS: &str = "/run/resolv.conf";

/// Nobody has it (RFC 5737).
const WRONG: &str = "203.0.113.9";

fn warnings(fleet: &Fleet, node: usize) -> Vec<Value> {
    let status: Value =
        serde_json::from_str(&run(&fleet.lab.nodes[node], "status --json").1).unwrap_or_default();
    status["warnings"].as_array().cloned().unwrap_or_default()
}

/// node-a knows node-b by a name that leads elsewhere at first. node-b knows node-a by a name that nobody has, so only
/// node-a can begin.
#[test]
fn a_peer_that_moved_while_it_did_not_answer_is_found_by_its_name() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    for node in [a, b] {
        node.host.space.write(HOSTS, &format!("{WRONG} node-b.example.org\n")).unwrap();
        // Nobody listens there, so a name that is in no file fails at once.
        node.host.space.write(RESOLVERS, "nameserver 127.0.0.1\n").unwrap();
        for (file, place) in [(HOSTS, "/etc/hosts"), (RESOLVERS, "/etc/resolv.conf")] {
            node.run(&format!("mount --bind {file} {place}")).unwrap();
        }
    }
    let endpoints =
        fleet.mesh.nodes.iter().map(|node| node.endpoint.unwrap().to_string()).collect::<Vec<_>>();
    let name = |node: usize, endpoint: &str, name: &str| {
        let space = &fleet.lab.nodes[node].host.space;
        let text = space.read(MEMBERS).unwrap().unwrap();
        space.write(MEMBERS, &text.replace(endpoint, &format!("{name}.example.org:51820"))).unwrap();
    };
    name(0, &endpoints[1], "node-b");
    name(1, &endpoints[0], "nobody");
    fleet.start();

    let told = format!("the endpoint node-b.example.org:51820 of node node-b is {WRONG}:51820");
    fleet.wait("the name to be looked up", |fleet| agent::log(&fleet.lab.nodes[0]).unwrap().contains(&told));
    fleet.wait("the warning about the other name", |fleet| {
        warnings(fleet, 1).iter().any(|warning| {
            warning["warning"] == "unresolved"
                && (&warning["node"], &warning["endpoint"])
                    == (&"node-a".into(), &"nobody.example.org:51820".into())
        })
    });
    let right = endpoints[1].trim_end_matches(":51820");
    // In place: what is mounted is the file, whatever its name.
    let hosts = format!("{right} node-b.example.org\n");
    fleet.lab.nodes[0].host.space.feed(&format!("tee {HOSTS}"), &hosts).unwrap();
    fleet.settle(Promise::SCOPED);
    fleet.wait_for_proofs();
    // Without the agents' knowledge, `plan` reports no change of an endpoint either.
    fleet.lab.nodes.iter().for_each(|node| fleet.wait_until_done(node));
}
