//! The measurements, in the order in which the demo makes them.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use wireloom_lab::{
    FAMILIES, Link, Node, PingReport, Pinger, Place, Space, Wire,
    probe::{Exchange, probe},
    until,
};
use wireloom_plan::routing::Family;

use super::{
    BACKUP, PRIMARY,
    table::{Measured, Row},
};

/// How long OSPF may take to find neighbours and routes: it listens for four seconds before it elects.
const CONVERGENCE: Duration = Duration::from_secs(20);

/// How long traffic may be lost when a router dies: BFD declares it down after one second, and BIRD's OSPF computes
/// its routes once a second.
const FAILOVER: Duration = Duration::from_secs(5);

/// Time between two pings.
const INTERVAL: Duration = Duration::from_millis(10);

/// How many packets have a forged source.
const FORGED: usize = 20;

/// Waits until every router has a route to the prefix behind every other.
pub(super) fn learning(link: &Link) -> anyhow::Result<Row> {
    let began = Instant::now();
    let nodes = &link.lab.nodes;
    let all = nodes.len() * (nodes.len() - 1);
    let learnt = |k: usize| {
        let pairs = nodes.iter().flat_map(|from| nodes.iter().map(move |to| (from, to)));
        pairs.filter(|(from, to)| from.name != to.name && knows(from, to, k)).count()
    };
    let mut seconds = [None; 2];
    let _ = until(CONVERGENCE, "OSPF to find all routes", || {
        for (k, seconds) in seconds.iter_mut().enumerate() {
            if seconds.is_none() && learnt(k) == all {
                *seconds = Some(began.elapsed().as_secs_f64());
            }
        }
        seconds.iter().all(Option::is_some).then_some(())
    });
    let measured = [0, 1].map(|k| match seconds[k] {
        Some(seconds) => Measured { words: format!("{all} of {all} in {seconds:.1} s"), kept: true },
        None => Measured { words: format!("{} of {all}", learnt(k)), kept: false },
    });
    Ok(Row { what: "prefixes that OSPF teaches the routers", promise: "all".into(), measured })
}

/// Whether a router has a route over the link to the prefix behind another; `family` is an index into [`FAMILIES`].
fn knows(from: &Node, to: &Node, family: usize) -> bool {
    let option = ["-4", "-6"][family];
    let shown = from.run(&format!("ip {option} route show {}", to.block[family]));
    shown.is_ok_and(|routes| routes.contains("dev wg0"))
}

/// Probes from the host behind each router to the host behind each other one.
pub(super) fn hosts(link: &Link) -> anyhow::Result<Row> {
    let nodes = &link.lab.nodes;
    let began = Instant::now();
    let mut measured = Vec::new();
    for family in FAMILIES {
        let (mut all, mut kept) = (0, 0);
        for (from, to) in nodes.iter().flat_map(|from| nodes.iter().map(move |to| (from, to))) {
            if from.name != to.name {
                let [from, to] = [&from.pods[0], &to.pods[0]];
                let reached = || {
                    let cell = probe(link.lab.underlay(), from, to, family, Exchange::Ping).ok()?;
                    (cell.reachable && cell.wire == Wire::Encrypted).then_some(())
                };
                all += 1;
                let patience = CONVERGENCE.saturating_sub(began.elapsed());
                kept += usize::from(until(patience, "a host to reach another", reached).is_ok());
            }
        }
        measured.push(Measured { words: format!("{kept} of {all} pairs"), kept: kept == all });
    }
    Ok(row("hosts that reach each other", "all, encrypted".into(), measured))
}

