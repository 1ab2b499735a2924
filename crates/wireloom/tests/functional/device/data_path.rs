//! What the data path does to bytes: they arrive whole, in valid packets, over good networks and bad ones.

#[cfg(feature = "slow")]
use std::time::{Duration, Instant};
use std::{net::IpAddr, process::Command, thread};

use Program::{WireguardGo, Wireloom, WireloomThreads};
use wireloom_lab::{Lab, Layout, Link, Node, Noise, PATIENCE, Topology, mesh::KeyPair, until};
use wireloom_plan::routing::Family;

use crate::{
    fixtures::background::while_repeating,
    fixtures::frames::{LinkType, Listener, faults},
    fixtures::relay::Relay,
    fixtures::transfer::{bursts, datagrams, sockets, streams},
    fixtures::tunnel::{Program, Tunnel, inner, ping},
    wireloom,
};

/// Two nodes that reach each other through a tunnel of some kind.
struct Pair {
    lab: Lab,
    keys: Vec<String>,
    addresses: [[IpAddr; 2]; 2],
}

impl Pair {
    /// Three kinds of tunnel: a TUN interface with one thread, one with several, and a TAP interface whose peers
    /// are neighbours. Each has a third node beside the two.
    fn of_each_kind() -> [Self; 3] {
        let [one_thread, threads] = [Wireloom, WireloomThreads].map(|program| {
            let tunnel = Tunnel::new(&[program; 3]);
            tunnel.set_endpoint(0, 1, Family::V4);
            tunnel.set_endpoint(1, 0, Family::V4);
            tunnel.settle();
            Self { lab: tunnel.lab, keys: public(tunnel.keys), addresses: [inner(0), inner(1)] }
        });
        let link = Link::new(wireloom(), 3, Topology::Full).unwrap();
        let addresses = [link.address(0).both(), link.address(1).both()];
        [one_thread, threads, Self { lab: link.lab, keys: public(link.keys), addresses }]
    }

    fn node(&self, place: usize) -> &Node {
        &self.lab.nodes[place]
    }

    /// Both directions, in both families: the sender, the receiver, and the address to send to.
    fn ways(&self) -> impl Iterator<Item = (&Node, &Node, IpAddr)> {
        [(0, 1), (1, 0)].into_iter().flat_map(move |(from, to)| {
            self.addresses[to].into_iter().map(move |target| (self.node(from), self.node(to), target))
        })
    }

    /// Transfers in both directions and families at the same time.
    #[track_caller]
    fn exchange_streams(&self, count: u64, chunks: u64) {
        thread::scope(|scope| {
            for (from, to, target) in self.ways() {
                scope.spawn(move || streams(&from.host.space, &to.host.space, target, count, chunks));
            }
        });
    }
}

fn public(keys: Vec<KeyPair>) -> Vec<String> {
    keys.into_iter().map(|key| key.public).collect()
}

#[test]
fn eight_streams_in_each_direction_arrive_as_they_were_sent() {
    for pair in Pair::of_each_kind() {
        // Four in each family, 4 MiB each.
        pair.exchange_streams(4, 64);
    }
}

#[test]
fn bursts_of_datagrams_arrive_as_they_were_sent() {
    for pair in Pair::of_each_kind() {
        for (from, to, target) in pair.ways() {
            for joined in [false, true] {
                bursts(&from.host.space, &to.host.space, target, 25, joined);
            }
        }
    }
}

#[test]
fn over_a_network_that_loses_doubles_and_reorders_bytes_arrive_once_and_unchanged() {
    const DATAGRAMS: u64 = 5000;
    for pair in Pair::of_each_kind() {
        let endpoints = [0, 1].map(|place| pair.node(place).endpoint(Family::V4));
        let third = &pair.node(2).host;
        let relay = Relay::start(&third.space, third.addresses.of(Family::V4), endpoints, 1);
        for (place, other) in [(0, 1), (1, 0)] {
            let (key, way) = (&pair.keys[other], relay.addresses[place]);
            pair.node(place).run(&format!("wg set wg0 peer {key} endpoint {way}")).unwrap();
        }
        let through = || ping(pair.node(0), pair.addresses[1][0]).then_some(());
        until(PATIENCE, "a ping by way of the relay", through).unwrap();
        relay.turn_bad();
        pair.exchange_streams(1, 32);
        for (from, to, target) in pair.ways() {
            let arrived = datagrams(&from.host.space, &to.host.space, target, DATAGRAMS);
            assert!(arrived < DATAGRAMS, "one of a hundred is lost");
            assert!(arrived > DATAGRAMS * 95 / 100, "{arrived} of {DATAGRAMS} arrived at {target}");
        }
        for mischief in relay.stop() {
            let enough = mischief.lost.min(mischief.doubled).min(mischief.late) > 50;
            assert!(enough, "{mischief:?}");
        }
    }
}

