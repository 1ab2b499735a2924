//! Machines with in-memory kernels, and packets between them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    slice,
};

use ipnet::IpNet;
use wireloom_plan::{
    cluster::{Cluster, Node},
    firewall::GuardSet,
    observed::{Observed, Underlay},
    op::{DeviceOp, Op},
    planner::{Plan, Planner},
    routing::{Family, RouteKind, Rule},
    settings::Settings,
    standing::{Standing, Standings},
};
use wireloom_types::{LinkAddress, PeerLookup, PublicKey, SourceCheck};

pub(crate) fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A node as the membership reports it.
pub(crate) fn node(public_key: Option<u8>, addresses: &[&str], workloads: &[&str]) -> Node {
    let addresses: BTreeSet<IpAddr> = addresses.iter().copied().map(ip).collect();
    Node {
        public_key: public_key.map(key),
        endpoint: addresses.first().map(|address| (*address, 51820).into()),
        addresses,
        workloads: workloads.iter().copied().map(net).collect(),
        ..Node::default()
    }
}

/// Three nodes with keys 1, 2 and 3, in both families, and a pool of each.
pub(crate) fn three_nodes() -> Cluster {
    let nodes = [("a", 1), ("b", 2), ("c", 3)].map(|(name, number)| {
        let addresses = [format!("192.168.1.{number}"), format!("fd00::{number}")];
        let workloads = [format!("10.161.{number}.0/24"), format!("fd61:0:0:{number}::/64")];
        (
            name.to_owned(),
            node(Some(number), &addresses.each_ref().map(|a| &**a), &workloads.each_ref().map(|w| &**w)),
        )
    });
    Cluster {
        pools: [net("10.161.0.0/16"), net("fd61::/48")].into(),
        nodes: nodes.into(),
        ..Cluster::default()
    }
}

/// The standing of a node that proved this key long ago.
pub(crate) fn proven(public_key: PublicKey) -> Standing {
    Standing { key: public_key, egress: true, ingress: true, fresh: false }
}

/// All other nodes with a key of their own have proved it long ago, if this one has such a key.
pub(crate) fn all_proven(name: &str, cluster: &Cluster) -> Standings {
    let holders = |key| cluster.nodes.values().filter(move |node| node.public_key == Some(key)).count();
    if cluster.nodes.get(name).and_then(|node| node.public_key).is_none_or(|key| holders(key) != 1) {
        return Standings::new();
    }
    let proved = |(other, node): (&String, &Node)| {
        let key = node.public_key.filter(|key| other != name && holders(*key) == 1)?;
        Some((other.clone(), proven(key)))
    };
    cluster.nodes.iter().filter_map(proved).collect()
}

/// A machine on which an agent runs, with its kernel.
pub(crate) struct Machine {
    pub(crate) settings: Settings,
    pub(crate) public_key: PublicKey,
    pub(crate) kernel: Observed,
    /// Absent: all others have proved their keys.
    pub(crate) standings: Option<Standings>,
}

impl Machine {
    /// A machine with its declared addresses on `eth0` and with strict source validation.
    pub(crate) fn new(name: &str, public_key: PublicKey, cluster: &Cluster) -> Self {
        let addresses = cluster.nodes.get(name).map(|node| node.addresses.clone()).unwrap_or_default();
        let eth0 = Underlay { mtu: 1500, addresses, rp_filter: 1, src_valid_mark: false };
        let kernel = Observed {
            underlays: [("eth0".to_owned(), eth0)].into(),
            outward: [("eth0".to_owned(), 1)].into(),
            ..Observed::default()
        };
        Self { settings: Settings::defaults(name), public_key, kernel, standings: None }
    }

    pub(crate) fn plan(&self, cluster: &Cluster) -> Plan {
        self.planner(cluster).plan(&self.kernel).unwrap()
    }

    pub(crate) fn planner(&self, cluster: &Cluster) -> Planner {
        let mut planner = Planner::new(self.settings.clone(), self.public_key, cluster.clone());
        let standings = self.standings.clone();
        planner.set_standings(standings.unwrap_or_else(|| all_proven(&self.settings.node, cluster)));
        planner
    }

    /// Plans, applies, and checks that nothing is left to do, as a newly started agent does.
    pub(crate) fn reconcile(&mut self, cluster: &Cluster) -> Plan {
        let plan = self.plan(cluster);
        self.kernel.apply_all(&plan.ops).unwrap();
        assert_eq!(self.plan(cluster).ops, vec![], "a second pass makes no change");
        plan
    }

    /// The rules as `ip rule show` prints them, without their protocol.
    pub(crate) fn rules(&self) -> Vec<String> {
        self.kernel.rules.iter().map(show).collect()
    }

