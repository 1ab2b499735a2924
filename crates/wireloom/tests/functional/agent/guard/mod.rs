//! Nothing that should be encrypted is in plaintext on the underlay, whatever disturbs routing, agent or device.
//!
//! A laboratory takes seconds to build, so each test tries many cases in one: see [`Watched::case`].

mod addresses;
mod counters;
mod device;
mod icmp;
mod ingress;
mod marks;
mod routing;
mod start;
mod tampering;
mod unaffected;

use std::{collections::BTreeSet, fmt, net::IpAddr, thread, time::Duration};

use ipnet::IpNet;
use wireloom_lab::{
    Capture, Content, FAMILIES, Layout, Node, PATIENCE, Packet, Pinger, Place, Promise, Stream, agent::Agent,
    at_this_pace, until,
};

use crate::{
    fixtures::fleet::{Fleet, run},
    wireloom,
};

/// How many leaked packets of a case are shown.
const SHOWN: usize = 6;

/// How long pings go on after a disturbance.
const AFTERMATH: Duration = Duration::from_millis(500);

/// How long to look at the underlay to see that pings are encrypted.
const LOOK: Duration = Duration::from_millis(100);

/// The time between two pings.
const INTERVAL: Duration = Duration::from_millis(10);

/// What the agents are asked to keep from being in plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// What is between the workloads of proven peers.
    Scoped,
    /// What is between proven peers, their own addresses included.
    Host,
    /// What is between any two addresses of a pool.
    Reject,
}

impl Mode {
    fn settings(self) -> &'static str {
        match self {
            Self::Scoped => "encrypt_host_traffic = false",
            Self::Host => "encrypt_host_traffic = true",
            Self::Reject => "unproven_peers = \"reject\"",
        }
    }

    fn promise(self) -> Promise {
        match self {
            Self::Scoped | Self::Reject => Promise::SCOPED,
            Self::Host => Promise::HOST,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scoped => "scoped",
            Self::Host => "host mode",
            Self::Reject => "reject",
        })
    }
}

/// A fleet that is disturbed while pings run between the pods of its first two nodes; in host mode also between these
/// nodes.
struct Watched {
    fleet: Fleet,
    mode: Mode,
    /// What its figures begin with.
    title: String,
    pingers: Vec<Pinger>,
    /// The addresses that these pings are from and to.
    ends: BTreeSet<IpAddr>,
    /// Addresses of nodes that lie in a pool: nobody's workload.
    holes: Vec<IpNet>,
    faults: Vec<String>,
}

impl Watched {
    /// Two nodes with an agent each.
    fn new(mode: Mode) -> Self {
        Self::over(Fleet::new(Layout::default(), mode.settings()), mode)
    }

    /// Those nodes of a fleet that have an agent.
    fn over(fleet: Fleet, mode: Mode) -> Self {
        let mut watched = Self {
            fleet,
            mode,
            title: mode.to_string(),
            pingers: Vec::new(),
            ends: BTreeSet::new(),
            holes: Vec::new(),
            faults: Vec::new(),
        };
        watched.ping_both_ways((0, Some(0)), (1, Some(0)));
        if mode == Mode::Host {
            watched.ping_both_ways((0, None), (1, None));
        }
        watched
    }

    /// Adds pings between two places: node and pod by their numbers, or the node's own network.
    fn ping_both_ways(&mut self, one: (usize, Option<usize>), other: (usize, Option<usize>)) {
        let place = |(node, pod): (usize, Option<usize>)| {
            let node = &self.fleet.lab.nodes[node];
            pod.map_or(&node.host, |pod| &node.pods[pod])
        };
        let (one, other) = (place(one), place(other));
        let pingers = ping_both_ways(one, other);
        self.ends.extend([one, other].iter().flat_map(|place| place.addresses.both()));
        self.pingers.extend(pingers);
    }

    /// Waits until no agent has anything left to do, all pings are answered, and none is in plaintext.
    #[track_caller]
    fn settle(&self) {
        for (node, _) in self.fleet.lab.nodes.iter().zip(&self.fleet.agents) {
            self.fleet.wait_until_done(node);
        }
        self.fleet.wait("all pings to be encrypted", |fleet| {
            let capture = Capture::open(fleet.lab.underlay()).unwrap();
            let before: Vec<_> = self.pingers.iter().map(Pinger::answered).collect();
            thread::sleep(at_this_pace(LOOK));
            let answered =
                self.pingers.iter().zip(&before).all(|(pinger, before)| pinger.answered() > *before);
            let mut packets = capture.drain().unwrap();
            packets.retain(|packet| {
                self.ends.contains(&packet.source) && self.ends.contains(&packet.destination)
            });
            answered && self.leaked(&packets) == 0
        });
    }

    /// Disturbs a fleet that is [settled](Watched::settle), counts what is in plaintext on the underlay from then on
    /// until [`AFTERMATH`] is over, and undoes the disturbance as far as the agents do not do that by themselves.
    #[track_caller]
    fn case<T>(
        &mut self,
        name: &str,
        disturb: impl FnOnce(&mut Fleet) -> T,
        undo: impl FnOnce(&mut Fleet, T),
    ) {
        self.settle();
        self.measure(name, 0, disturb, undo);
    }