/// The engine finds out at run time whether the kernel takes and gives whole super-packets.
#[test]
fn transfers_arrive_intact_where_the_kernel_offers_fewer_offloads() {
    let lacks: [&[&str]; 4] = [
        // An old network card, and one whose offloads somebody has turned off.
        &["ethtool -K eth0 tx-udp-segmentation off gro off", "ip link set eth0 gso_max_segs 1"],
        &["ethtool -K eth0 tx-checksumming off"],
        // A network stack that hands over single packets.
        &["ethtool -K wg0 tso off gso off"],
        // A path whose MTU is too small for the tunnel's datagrams: they travel in fragments.
        &["ip link set eth0 mtu 1300"],
    ];
    for pair in Pair::of_each_kind() {
        for lack in lacks {
            for command in lack {
                for place in [0, 1] {
                    pair.node(place).run(command).unwrap();
                }
            }
            // Offloads that were turned off before stay off.
            pair.exchange_streams(1, 16);
            for (from, to, target) in pair.ways() {
                bursts(&from.host.space, &to.host.space, target, 3, false);
            }
        }
    }
}

/// Streams, bursts and long datagrams from one node to another.
fn load(from: &Node, to: &Node, targets: [IpAddr; 2]) {
    for target in targets {
        streams(&from.host.space, &to.host.space, target, 2, 16);
        bursts(&from.host.space, &to.host.space, target, 5, false);
    }
}

/// Debian's wireguard-go does not join packets: its interface gives each as it came through the tunnel.
#[test]
fn packets_leave_the_tunnel_with_right_checksums() {
    let tunnel = Tunnel::new(&[Wireloom, WireguardGo]);
    tunnel.set_endpoint(0, 1, Family::V4);
    tunnel.settle();
    let listener = Listener::start(&tunnel.node(1).host.space, "wg0");
    load(tunnel.node(0), tunnel.node(1), inner(1));
    let mut frames = listener.stop();
    // Of about 3,100. An ordinary user's packet socket loses some of them on a busy machine.
    assert!(frames.len() > 1_000, "{} packets", frames.len());
    assert!(frames.iter().all(|frame| frame.len() <= 1420), "each fits the tunnel");
    assert_eq!(faults(&frames, LinkType::Raw), Vec::<String>::new());

    // And `tcpdump` does find faults: this one is made on purpose.
    let last = frames.iter_mut().find(|frame| frame.len() == 1420).expect("a full packet").last_mut();
    *last.expect("it has bytes") ^= 1;
    assert_eq!(faults(&frames, LinkType::Raw).len(), 1);
}

#[test]
fn packets_that_the_tunnel_joins_have_right_checksums() {
    for pair in Pair::of_each_kind() {
        // The stack may trust the tunnel's word for transport checksums, and leave them to a network card: on
        // the interface only the checksum of the network header is always there.
        let tap = pair.node(1).run("ip -details link show wg0").unwrap().contains("tun type tap");
        let link_type = if tap { LinkType::Ethernet } else { LinkType::Raw };
        let listener = Listener::start(&pair.node(1).host.space, "wg0");
        load(pair.node(0), pair.node(1), pair.addresses[1]);
        let frames = listener.stop();
        assert!(frames.iter().any(|frame| frame.len() > 10_000), "they were joined");
        let unsummed = |fault: &String| ["(incorrect", "[bad udp cksum"].iter().any(|it| fault.contains(it));
        let faults: Vec<_> = faults(&frames, link_type)
            .into_iter()
            .filter(|fault| fault.contains("bad cksum") || !unsummed(fault))
            .collect();
        assert_eq!(faults, Vec::<String>::new());
    }
}