    pub(crate) fn route(&self, destination: &str) -> Option<&RouteKind> {
        self.kernel.routes_to(net(destination)).map(|route| &route.kind).next()
    }

    pub(crate) fn allowed_ips(&self, peer: u8) -> Vec<String> {
        let device = self.kernel.device.as_ref().unwrap();
        device.peers[&key(peer)].allowed_ips.iter().map(ToString::to_string).collect()
    }

    pub(crate) fn peers(&self) -> Vec<PublicKey> {
        self.kernel.device.as_ref().unwrap().peers.keys().copied().collect()
    }

    /// The path that policy routing (`fib_rules_lookup`, net/core/fib_rules.c) and cryptokey routing give a
    /// packet. `from` is absent when the host has yet to choose a source.
    fn way(&self, from: Option<IpAddr>, to: IpAddr, mark: u32) -> Way {
        let family = Family::of(to);
        let mut rules: Vec<&Rule> = self.kernel.rules.iter().filter(|rule| rule.family == family).collect();
        rules.sort_by_key(|rule| rule.priority);
        for rule in rules {
            let source = rule.from.is_none_or(|prefix| from.is_some_and(|from| prefix.contains(&from)));
            let matches = source && (rule.mark ^ mark) & rule.mask == 0;
            if matches == rule.invert {
                continue;
            }
            let best = self
                .kernel
                .routes
                .iter()
                .filter(|route| route.destination.contains(&to))
                .max_by_key(|route| route.destination.prefix_len());
            match best.map(|route| &route.kind) {
                None | Some(RouteKind::Throw) => {}
                Some(RouteKind::Unreachable) => return Way::Refused,
                Some(RouteKind::Device { gateway, source, .. }) => {
                    let peer_lookup = self.kernel.interface.as_ref().map(|interface| interface.peer_lookup);
                    let peer = match peer_lookup {
                        Some(PeerLookup::Gateway) => self.neighbour(gateway.unwrap_or(to)),
                        _ => self.peer_of(to),
                    };
                    return match peer {
                        Some(peer) => Way::Tunnel { peer, source: *source },
                        None => Way::Refused, // ENOKEY
                    };
                }
                Some(RouteKind::Other(_)) => panic!("{to} met a route that is not modelled"),
            }
        }
        Way::Direct
    }

    /// The peer to which the device sends a frame.
    fn neighbour(&self, next_hop: IpAddr) -> Option<PublicKey> {
        let link_address = self.kernel.neighbours.get(&next_hop)?;
        let device = self.kernel.device.as_ref()?;
        device.peers.keys().copied().find(|key| LinkAddress::of(*key) == *link_address)
    }

    /// Whether the device accepts a packet with this source from the peer.
    fn takes(&self, source: IpAddr, peer: PublicKey) -> bool {
        let Some(device) = &self.kernel.device else { return false };
        device.peers.contains_key(&peer)
            && match device.source_check {
                SourceCheck::AllowedIps => self.peer_of(source) == Some(peer),
                SourceCheck::Firewall => self.admits(source, peer),
                SourceCheck::Off => true,
            }
    }

    /// Whether the firewall admits this source of the peer.
    fn admits(&self, source: IpAddr, peer: PublicKey) -> bool {
        let judges = self.kernel.firewall.as_ref().is_some_and(|firewall| firewall.judge_sources);
        let mut sources = self.kernel.sources.iter();
        let admitted = sources.any(|one| one.peer == LinkAddress::of(peer) && one.addresses.contains(source));
        judges && admitted
    }

    /// The sources of a peer as nft lists them.
    pub(crate) fn sources(&self, peer: u8) -> Vec<String> {
        let peer = LinkAddress::of(key(peer));
        let sources = self.kernel.sources.iter().filter(|source| source.peer == peer);
        sources.map(|source| source.addresses.to_string()).collect()
    }

    /// The ranges of a set of the guard as nft lists them.
    pub(crate) fn guarded(&self, set: GuardSet) -> Vec<String> {
        let elements = self.kernel.guarded.iter().filter(|element| element.set == set);
        elements.map(|element| element.addresses.to_string()).collect()
    }

    fn is_guarded(&self, set: GuardSet, address: IpAddr) -> bool {
        self.kernel.guarded.iter().any(|element| element.set == set && element.addresses.contains(address))
    }

    /// Whether the guard refuses a packet in plaintext between a workload here and one elsewhere, which the set may
    /// name.
    fn guard_refuses(&self, own: IpAddr, there: IpAddr, set: GuardSet) -> bool {
        let guard = self.kernel.firewall.as_ref().and_then(|firewall| firewall.guard.as_ref());
        let passes = |address| {
            self.is_guarded(GuardSet::Nodes, address)
                || self.is_exempt(address)
                || self.is_guarded(GuardSet::Tolerated, address)
        };
        guard.is_some_and(|guard| {
            !(passes(own) || passes(there))
                && self.is_guarded(GuardSet::Own, own)
                && (self.is_guarded(set, there) || (guard.reject && self.is_guarded(GuardSet::Pools, there)))
        })
    }

