//! Endpoints by name: what is looked up when, and which address is used. Time is virtual.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use wireloom_plan::{
    cluster::{Cluster, Node},
    endpoint_name::EndpointName,
    names::{Heard, Names, Silence},
    warning::Warning,
};

use crate::world::{Machine, key, three_nodes};

fn name(host: &str) -> EndpointName {
    format!("{host}.example.org:51820").parse().unwrap()
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], 51820))
}

/// One node for each host, and this node, `own`, which has a name as well.
fn mesh(hosts: &[String]) -> Cluster {
    let hosts = hosts.iter().map(String::as_str).chain(["own"]);
    let named = |host: &str| Node { endpoint_name: Some(name(host)), ..Node::default() };
    Cluster { nodes: hosts.map(|host| (host.to_owned(), named(host))).collect(), ..Cluster::default() }
}

fn hosts(range: std::ops::Range<u16>) -> Vec<String> {
    range.map(|number| format!("n{number:04}")).collect()
}

fn names(hosts: &[String]) -> Names {
    let mut names = Names::new(7, None);
    names.set_mesh(&mesh(hosts), "own");
    names
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Looks up what is due, for this long, and returns when each name was.
fn look_up(
    names: &mut Names,
    from: Duration,
    to: Duration,
    lookup: Duration,
    answer: impl Fn(&EndpointName) -> Result<Vec<SocketAddr>, String>,
) -> BTreeMap<EndpointName, Vec<Duration>> {
    let mut times: BTreeMap<EndpointName, Vec<Duration>> = BTreeMap::new();
    let mut now = from;
    while now < to {
        if let Some(asked) = names.next(now) {
            assert_eq!((names.next(now), names.due()), (None, None), "one at a time");
            times.entry(asked.clone()).or_default().push(now);
            now += lookup;
            names.answer(answer(&asked), now);
        } else {
            let Some(due) = names.due() else { break };
            now = due.max(now + Duration::from_millis(1));
        }
    }
    times
}

#[test]
fn each_name_but_our_own_is_looked_up_once_while_all_is_well() {
    let mut names = names(&hosts(0..3));
    let times = look_up(&mut names, seconds(0), seconds(10_000), seconds(0), |_| Ok(vec![address(1)]));
    assert_eq!(times.len(), 3);
    assert!(times.values().all(|times| times.len() == 1) && !times.contains_key(&name("own")));
    assert_eq!(names.addresses()[&name("n0001")], address(1));
    assert!(names.warnings().is_empty());
}

#[test]
fn while_a_peer_does_not_answer_its_name_is_looked_up_after_5_s_and_less_and_less_often() {
    let mut names = names(&hosts(0..2));
    look_up(&mut names, seconds(0), seconds(1), seconds(0), |_| Ok(vec![address(1)]));
    names.set_silent(&[name("n0000")].into());
    let times = look_up(&mut names, seconds(1000), seconds(3000), seconds(0), |_| Ok(vec![address(1)]));
    assert_eq!(times.len(), 1);
    let times: Vec<_> = times[&name("n0000")].iter().map(Duration::as_secs_f64).collect();
    assert_eq!(times[0], 1000.0, "at once, because the last lookup is long ago");
    let waits: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (wait, least) in waits.iter().zip([10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0]) {
        assert!((least..=least * 1.25 + 0.01).contains(wait), "{waits:?}");
    }

    // Once it has answered, nothing is due; the next time begins anew.
    names.set_silent(&BTreeSet::new());
    assert_eq!(names.due(), None);
    names.set_silent(&[name("n0000")].into());
    assert_eq!(names.next(seconds(3001)), Some(name("n0000")));
    names.answer(Ok(vec![address(1)]), seconds(3001));

    // Whoever reloads has all of them looked up at once.
    names.ask_again();
    assert_eq!(names.due(), Some(Duration::ZERO));
}

#[test]
fn the_present_address_stays_while_it_is_among_the_answers_and_the_first_answer_is_taken_otherwise() {
    let mut names = names(&hosts(0..1));
    let mut now = seconds(0);
    let mut answer = |found: Result<Vec<SocketAddr>, String>| {
        names.set_silent(&[name("n0000")].into());
        now += seconds(1000);
        names.next(now).unwrap();
        let changed = names.answer(found, now);
        (changed, names.addresses().get(&name("n0000")).copied(), names.warnings().len())
    };
    let v6: SocketAddr = "[2001:db8::1]:51820".parse().unwrap();
    assert_eq!(answer(Err("no such name".into())), (false, None, 1));
    assert_eq!(answer(Ok(vec![v6, address(1)])), (true, Some(v6), 0), "the resolver's preference");
    assert_eq!(answer(Ok(vec![address(1), v6])), (false, Some(v6), 0));
    assert_eq!(answer(Ok(vec![address(1), address(2)])), (true, Some(address(1)), 0));
    assert_eq!(answer(Err("timed out".into())), (false, Some(address(1)), 1), "the last good one");
    assert_eq!(answer(Ok(vec![])), (false, Some(address(1)), 1));
}

#[test]
fn a_failure_is_a_warning_about_each_node_of_the_name() {
    let mut mesh = mesh(&hosts(0..1));
    mesh.nodes.insert("other".into(), mesh.nodes["n0000"].clone());
    let mut names = Names::new(7, None);
    names.set_mesh(&mesh, "own");
    names.next(seconds(1)).unwrap();
    names.answer(Err("no such name".into()), seconds(1));
    let warning = |node: &str| Warning::Unresolved {
        node: node.into(),
        endpoint: "n0000.example.org:51820".into(),
        error: "no such name".into(),
    };
    assert_eq!(names.warnings(), [warning("n0000"), warning("other")].into());
    mesh.nodes.remove("other");
    names.set_mesh(&mesh, "own");
    assert_eq!(names.warnings(), [warning("n0000")].into());
}

/// The name server does not answer for 800 of 1,000 names: each of these lookups takes 10 s. Then a good name of a
/// silent peer is due: it waits for the lookup that runs, and for no other.
#[test]
fn hundreds_of_bad_names_do_not_hold_up_a_good_one() {
    let (bad, good) = (hosts(0..800), hosts(800..1000));
    let all: Vec<String> = bad.iter().chain(&good).cloned().collect();
    let mut names = names(&all);
    let is_good = |name: &EndpointName| name.host() >= "n0800";
    let answer =
        |name: &EndpointName| if is_good(name) { Ok(vec![address(1)]) } else { Err("timed out".to_owned()) };
    let times = look_up(&mut names, seconds(0), seconds(20_000), seconds(10), answer);
    assert!(good.iter().all(|host| times[&name(host)].len() == 1));

    names.set_silent(&good.iter().map(|host| name(host)).collect());
    let times = look_up(&mut names, seconds(20_000), seconds(20_025), Duration::from_millis(50), answer);
    assert_eq!(
        times.keys().filter(|name| is_good(name)).count(),
        200,
        "50 ms each, after one that takes 10 s"
    );
}

#[test]
fn addresses_of_the_recorded_mesh_are_used_until_a_lookup_succeeds() {
    let mut recorded = mesh(&hosts(0..2));
    recorded.resolve(&[(name("n0000"), address(7))].into());
    assert_eq!(recorded.nodes["n0000"].endpoint, Some(address(7)));
    let mut names = Names::new(7, Some(&recorded));
    let mut snapshot = mesh(&hosts(0..2));
    names.set_mesh(&snapshot, "own");
    snapshot.resolve(&names.addresses());
    assert_eq!(snapshot, recorded);
    assert_eq!(names.due(), Some(Duration::ZERO), "and yet it is looked up");
    snapshot.resolve(&BTreeMap::new());
    assert_eq!(snapshot, mesh(&hosts(0..2)));
}

#[test]
fn a_peer_is_silent_if_it_never_answered_or_if_something_is_sent_after_its_session() {
    let mut silence = Silence::default();
    let mut look = |age: Option<u64>, sent| {
        let heard = Heard { handshake_age: age.map(Duration::from_secs), sent };
        !silence.look([(key(1), heard)].into_iter()).is_empty()
    };
    assert!(look(None, 0));
    assert!(!look(Some(1), 148));
    assert!(!look(Some(180), 1000), "the session may still be alive");
    assert!(!look(Some(181), 1000), "idle");
    assert!(!look(Some(2000), 1000), "idle");
    assert!(look(Some(2005), 1148), "an initiation");
    assert!(look(Some(2006), 1148), "still no answer");
    assert!(!look(Some(0), 1296));
    assert!(!look(Some(300), 0), "another device, with counters of its own");
}

#[test]
fn a_name_without_an_address_is_no_change_of_a_peer_that_has_one() {
    let mut machine = Machine::new("a", key(1), &three_nodes());
    machine.reconcile(&three_nodes());
    let mut named = three_nodes();
    let node = named.nodes.get_mut("b").unwrap();
    (node.endpoint, node.endpoint_name) = (None, Some(name("b")));
    let plan = machine.plan(&named);
    assert_eq!(plan.ops, []);
    assert!(!plan.warnings.contains(&Warning::NoEndpoint { node: "b".into() }));
}