/// From a pod through the tunnel to another node's pod, whose cable has no offloads, so packets must arrive there
/// complete, as on any wire.
#[test]
fn packets_are_forwarded_from_the_tunnel_with_right_checksums() {
    let layout = Layout { routed: false, pod_mtu: 1420, ..Layout::default() };
    let tunnel = Tunnel::between(&[Wireloom; 2], &layout);
    for (place, other) in [(0, 1), (1, 0)] {
        let [v4, v6] = tunnel.node(other).block;
        tunnel.set_peer(place, other, &format!("allowed-ips {v4},{v6}"));
        tunnel.set_endpoint(place, other, Family::V4);
        for block in [v4, v6] {
            tunnel.node(place).run(&format!("ip route add {block} dev wg0")).unwrap();
        }
    }
    let link = Link::new(wireloom(), 2, Topology::Full).unwrap();
    for (place, other) in [(0, 1), (1, 0)] {
        let nodes = &link.lab.nodes;
        for (block, via) in nodes[other].block.iter().zip(link.address(other).both()) {
            nodes[place].run(&format!("ip route add {block} via {via} dev wg0")).unwrap();
        }
    }
    for lab in [tunnel.lab, link.lab] {
        let [from, to] = [0, 1].map(|place| &lab.nodes[place].pods[0]);
        until(PATIENCE, "a ping between the pods", || {
            from.space.run(&format!("ping -c1 -W1 {}", to.addresses.v4)).ok()
        })
        .unwrap();
        lab.nodes[1].run("ethtool -K pod-1 tx off tso off gso off").unwrap();
        let listener = Listener::start(&to.space, "eth0");
        for target in to.addresses.both() {
            streams(&from.space, &to.space, target, 2, 16);
            bursts(&from.space, &to.space, target, 5, false);
        }
        let frames = listener.stop();
        // Of about 3,100. An ordinary user's packet socket loses some of them on a busy machine.
        assert!(frames.len() > 1_000, "{} frames", frames.len());
        assert!(frames.iter().all(|frame| frame.len() <= 14 + 1420), "each fits the cable");
        assert_eq!(faults(&frames, LinkType::Ethernet), Vec::<String>::new());
    }
}

#[test]
fn a_flood_of_one_peer_leaves_the_others_alive() {
    const PINGS: usize = 100;
    const ROUNDS: usize = 10;
    let tunnel = Tunnel::new(&[Wireloom; 3]);
    for (place, other) in [(0, 1), (0, 2), (1, 0), (2, 0)] {
        let [v4, v6] = inner(other);
        tunnel.set_peer(place, other, &format!("allowed-ips {v4}/32,{v6}/128"));
        tunnel.set_endpoint(place, other, Family::V4);
    }
    tunnel.settle_from(1, 0);
    tunnel.settle_from(2, 0);
    let [victim, flooder, bystander] = [0, 1, 2].map(|place| tunnel.node(place));
    let (flood, _sink) = sockets(&flooder.host.space, &victim.host.space, inner(0)[0]);
    let payload = Noise::new(1).bytes(1200);
    // More than the flooder's interface takes is lost before it gets anywhere. The victim's socket loses pings with the
    // flood while a busy machine leaves it without a processor: one round without that is enough.
    let mut most = 0;
    for _ in 0..ROUNDS {
        let (sent, answered) = while_repeating(
            || drop(flood.send(&payload)),
            || {
                let mut pings = Command::new("ping");
                let (count, target) = (PINGS.to_string(), inner(0)[0].to_string());
                pings.args(["-n", "-c", &count, "-i", "0.03", "-W", "5", &target]);
                let output = bystander.host.space.output(&mut pings).unwrap();
                String::from_utf8_lossy(&output.stdout).matches(" time=").count()
            },
        );
        assert!(sent > 10_000, "that was no flood: {sent}; {}", tunnel.shown(0, "transfer"));
        most = most.max(answered);
        if most > PINGS * 9 / 10 {
            return;
        }
    }
    panic!("{most} of {PINGS} pings answered beside a flood, at most");
}

/// After a minute of load, a device uses no more memory than soon after its start. Two things are allowed for: what
/// allocators round up, and the pages of a batch's memory that no burst had filled before.
#[cfg(feature = "slow")]
#[test]
fn a_minute_of_load_takes_no_memory() {
    /// The load on each kind of tunnel.
    const LOAD: Duration = Duration::from_secs(20);
    const WARM: Duration = Duration::from_secs(5);
    /// Rounds of load after it is warm, however slow the machine is.
    const ROUNDS: u32 = 3;
    const ROUNDING: u64 = 256;
    /// KiB of a thread: it receives up to 64 datagrams of 64 KiB at a time.
    const BATCH: u64 = 64 * 64;
    for (pair, threads) in Pair::of_each_kind().into_iter().zip([1, 4, 1]) {
        let resident = || {
            let of = |place| {
                let shown = pair.node(place).run("ps -C wireloom -o rss=").unwrap();
                shown.split_whitespace().map(|kibibytes| kibibytes.parse::<u64>().unwrap()).sum::<u64>()
            };
            [0, 1].map(of)
        };
        let start = Instant::now();
        let mut warm = None;
        let mut rounds = 0;
        while start.elapsed() < LOAD || rounds < ROUNDS {
            pair.exchange_streams(2, 64);
            load(pair.node(0), pair.node(1), pair.addresses[1]);
            match warm {
                None if start.elapsed() > WARM => warm = Some(resident()),
                None => {}
                Some(_) => rounds += 1,
            }
        }
        let (warm, end) = (warm.expect("rounds count from then on"), resident());
        for (warm, end) in warm.into_iter().zip(end) {
            assert!(warm > 1000, "a device of {warm} KiB");
            assert!(end <= warm + ROUNDING + threads * BATCH, "from {warm} to {end} KiB");
        }
    }
}