    /// Whether the guard marks what the host sends from or to the address, so that it is direct.
    fn is_exempt(&self, address: IpAddr) -> bool {
        let guard = self.kernel.firewall.as_ref().and_then(|firewall| firewall.guard.as_ref());
        guard.is_some_and(|guard| guard.datagrams.is_some()) && self.is_guarded(GuardSet::Exempt, address)
    }

    /// The longest prefix in allowed-IPs that holds the address.
    fn peer_of(&self, address: IpAddr) -> Option<PublicKey> {
        let peers = &self.kernel.device.as_ref()?.peers;
        let holds =
            peers.iter().flat_map(|(key, peer)| peer.allowed_ips.iter().map(move |prefix| (prefix, *key)));
        holds
            .filter(|(prefix, _)| prefix.contains(&address))
            .max_by_key(|(prefix, _)| prefix.prefix_len())
            .map(|(_, key)| key)
    }
}

enum Way {
    Direct,
    Tunnel { peer: PublicKey, source: Option<IpAddr> },
    Refused,
}

fn show(rule: &Rule) -> String {
    let not = if rule.invert { "not " } else { "" };
    let from = rule.from.map_or("all".to_owned(), |from| from.to_string());
    let mark = if rule.mark == 0 { "0".to_owned() } else { format!("{:#x}", rule.mark) };
    format!("{}: {not}from {from} fwmark {mark}/{:#x} lookup {}", rule.priority, rule.mask, rule.table)
}

/// One end of an exchange.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End<'a> {
    /// A workload of the node, with this address.
    Pod(&'a str, &'a str),
    /// The node itself.
    Host(&'a str),
}

/// What happened to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It arrived, in plaintext.
    Direct,
    /// It arrived, through the tunnel.
    Encrypted,
    /// The sender's kernel or its guard refused it.
    Refused,
    /// The other end's allowed-IPs or its guard refused its source, or the tunnel ended elsewhere.
    Lost,
}

/// A mesh of machines.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) machines: BTreeMap<String, Machine>,
}

impl World {
    /// A machine for each node with the key that the membership says; keyless nodes have a key file too.
    pub(crate) fn new(cluster: Cluster) -> Self {
        let machine = |(number, (name, node)): (usize, (&String, &Node))| {
            let own = node.public_key.unwrap_or_else(|| key(100 + u8::try_from(number).unwrap()));
            (name.clone(), Machine::new(name, own, &cluster))
        };
        let machines = cluster.nodes.iter().enumerate().map(machine).collect();
        Self { cluster, machines }
    }

    pub(crate) fn machine(&mut self, name: &str) -> &mut Machine {
        self.machines.get_mut(name).unwrap()
    }

    pub(crate) fn settings(&mut self, change: impl Fn(&mut Settings)) {
        self.machines.values_mut().for_each(|machine| change(&mut machine.settings));
    }

    pub(crate) fn reconcile(&mut self) {
        self.machines.values_mut().for_each(|machine| {
            machine.reconcile(&self.cluster);
        });
    }

    /// A node's own address of the family.
    fn own_address(&self, node: &str, family: Family) -> IpAddr {
        let addresses = &self.cluster.nodes[node].addresses;
        *addresses.iter().find(|address| Family::of(**address) == family).unwrap()
    }