    /// As [`Watched::case`], in whatever state the fleet is, and with this many packets in plaintext allowed.
    fn measure<T>(
        &mut self,
        name: &str,
        allowed: usize,
        disturb: impl FnOnce(&mut Fleet) -> T,
        undo: impl FnOnce(&mut Fleet, T),
    ) {
        let capture = Capture::open(self.fleet.lab.underlay()).unwrap();
        let disturbance = disturb(&mut self.fleet);
        thread::sleep(at_this_pace(AFTERMATH));
        let packets = capture.drain().unwrap();
        let leaked = self.leaked(&packets);
        for packet in packets.iter().filter(|packet| self.is_leak(packet)).take(SHOWN) {
            println!("in plaintext: {packet:?}");
        }
        undo(&mut self.fleet, disturbance);
        println!("figure: {}: {name}: {leaked} packets in plaintext", self.title);
        if leaked > allowed {
            self.faults.push(format!("{name}: {leaked} packets in plaintext"));
        }
    }

    /// Something else that must hold: `good` says whether it does.
    fn check(&mut self, what: &str, good: bool) {
        println!("figure: {}: {what}: {}", self.title, if good { "yes" } else { "no" });
        if !good {
            self.faults.push(format!("not so: {what}"));
        }
    }

    /// After all cases: shows every one that did not go as it should.
    #[track_caller]
    fn assert_no_fault(&self) {
        assert!(self.faults.is_empty(), "{}:\n{}", self.title, self.faults.join("\n"));
    }

    /// How many of these packets, or of those that errors among them quote, are in plaintext and should not be.
    fn leaked(&self, packets: &[Packet]) -> usize {
        packets.iter().filter(|packet| self.is_leak(packet)).count()
    }

    fn is_leak(&self, packet: &Packet) -> bool {
        match &packet.content {
            Content::WireGuard { .. } | Content::Link => false,
            // What it quotes counts: it may be ciphertext.
            Content::Error { about } => self.is_leak(about),
            _ => self.is_ours(packet.source) && self.is_ours(packet.destination),
        }
    }

    /// Whether what is between this address and another such is to be encrypted.
    fn is_ours(&self, address: IpAddr) -> bool {
        let holds = |prefix: &IpNet| prefix.contains(&address);
        let pools = &self.fleet.mesh.pools;
        let is_workload = pools.iter().any(|pool| holds(&pool.cidr)) && !self.holes.iter().any(holds);
        let mut members = self.fleet.mesh.nodes.iter();
        is_workload || self.mode == Mode::Host && members.any(|node| node.addresses.contains(&address))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.pingers.iter().for_each(Pinger::end);
    }
}

/// Pings over both families.
fn ping(from: &Place, to: &Place) -> Vec<Pinger> {
    FAMILIES.map(|family| Pinger::steady(from, to, family, INTERVAL).unwrap()).into()
}

fn ping_both_ways(one: &Place, other: &Place) -> Vec<Pinger> {
    ping(one, other).into_iter().chain(ping(other, one)).collect()
}

/// Whether a ping of one packet from a place to an address is answered.
fn reaches(from: &Place, to: IpAddr) -> bool {
    from.space.run(&format!("ping -n -q -c 1 -W 1 {to}")).is_ok()
}

/// Whether TCP streams, of segments as large as the sender believes in, flow over both families.
fn carries_streams(from: &Place, to: &Place) -> bool {
    FAMILIES.iter().all(|family| {
        let Ok(stream) = Stream::start(from, to, *family) else { return false };
        let flows = until(PATIENCE, "the stream to flow", || (stream.received() > 100_000).then_some(()));
        flows.is_ok() && stream.stop().is_ok_and(|report| report.intact)
    })
}

/// Whether the agents use the userspace engine.
fn is_userspace() -> bool {
    std::env::var("WIRELOOM_LAB_BACKEND").map_or(true, |backend| backend == "userspace")
}

/// Kills the agent of a node (SIGKILL); the agents of the nodes behind it move up.
fn kill_agent(fleet: &mut Fleet, node: usize) {
    fleet.agents.remove(node).kill().unwrap();
}

/// Starts the agent of a node again, and waits until it has done its first pass.
#[track_caller]
fn start_agent(fleet: &mut Fleet, node: usize) {
    fleet.agents.insert(node, Agent::start(wireloom(), &fleet.lab.nodes[node]).unwrap());
    fleet.wait_for_report(&fleet.lab.nodes[node], &fleet.agents[node]);
}

/// Deletes the agent's rules of both families.
fn delete_rules(node: &Node) {
    for family in ["-4", "-6"] {
        while node.run(&format!("ip {family} rule del pref 99")).is_ok() {}
    }
}

/// Runs a command of `ip` for both families.
fn ip(node: &Node, words: &str) {
    for family in ["-4", "-6"] {
        node.run(&format!("ip {family} {words}")).unwrap();
    }
}

/// The process id of the userspace device that serves `wg0`, as seen on its node.
fn device(node: &Node) -> Option<String> {
    node.run("pgrep -f device.*wg0").ok().map(|shown| shown.trim().to_owned())
}

/// Whether the agent's nftables table is there.
fn has_table(node: &Node) -> bool {
    node.run("nft list table inet wireloom").is_ok()
}

/// What `wireloom status` says on a node.
fn status(node: &Node) -> String {
    run(node, "status").1
}
