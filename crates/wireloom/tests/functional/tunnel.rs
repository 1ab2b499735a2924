//! Two nodes with a WireGuard interface each, configured by `wg`.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    thread,
};

use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::Pid,
};
use wireloom_lab::{Lab, Layout, Node, PATIENCE, mesh::KeyPair, until};
use wireloom_plan::routing::Family;

use crate::wireloom;

/// Which program makes an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Wireloom,
    /// With more threads than any machine needs that runs the tests.
    WireloomThreads,
    WireguardGo,
    /// None: the kernel itself.
    #[cfg(feature = "kernel-wireguard")]
    Kernel,
}

impl Program {
    /// Makes the interface `wg0` on a node.
    pub(crate) fn start(self, node: &Node) {
        match self {
            Self::Wireloom => node.run(&format!("{} device wg0", wireloom().display())),
            Self::WireloomThreads => {
                node.run(&format!("{} device wg0 --threads {THREADS}", wireloom().display()))
            }
            // On one CPU, so that what overloads it does not depend on the machine.
            Self::WireguardGo => {
                let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
                let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap()).unwrap();
                node.run(&format!("taskset --cpu-list {first} wireguard-go wg0"))
            }
            #[cfg(feature = "kernel-wireguard")]
            Self::Kernel => node.run("ip link add wg0 type wireguard").map_err(|error| {
                panic!("{error}: this test belongs into the virtual machine of tests/vm, or to a kernel with WireGuard")
            }),
        }
        .unwrap();
    }
}

pub(crate) const PORT: u16 = 51_820;

/// How many threads [`Program::WireloomThreads`] has.
pub(crate) const THREADS: usize = 4;

/// A tunnel between the first two nodes of a laboratory.
pub(crate) struct Tunnel {
    pub(crate) lab: Lab,
    pub(crate) keys: Vec<KeyPair>,
}

/// The addresses inside the tunnel of the node at this place.
pub(crate) fn inner(place: usize) -> [IpAddr; 2] {
    [format!("10.99.0.{}", place + 1), format!("fd99::{}", place + 1)].map(|text| text.parse().unwrap())
}

impl Tunnel {
    /// Makes the interfaces with keys and addresses, up, the two nodes each other's peers, but without
    /// endpoints: nobody can begin yet.
    pub(crate) fn new(programs: &[Program]) -> Self {
        let layout = Layout { nodes: programs.len().max(2) as u8, pods: 0, ..Layout::default() };
        Self::between(programs, &layout)
    }

    /// As [`Tunnel::new`], between nodes of this layout.
    pub(crate) fn between(programs: &[Program], layout: &Layout) -> Self {
        let lab = Lab::new(layout).unwrap();
        let keys: Vec<_> =
            lab.nodes.iter().map(|node| KeyPair::generate(wireloom(), node).unwrap()).collect();
        let tunnel = Self { lab, keys };
        for (place, program) in programs.iter().enumerate() {
            let node = tunnel.node(place);
            program.start(node);
            node.host.space.write("/run/key", &tunnel.keys[place].private).unwrap();
            let [v4, v6] = inner(place);
            node.run(&format!("wg set wg0 private-key /run/key listen-port {PORT}")).unwrap();
            node.run(&format!("ip address add {v4}/24 dev wg0")).unwrap();
            node.run(&format!("ip address add {v6}/64 dev wg0 nodad")).unwrap();
            node.run("ip link set wg0 up").unwrap();
        }
        for (place, other) in [(0, 1), (1, 0)].into_iter().take(programs.len()) {
            let [v4, v6] = inner(other);
            tunnel.set_peer(place, other, &format!("allowed-ips {v4}/32,{v6}/128"));
        }
        tunnel
    }

    /// A tunnel of Wireloom's own, both of whose ends know where the other one is.
    pub(crate) fn established() -> Self {
        Self::established_with(Program::Wireloom)
    }

    /// As [`Tunnel::established`], of this program.
    pub(crate) fn established_with(program: Program) -> Self {
        let tunnel = Self::new(&[program; 2]);
        tunnel.set_endpoint(0, 1, Family::V4);
        tunnel.set_endpoint(1, 0, Family::V4);
        tunnel.settle();
        tunnel
    }

    pub(crate) fn node(&self, place: usize) -> &Node {
        &self.lab.nodes[place]
    }

    /// Changes what a node's interface knows of a peer, in the words of `wg set`.
    pub(crate) fn set_peer(&self, place: usize, peer: usize, words: &str) {
        let public = &self.keys[peer].public;
        self.node(place).run(&format!("wg set wg0 peer {public} {words}")).unwrap();
    }

    pub(crate) fn set_endpoint(&self, place: usize, peer: usize, family: Family) {
        self.set_peer(place, peer, &format!("endpoint {}", self.endpoint(peer, family)));
    }

    /// Where a node's interface listens.
    pub(crate) fn endpoint(&self, place: usize, family: Family) -> SocketAddr {
        (self.node(place).host.addresses.of(family), PORT).into()
    }

    /// Waits until one ping has gone through the tunnel in each family, from the first node.
    #[track_caller]
    pub(crate) fn settle(&self) {
        self.settle_from(0, 1);
    }

    /// As [`Tunnel::settle`], from another node.
    #[track_caller]
    pub(crate) fn settle_from(&self, from: usize, to: usize) {
        for address in inner(to) {
            let arrived = || ping(self.node(from), address).then_some(());
            until(PATIENCE, &format!("a ping to {address}"), arrived).unwrap();
        }
    }

    /// What a node's interface says in the column `what` of `wg show` about its only peer.
    pub(crate) fn shown(&self, place: usize, what: &str) -> String {
        let shown = self.node(place).run(&format!("wg show wg0 {what}")).unwrap();
        let (_, value) = shown.trim().split_once('\t').expect("a peer");
        value.to_owned()
    }

    /// When a node's interface last shook hands, in seconds since the epoch; 0 is never.
    pub(crate) fn handshake(&self, place: usize) -> u64 {
        self.shown(place, "latest-handshakes").parse().unwrap()
    }
}

/// Whether one echo request is answered within a second.
pub(crate) fn ping(node: &Node, to: IpAddr) -> bool {
    let mut command = Command::new("ping");
    let output = node.host.space.output(command.args(["-n", "-q", "-c1", "-W1"]).arg(to.to_string()));
    output.unwrap().status.success()
}

/// Makes echo requests, each command line in the words of `ping`, all at once, and waits until `count`
/// of them were answered.
///
/// The kernel counts the answers: `ping` itself waits only twice the usual time for the last ones,
/// and calls what comes later on a busy machine lost.
#[track_caller]
pub(crate) fn all_answered(node: &Node, lines: &[String], count: u64) {
    let replies = || {
        let counters = node.run("nstat -asz IcmpInEchoReps Icmp6InEchoReplies").unwrap();
        let values = counters.lines().filter_map(|line| line.split_whitespace().nth(1));
        values.map(|value| value.parse::<u64>().unwrap()).sum::<u64>()
    };
    let before = replies();
    thread::scope(|scope| {
        for line in lines {
            scope.spawn(|| {
                let mut command = Command::new("ping");
                node.host.space.output(command.args(["-n", "-q"]).args(line.split(' '))).unwrap()
            });
        }
    });
    let all = || (replies() - before >= count).then_some(());
    let result = until(PATIENCE, "answers", all);
    assert!(result.is_ok(), "{} answers of {count} to {lines:?}", replies() - before);
}

/// A file's path as one word of a command line.
pub(crate) fn word(path: &Path) -> &str {
    path.to_str().expect("the build directory has a plain name")
}