    /// A packet there and one back, of the pod's family (hosts have addresses of both).
    pub(crate) fn exchange(&self, from: End<'_>, to: End<'_>, family: Family) -> [Fate; 2] {
        let address = |end: End<'_>| match end {
            End::Pod(_, address) => ip(address),
            End::Host(node) => self.own_address(node, family),
        };
        let name = |end| match end {
            End::Pod(node, _) | End::Host(node) => node,
        };
        // A host's first packet has no source yet: routing chooses one, and the reply goes back to it.
        let chosen = match from {
            End::Pod(..) => None,
            End::Host(node) => Some(node),
        };
        let (there, source) = self.packet(name(from), chosen, address(from), name(to), address(to));
        let (back, _) = self.packet(name(to), None, address(to), name(from), source);
        [there, back]
    }

    /// What happens to one packet, and the source that it had.
    fn packet(
        &self,
        sender: &str,
        unbound: Option<&str>,
        source: IpAddr,
        receiver: &str,
        destination: IpAddr,
    ) -> (Fate, IpAddr) {
        let bound = unbound.is_none().then_some(source);
        let machine = &self.machines[sender];
        let exempt = machine.is_exempt(source) || machine.is_exempt(destination);
        let mark = if exempt { machine.settings.fwmark } else { 0 };
        match machine.way(bound, destination, mark) {
            Way::Direct if self.machines[sender].guard_refuses(source, destination, GuardSet::RefusedOut) => {
                (Fate::Refused, source)
            }
            Way::Direct
                if self.machines[receiver].guard_refuses(destination, source, GuardSet::RefusedIn) =>
            {
                (Fate::Lost, source)
            }
            Way::Direct => (Fate::Direct, source),
            Way::Refused => (Fate::Refused, source),
            Way::Tunnel { peer, source: preferred } => {
                // Without a preferred source the kernel may choose any; assume the worst.
                let found = if source.is_ipv4() { "172.17.0.1" } else { "fdcc::1" };
                let source = bound.or(preferred).unwrap_or_else(|| ip(found));
                let far = &self.machines[receiver];
                let arrives = far.public_key == peer && far.takes(source, self.machines[sender].public_key);
                (if arrives { Fate::Encrypted } else { Fate::Lost }, source)
            }
        }
    }

    /// An exchange whose two packets have the same fate.
    pub(crate) fn both_ways(&self, from: End<'_>, to: End<'_>, family: Family) -> Fate {
        let [there, back] = self.exchange(from, to, family);
        assert_eq!(there, back, "{from:?} to {to:?} has another fate on the way back");
        there
    }

    /// host→pod, pod→pod, pod→host, host→host between nodes a and b, the same in both families.
    pub(crate) fn matrix(&self) -> [[Fate; 2]; 4] {
        let [v4, v6] = self.matrices();
        assert_eq!(v4, v6, "IPv4 and IPv6 are treated alike");
        v4
    }

    /// The matrices of IPv4 and IPv6.
    pub(crate) fn matrices(&self) -> [[[Fate; 2]; 4]; 2] {
        [(Family::V4, "10.161.1.5", "10.161.2.5"), (Family::V6, "fd61:0:0:1::5", "fd61:0:0:2::5")].map(
            |(family, pod_a, pod_b)| {
                let (pod_a, pod_b) = (End::Pod("a", pod_a), End::Pod("b", pod_b));
                let (host_a, host_b) = (End::Host("a"), End::Host("b"));
                [(host_a, pod_b), (pod_a, pod_b), (pod_a, host_b), (host_a, host_b)]
                    .map(|(from, to)| self.exchange(from, to, family))
            },
        )
    }

    /// Reconciles one machine and looks at the world after every operation or transaction.
    pub(crate) fn step(&mut self, name: &str, mut look: impl FnMut(&Self, &Op)) {
        let ops = self.machines[name].plan(&self.cluster).ops;
        for run in ops.chunk_by(are_one) {
            self.machine(name).kernel.apply_all(run).unwrap();
            look(self, run.last().unwrap());
        }
        assert_eq!(self.machines[name].plan(&self.cluster).ops, vec![]);
    }
}

/// Whether two consecutive operations are part of one transaction.
pub(crate) fn are_one(op: &Op, next: &Op) -> bool {
    matches!(
        (op, next),
        (Op::Device(DeviceOp::SetPeer(_)), Op::Device(DeviceOp::SetPeer(_)))
            | (Op::Firewall(_), Op::Firewall(_))
    )
}

/// The position of the only operation of a kind, for tests of the order.
pub(crate) fn place(ops: &[Op], wanted: impl Fn(&Op) -> bool) -> usize {
    let found: Vec<_> = ops.iter().enumerate().filter(|(_, op)| wanted(op)).map(|(place, _)| place).collect();
    let [place] = found.as_slice() else {
        panic!("expected one such operation, found {found:?} in {ops:#?}")
    };
    *place
}

/// A rule that somebody else made.
pub(crate) fn rule(text: &str) -> Rule {
    let words: Vec<&str> = text.split(' ').collect();
    let value = |name: &str| words.iter().position(|word| *word == name).map(|place| words[place + 1]);
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).unwrap(),
        None => text.parse().unwrap(),
    };
    let from = value("from").filter(|from| *from != "all").map(net);
    let (mark, mask) = value("fwmark").map_or((0, 0), |mark| {
        mark.split_once('/').map(|(mark, mask)| (number(mark), number(mask))).unwrap()
    });
    Rule {
        family: from.map_or(Family::V4, |from| Family::of(from.addr())),
        priority: value("priority").map_or(99, number),
        invert: words[0] == "not",
        from,
        mark,
        mask,
        table: 1,
        protocol: value("proto").map_or(3, |protocol| u8::try_from(number(protocol)).unwrap()),
        other: wireloom_plan::routing::OtherSelectors::default(),
    }
}

/// Applies one operation.
pub(crate) fn apply(kernel: &mut Observed, op: &Op) {
    kernel.apply_all(slice::from_ref(op)).unwrap();
}