/// Kills the router that the service is reached on. Another router offers it too, at a higher cost.
pub(super) fn failover(link: &mut Link) -> anyhow::Result<[Row; 2]> {
    let service = link.service(BACKUP);
    let [before, after] = [PRIMARY, BACKUP].map(|router| link.lab.nodes[router].name.clone());
    let hops = [PRIMARY, BACKUP].map(|router| link.gateways(router));
    let client = &link.lab.nodes[0];
    let gateway = |family| gateway(client, &service, family);
    let first: Vec<_> = FAMILIES.into_iter().map(gateway).collect::<Result<_, _>>()?;

    let mut pingers = Vec::new();
    for family in FAMILIES {
        pingers.push(Pinger::start(&client.pods[0], &service, family, INTERVAL)?);
    }
    // A second of pings that are answered, for comparison.
    std::thread::sleep(Duration::from_secs(1));
    drop(link.lab.nodes.remove(PRIMARY));
    let client = &link.lab.nodes[0];
    // A killed machine forwards until the kernel has taken its namespace apart, so a new route alone proves nothing.
    let is_elsewhere = |family, was: &Option<String>| {
        self::gateway(client, &service, family).is_ok_and(|now| now.is_some() && now != *was)
    };
    let answers = |family| {
        let cell = probe(link.lab.underlay(), &client.pods[0], &service, family, Exchange::Ping);
        cell.is_ok_and(|cell| cell.reachable)
    };
    let _ = until(4 * FAILOVER, "traffic to move to the other router", || {
        FAMILIES
            .into_iter()
            .zip(&first)
            .all(|(family, was)| is_elsewhere(family, was) && answers(family))
            .then_some(())
    });

    let mut moved = Vec::new();
    let mut took = Vec::new();
    for (k, (family, pinger)) in FAMILIES.into_iter().zip(pingers).enumerate() {
        let last = self::gateway(client, &service, family)?;
        let name = |gateway: &Option<String>| match gateway {
            Some(gateway) if hops[0].contains(gateway) => before.clone(),
            Some(gateway) if hops[1].contains(gateway) => after.clone(),
            Some(other) => other.clone(),
            None => "nobody".into(),
        };
        let (was, is) = (name(&first[k]), name(&last));
        moved.push(Measured { kept: was == before && is == after, words: format!("{was} → {is}") });
        let PingReport { sent, lost, outage, .. } = pinger.stop()?;
        took.push(Measured {
            kept: lost < sent && outage < FAILOVER,
            words: format!("{:.2} s, {lost} pings", outage.as_secs_f64()),
        });
    }
    Ok([
        row("a router is killed: traffic moves", format!("{before} → {after}"), moved),
        row("  and was lost for", format!("under {} s", FAILOVER.as_secs()), took),
    ])
}

/// The next hop of a node's route from its first pod to a place; `None` when there is no route.
fn gateway(node: &Node, to: &Place, family: Family) -> anyhow::Result<Option<String>> {
    let source = node.pods[0].addresses.of(family);
    let target = to.addresses.of(family);
    // `ip` fails when the destination is unreachable.
    let Ok(route) = node.run(&format!("ip route get {target} from {source} iif lan0")) else {
        return Ok(None);
    };
    let mut words = route.split_whitespace().skip_while(|word| *word != "via").skip(1);
    Ok(words.next().map(str::to_owned))
}

/// Sends from a router with a source address that is behind another one: the firewall must drop and count the packets.
pub(super) fn forgery(link: &Link) -> anyhow::Result<Row> {
    let [liar, victim, .., robbed] = &link.lab.nodes[..] else { anyhow::bail!("three routers at least") };
    let (source, target) = (&robbed.pods[0], &victim.pods[0]);
    let mut measured = Vec::new();
    for (family, stolen) in FAMILIES.into_iter().zip(source.addresses.single()) {
        // Without `nodad` an IPv6 address cannot be used at once.
        let nodad = if family == Family::V6 { "nodad" } else { "" };
        liar.run(&format!("ip address add {stolen} dev lo {nodad}"))?;
        let before = refused(victim, family)?;
        let server = bind(&target.space, target, family, 9)?;
        server.set_read_timeout(Some(Duration::from_millis(300)))?;
        let forger = bind(&liar.host.space, source, family, 0)?;
        // Each is longer than the one before: datagrams of one length would leave the tunnel as one GRO packet,
        // which the firewall counts once.
        for len in 1..=FORGED {
            forger.send_to(&[b'!'; FORGED][..len], SocketAddr::new(target.addresses.of(family), 9))?;
        }
        let counted = || Ok::<_, anyhow::Error>(refused(victim, family)? - before);
        let all = || counted().is_ok_and(|counted| counted == FORGED).then_some(());
        let _ = until(CONVERGENCE, "the firewall to count all", all);
        let mut buffer = [0; 64];
        let arrived = std::iter::from_fn(|| server.recv(&mut buffer).ok()).count();
        let counted = counted()?;
        measured.push(Measured {
            words: format!("{counted} of {FORGED}, {arrived} arrived"),
            kept: counted == FORGED && arrived == 0,
        });
    }
    Ok(row("forged sources: dropped and counted", "none arrives".into(), measured))
}

fn bind(space: &Space, place: &Place, family: Family, port: u16) -> anyhow::Result<UdpSocket> {
    let address = SocketAddr::new(place.addresses.of(family), port);
    let socket = space.inside(|| UdpSocket::bind(address))?;
    socket.with_context(|| format!("cannot bind {address} in {}", space.place()))
}

/// How many packets a router's firewall has dropped because of their source.
fn refused(node: &Node, family: Family) -> anyhow::Result<usize> {
    let counter = if family == Family::V4 { "refused4" } else { "refused6" };
    let shown = node.run(&format!("nft list counter inet sources {counter}"))?;
    let mut words = shown.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    let packets = words.next().and_then(|number| number.parse().ok());
    packets.ok_or_else(|| anyhow::anyhow!("nft printed something unexpected: {shown:?}"))
}

fn row(what: &'static str, promise: String, measured: Vec<Measured>) -> Row {
    let measured = measured.try_into().ok().expect("both families were measured");
    Row { what, promise, measured }
}
