//! The userspace interface as a link (`--peer-lookup gateway`): peers as neighbours, next hops as peers.

use std::{
    fmt::Write as _,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use nix::{
    net::if_::if_nametoindex,
    sys::socket::{setsockopt, sockopt},
};
use wireloom::lab::{Lab, Layout, Node, PATIENCE, mesh::KeyPair, require, until};
use wireloom_plan::kernel::Family;

use crate::{
    tunnel::{PORT, Program, inner, ping},
    wireloom,
};

/// Nodes whose interfaces `wg0` are on one link, all of them each other's peers.
struct Link {
    lab: Lab,
    keys: Vec<KeyPair>,
    /// Of the peers' endpoints.
    underlay: Family,
}

impl Link {
    fn new(nodes: u8) -> Self {
        Self::with(Layout { nodes, pods: 0, ..Layout::default() })
    }

    fn with(layout: Layout) -> Self {
        let mut link = Self::without_devices(layout);
        link.start(Family::V4, |_| LINK);
        link
    }

    fn without_devices(layout: Layout) -> Self {
        let lab = Lab::new(&layout).unwrap();
        let keys = lab.nodes.iter().map(|node| KeyPair::generate(wireloom(), node).unwrap()).collect();
        Self { lab, keys, underlay: Family::V4 }
    }

    /// Starts every node's device, with these options, over an underlay of this family.
    fn start(&mut self, underlay: Family, options: impl Fn(usize) -> &'static str) {
        self.underlay = underlay;
        for place in 0..self.lab.nodes.len() {
            start(self.node(place), options(place));
            self.configure(place);
            self.address(place);
        }
    }

    fn node(&self, place: usize) -> &Node {
        &self.lab.nodes[place]
    }

    /// The interface's key and its peers, who may have their link addresses.
    fn configure(&self, place: usize) {
        let node = self.node(place);
        let mut text =
            format!("[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n", self.keys[place].private.trim());
        for other in (0..self.lab.nodes.len()).filter(|other| *other != place) {
            let [v4, v6] = inner(other);
            let endpoint = SocketAddr::new(self.node(other).host.addresses.of(self.underlay), PORT);
            let _ = write!(
                text,
                "[Peer]\nPublicKey = {}\nEndpoint = {endpoint}\nAllowedIPs = {v4}/32, {v6}/128\n",
                self.keys[other].public.trim()
            );
        }
        node.host.space.write("/run/wg0.conf", &text).unwrap();
        node.run("wg setconf wg0 /run/wg0.conf").unwrap();
    }

    fn address(&self, place: usize) {
        let node = self.node(place);
        let [v4, v6] = inner(place);
        node.run(&format!("ip address add {v4}/24 dev wg0")).unwrap();
        node.run(&format!("ip address add {v6}/64 dev wg0")).unwrap();
        node.run("ip link set wg0 up").unwrap();
    }

    fn link_address(&self, place: usize) -> String {
        let key = self.keys[place].public.trim();
        let said = self.node(place).run(&format!("{} key link-address {key}", wireloom().display()));
        said.unwrap().trim().to_owned()
    }

    /// The link-local address that the kernel gave the interface.
    fn link_local(&self, place: usize) -> Ipv6Addr {
        let shown = self.node(place).run("ip -6 -o address show dev wg0 scope link").unwrap();
        let address = shown.split_whitespace().find(|word| word.starts_with("fe80:")).unwrap();
        address.split('/').next().unwrap().parse().unwrap()
    }

    /// Bytes that a node's interface has sent to a peer.
    fn sent(&self, place: usize, peer: usize) -> u64 {
        let shown = self.node(place).run("wg show wg0 transfer").unwrap();
        let line = shown.lines().find(|line| line.starts_with(self.keys[peer].public.trim())).unwrap();
        line.split_whitespace().nth(2).unwrap().parse().unwrap()
    }

    /// Bytes sent to each of two peers while this was done.
    fn sent_meanwhile(&self, peers: [usize; 2], work: impl FnOnce()) -> [u64; 2] {
        let before = peers.map(|peer| self.sent(0, peer));
        work();
        let after = peers.map(|peer| self.sent(0, peer));
        [after[0] - before[0], after[1] - before[1]]
    }

    /// Waits until every node has reached every other one.
    #[track_caller]
    fn settle(&self) {
        for from in 0..self.lab.nodes.len() {
            for to in (0..self.lab.nodes.len()).filter(|to| *to != from) {
                reach(self.node(from), inner(to)[0]);
            }
        }
    }
}

/// The options of a device whose peers are neighbours.
const LINK: &str = "--peer-lookup gateway --source-check off";

fn start(node: &Node, options: &str) {
    node.run(&format!("{} device wg0 {options}", wireloom().display())).unwrap();
}

#[track_caller]
fn reach(node: &Node, to: IpAddr) {
    until(PATIENCE, &format!("a ping to {to}"), || ping(node, to).then_some(())).unwrap();
}

/// Whether a ping with these options arrives.
fn pings(node: &Node, words: &str) -> bool {
    node.run(&format!("ping -n -q -c1 -W2 {words}")).is_ok()
}

fn request(node: &Node, lines: &str) -> String {
    use std::{io::Read as _, io::Write as _, net::Shutdown, os::unix::net::UnixStream};
    let exchange = || {
        let mut stream = UnixStream::connect("/run/wireguard/wg0.sock").unwrap();
        stream.write_all(lines.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said
    };
    node.host.space.inside(exchange).unwrap()
}

const BEHIND: [&str; 2] = ["172.20.0.1", "fd20::1"];

/// Gives a node addresses that no allowed IPs name.
fn put_behind(node: &Node) {
    node.run(&format!("ip address add {}/32 dev lo", BEHIND[0])).unwrap();
    node.run(&format!("ip address add {}/128 dev lo nodad", BEHIND[1])).unwrap();
}

#[test]
fn peers_are_neighbours_on_link() {
    for rp_filter in [0, 1] {
        let link = Link::with(Layout { nodes: 2, pods: 0, rp_filter, ..Layout::default() });
        for address in inner(1) {
            reach(link.node(0), address);
        }
        let there = link.link_local(1);
        assert!(pings(link.node(0), &format!("{there}%wg0")));
        let neighbours = link.node(0).run("ip neigh show dev wg0").unwrap();
        let known = neighbours.lines().filter(|line| line.contains(&link.link_address(1))).count();
        assert_eq!(known, 3, "{neighbours}");
        let own = link.node(0).run("ip -o link show wg0").unwrap();
        assert!(own.contains(&link.link_address(0)), "{own}");
        assert!(link.node(0).run("wg show wg0").unwrap().contains("latest handshake"));
    }
}

#[test]
fn a_gateway_leads_to_prefixes_in_nobody_s_allowed_ips() {
    let link = Link::with(Layout { nodes: 3, pods: 0, rp_filter: 1, ..Layout::default() });
    put_behind(link.node(1));
    let node = link.node(0);
    for (prefix, gateway, to) in
        [("172.20.0.0/16", inner(1)[0], BEHIND[0]), ("fd20::/16", inner(1)[1], BEHIND[1])]
    {
        node.run(&format!("ip route add {prefix} via {gateway}")).unwrap();
        reach(node, to.parse().unwrap());
    }
    // The same prefix by IPv4 over an IPv6 next hop.
    node.run("ip route del 172.20.0.0/16").unwrap();
    assert!(!pings(node, BEHIND[0]));
    node.run(&format!("ip route add 172.20.0.0/16 via inet6 {} dev wg0", link.link_local(1))).unwrap();
    reach(node, BEHIND[0].parse().unwrap());
}

#[test]
fn two_tables_choose_their_gateways_by_source_and_by_mark() {
    let link = Link::new(3);
    link.settle();
    let node = link.node(0);
    for (place, table) in [(1, 101), (2, 102)] {
        put_behind(link.node(place));
        for (prefix, gateway) in [("172.20.0.0/16", inner(place)[0]), ("fd20::/16", inner(place)[1])] {
            node.run(&format!("ip route add {prefix} via {gateway} table {table}")).unwrap();
        }
        for [prefix, gateway] in [
            ["172.30.0.0/16".to_owned(), inner(0)[0].to_string()],
            ["fd30::/16".to_owned(), inner(0)[1].to_string()],
        ] {
            link.node(place).run(&format!("ip route add {prefix} via {gateway}")).unwrap();
        }
    }
    node.run("ip address add 172.30.0.1/32 dev lo").unwrap();
    node.run("ip address add fd30::1/128 dev lo nodad").unwrap();
    for family in ["-4", "-6"] {
        node.run(&format!("ip {family} rule add fwmark 7 lookup 102 priority 10")).unwrap();
    }
    for (source, table) in [("10.99.0.1", 101), ("fd99::1", 101), ("172.30.0.1", 102), ("fd30::1", 102)] {
        let family = if source.contains(':') { "-6" } else { "-4" };
        node.run(&format!("ip {family} rule add from {source} lookup {table} priority 20")).unwrap();
    }
    for (words, table) in [
        (format!("-I 10.99.0.1 {}", BEHIND[0]), 101),
        (format!("-I fd99::1 {}", BEHIND[1]), 101),
        (format!("-I 172.30.0.1 {}", BEHIND[0]), 102),
        (format!("-I fd30::1 {}", BEHIND[1]), 102),
        (format!("-m 7 -I 10.99.0.1 {}", BEHIND[0]), 102),
        (format!("-m 7 -I fd99::1 {}", BEHIND[1]), 102),
    ] {
        let sent =
            link.sent_meanwhile([1, 2], || assert!(pings(node, &format!("-s 1200 {words}")), "{words}"));
        let [used, other] = if table == 101 { sent } else { [sent[1], sent[0]] };
        assert!(used > 1200 && other < 1200, "{words}: {sent:?}");
    }
}

#[test]
fn flows_spread_over_two_gateways_and_each_stays_on_one() {
    let link = Link::new(3);
    link.settle();
    let node = link.node(0);
    let by_ports = ["net/ipv4/fib_multipath_hash_policy", "net/ipv6/fib_multipath_hash_policy"];
    node.host.space.set_sysctls(&by_ports.map(|path| (path, "1"))).unwrap();
    let packet = [0; 1000];
    for (family, prefix, to) in [(0, "172.20.0.0/16", BEHIND[0]), (1, "fd20::/16", BEHIND[1])] {
        let [one, other] = [1, 2].map(|place| inner(place)[family]);
        node.run(&format!("ip route add {prefix} nexthop via {one} nexthop via {other}")).unwrap();
        let to = SocketAddr::new(to.parse().unwrap(), 9);
        let flow = |packets: u64| {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            for _ in 0..packets {
                socket.send_to(&packet, to).unwrap();
            }
            // The datagrams are with the peers when later ones are.
            thread::sleep(Duration::from_millis(20));
        };
        let spread =
            link.sent_meanwhile([1, 2], || node.host.space.inside(|| (0..40).for_each(|_| flow(5))).unwrap());
        assert!(spread.iter().all(|bytes| *bytes > 10_000), "{spread:?}");
        for _ in 0..4 {
            let one = link.sent_meanwhile([1, 2], || {
                node.host.space.inside(|| flow(100)).unwrap();
                thread::sleep(Duration::from_millis(300));
            });
            let most = one.iter().any(|bytes| *bytes > 90_000);
            assert!(most && one.iter().any(|bytes| *bytes < 2_000), "{one:?}");
        }
    }
}

#[test]
fn multicast_reaches_every_peer_and_questions_for_addresses_none() {
    require(&["nft"]).unwrap();
    let link = Link::new(4);
    link.settle();
    let counters = "table netdev seen {\n\
         counter questions { }\ncounter solicitations { }\ncounter v4 { }\ncounter v6 { }\ncounter everyone { }\n\
         chain in { type filter hook ingress device \"wg0\" priority 0;\n\
         arp operation request counter name questions\n\
         icmpv6 type nd-neighbor-solicit counter name solicitations\n\
         ip daddr 239.1.2.3 counter name v4\n\
         ip6 daddr ff02::1:2:3 counter name v6\n\
         ip daddr 255.255.255.255 counter name everyone\n}\n}\n";
    let receivers = [1, 2, 3].map(|place| link.node(place));
    for receiver in receivers {
        receiver.host.space.feed("nft -f -", counters).unwrap();
    }
    let sender = link.node(0);
    sender.run("ip route add 239.0.0.0/8 dev wg0").unwrap();
    sender.run("ip route add 255.255.255.255/32 dev wg0").unwrap();
    // Every neighbour is asked for anew.
    sender.run("ip neigh flush dev wg0").unwrap();
    link.settle();
    sender
        .host
        .space
        .inside(|| {
            let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            v4.set_broadcast(true).unwrap();
            let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
            let scope = if_nametoindex("wg0").unwrap();
            let group = SocketAddrV6::new("ff02::1:2:3".parse().unwrap(), 9, 0, scope);
            for _ in 0..3 {
                v4.send_to(b"to all", "239.1.2.3:9").unwrap();
                v4.send_to(b"to all", "255.255.255.255:9").unwrap();
                v6.send_to(b"to all", group).unwrap();
            }
        })
        .unwrap();
    let count = |node: &Node, name: &str| {
        let shown = node.run(&format!("nft list counter netdev seen {name}")).unwrap();
        let mut words = shown.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).unwrap().parse::<u64>().unwrap()
    };
    for receiver in receivers {
        until(PATIENCE, "the packets to all", || {
            ["v4", "v6", "everyone"].iter().all(|name| count(receiver, name) == 3).then_some(())
        })
        .unwrap();
        assert_eq!((count(receiver, "questions"), count(receiver, "solicitations")), (0, 0));
    }
}

/// The error that a packet to somebody brings back, and how long that took.
fn complaint(node: &Node, to: SocketAddr) -> [(std::io::Error, Duration); 2] {
    node.host
        .space
        .inside(|| {
            let udp = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            udp.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            // Without it, Linux tells a UDP socket of fatal errors alone, on any link.
            if to.is_ipv4() {
                setsockopt(&udp, sockopt::Ipv4RecvErr, &true).unwrap();
            } else {
                setsockopt(&udp, sockopt::Ipv6RecvErr, &true).unwrap();
            }
            let begun = Instant::now();
            udp.connect(to).unwrap();
            let error = udp.send(b"anybody?").and_then(|_| udp.recv(&mut [0; 64])).unwrap_err();
            let by_udp = (error, begun.elapsed());
            let begun = Instant::now();
            let error = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap_err();
            [by_udp, (error, begun.elapsed())]
        })
        .unwrap()
}

#[track_caller]
fn assert_unreachable_at_once(node: &Node, to: IpAddr) {
    for (error, took) in complaint(node, (to, 9).into()) {
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{to}: {error}");
        assert!(took < Duration::from_millis(100), "{to}: {took:?}");
    }
}

#[test]
fn unknown_destinations_and_dead_peers_are_unreachable_at_once() {
    let link = Link::with(Layout { nodes: 3, pods: 0, rp_filter: 1, ..Layout::default() });
    let node = link.node(0);
    reach(node, inner(1)[0]);
    for nobody in ["10.99.0.77", "fd99::77"] {
        assert_unreachable_at_once(node, nobody.parse().unwrap());
    }
    // The third node's device ends before it was ever heard.
    link.node(2).run("rm /run/wireguard/wg0.sock").unwrap();
    node.run(&format!("ip route add 172.20.0.0/16 via {}", inner(2)[0])).unwrap();
    node.run(&format!("ip route add fd20::/16 via {}", inner(2)[1])).unwrap();
    let key = link.keys[2].public.trim().to_owned();
    assert!(!ping(node, inner(2)[0]));
    until(PATIENCE, "the peer to be given up", || {
        request(node, "get_link=1\n\n").contains("reachable=false").then_some(())
    })
    .unwrap();
    for to in inner(2).into_iter().chain(BEHIND.map(|text| text.parse().unwrap())) {
        assert_unreachable_at_once(node, to);
    }
    // It comes back and is found again: what is refused also seeks.
    start(link.node(2), LINK);
    link.configure(2);
    link.address(2);
    reach(node, inner(2)[0]);
    assert!(!request(node, "get_link=1\n\n").contains("reachable=false"));
    // A peer without an endpoint is nowhere.
    node.run(&format!("wg set wg0 peer {key} remove")).unwrap();
    node.run(&format!("wg set wg0 peer {key} allowed-ips {}/32", inner(2)[0])).unwrap();
    assert_unreachable_at_once(node, inner(2)[0]);
}

/// What the stack was told of an address is corrected: by itself it would ask again after half a minute.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Asserts that pings to these addresses, from the first node, soon arrive.
#[track_caller]
fn reached_at_once(link: &Link, addresses: impl IntoIterator<Item = IpAddr>) {
    let begun = Instant::now();
    for address in addresses {
        reach(link.node(0), address);
    }
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
}

#[test]
fn a_peer_that_comes_late_or_takes_over_is_found_at_once() {
    let link = Link::new(3);
    link.settle();
    let node = link.node(0);
    let keys = [1, 2].map(|place| link.keys[place].public.trim());
    let shared: [IpAddr; 2] = ["10.99.0.99", "fd99::99"].map(|text| text.parse().unwrap());
    for place in [1, 2] {
        link.node(place).run(&format!("ip address add {}/32 dev lo", shared[0])).unwrap();
        link.node(place).run(&format!("ip address add {}/128 dev lo nodad", shared[1])).unwrap();
    }
    let set_peer = |place: usize, more: &str| {
        let ([v4, v6], endpoint) = (inner(place), link.node(place).host.addresses.v4);
        let allowed = format!("{v4},{v6}{more}");
        let key = keys[place - 1];
        node.run(&format!("wg set wg0 peer {key} endpoint {endpoint}:{PORT} allowed-ips {allowed}")).unwrap();
    };
    // Addresses of a peer that is not there yet, its link-local one among them, and one that nobody has.
    let link_local = link.link_local(1);
    node.run(&format!("wg set wg0 peer {} remove", keys[0])).unwrap();
    assert_unreachable_at_once(node, inner(1)[0]);
    assert_unreachable_at_once(node, inner(1)[1]);
    assert!(!pings(node, &format!("{link_local}%wg0")));
    assert_unreachable_at_once(node, shared[0]);
    assert_unreachable_at_once(node, shared[1]);
    set_peer(1, "");
    reached_at_once(&link, inner(1));
    assert!(pings(node, &format!("{link_local}%wg0")));
    // Prefixes around addresses that were asked for, which then move to the other peer.
    let prefixes = ",10.99.0.96/29,fd99::90/124";
    for place in [1, 2] {
        set_peer(place, prefixes);
        let sent = link.sent_meanwhile([place, 3 - place], || reached_at_once(&link, shared));
        assert!(sent[0] > 0, "{sent:?}");
        let neighbours = node.run("ip neigh show dev wg0").unwrap();
        for address in shared {
            let there = format!("{address} lladdr {}", link.link_address(place));
            assert!(neighbours.contains(&there), "{there}: {neighbours}");
        }
    }
    // And back to nobody.
    set_peer(2, "");
    assert_unreachable_at_once(node, shared[0]);
    assert_unreachable_at_once(node, shared[1]);
}

#[test]
fn another_private_key_is_another_neighbour() {
    let link = Link::new(2);
    link.settle();
    let [a, b] = [0, 1].map(|place| link.node(place));
    let before = (link.link_address(0), link.link_local(0));
    let key = KeyPair::generate(wireloom(), a).unwrap();
    a.host.space.write("/run/key", &key.private).unwrap();
    a.run("wg set wg0 private-key /run/key").unwrap();
    let old = link.keys[0].public.trim();
    let ([v4, v6], endpoint) = (inner(0), a.host.addresses.v4);
    b.run(&format!(
        "wg set wg0 peer {old} remove peer {} endpoint {endpoint}:{PORT} allowed-ips {v4},{v6}",
        key.public
    ))
    .unwrap();
    reached_at_once(&link, inner(1));
    for address in inner(0) {
        reach(b, address);
    }
    let mut link = link;
    link.keys[0] = key;
    let after = (link.link_address(0), link.link_local(0));
    assert!(before.0 != after.0 && before.1 != after.1, "{before:?} {after:?}");
    let [a, b] = [0, 1].map(|place| link.node(place));
    let own = a.run("ip -o link show wg0").unwrap();
    assert!(own.contains(&after.0), "{own}");
    assert!(pings(b, &format!("{}%wg0", after.1)));
    assert!(!pings(b, &format!("{}%wg0", before.1)));
    let neighbours = b.run("ip neigh show dev wg0").unwrap();
    for address in [v4, v6, after.1.into()] {
        let there = format!("{address} lladdr {}", after.0);
        assert!(neighbours.contains(&there), "{there}: {neighbours}");
    }
}

/// Sends a megabyte by TCP between the first two nodes, and tells whether it arrived in time.
fn transfer(link: &Link, to: IpAddr) -> bool {
    let listener = link.node(1).host.space.inside(|| TcpListener::bind((to, 0)).unwrap()).unwrap();
    let there = listener.local_addr().unwrap();
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap_or(0)
    });
    let sent = link.node(0).host.space.inside(|| {
        use std::io::Write as _;
        let mut stream = TcpStream::connect(there)?;
        stream.write_all(&vec![7; 1 << 20])
    });
    sent.unwrap().unwrap();
    receiver.join().unwrap() == 1 << 20
}

/// What a ping that may not be fragmented says.
fn full_size_ping(node: &Node, to: IpAddr, size: usize) -> String {
    let words = format!("-n -c1 -W2 -M do -s {size} {to}");
    let output: Output = node.host.space.output(Command::new("ping").args(words.split_whitespace())).unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_packet_over_the_path_mtu_is_refused_and_tcp_goes_on() {
    let link = Link::new(2);
    link.settle();
    let node = link.node(0);
    // As somebody told.
    let key: String = {
        let said = request(node, "get_link=1\n\n");
        said.lines().find_map(|line| line.strip_prefix("public_key=")).unwrap().to_owned()
    };
    assert_eq!(
        request(node, &format!("set=1\npublic_key={key}\nupdate_only=true\npath_mtu=1400\n\n")),
        "errno=0\n\n"
    );
    for (address, size) in [(inner(1)[0], 1392), (inner(1)[1], 1372)] {
        let said = full_size_ping(node, address, size);
        assert!(said.contains("mtu = 1328") || said.contains("mtu=1328"), "{said}");
        assert!(transfer(&link, address), "{address}");
    }
}

/// The longest inner packets are 60 bytes shorter than the path's MTU over IPv4 and 80 over IPv6, less what
/// is over multiples of 16.
#[test]
fn the_path_mtu_is_learnt_from_the_underlay() {
    for (underlay, longest) in [(Family::V4, 1328), (Family::V6, 1312)] {
        // The third node is a router between the first two, with a narrow way to the second.
        let mut link = Link::without_devices(Layout { nodes: 3, pods: 0, ..Layout::default() });
        link.start(underlay, |_| LINK);
        let [a, b, router] = [0, 1, 2].map(|place| link.node(place));
        for setting in ["all", "default", "eth0"] {
            let path = format!("net/ipv4/conf/{setting}/send_redirects");
            router.host.space.set_sysctls(&[(&path, "0")]).unwrap();
        }
        let [to, via] = [b, router].map(|node| node.host.addresses.of(underlay));
        a.run(&format!("ip route add {to} via {via}")).unwrap();
        router.run(&format!("ip route add {to} dev eth0 mtu lock 1400")).unwrap();
        reach(a, inner(1)[0]);
        let [v4, v6] = inner(1);
        until(PATIENCE, "the path MTU", || {
            let _ = full_size_ping(a, v4, 1392);
            request(a, "get_link=1\n\n").contains("path_mtu=1400").then_some(())
        })
        .unwrap();
        // Sockets that knew nothing of it are told.
        a.run("ip route flush cache").unwrap();
        a.run("ip -6 route flush cache").unwrap();
        for (address, size) in [(v4, 1392), (v6, 1372)] {
            let said = full_size_ping(a, address, size);
            let told = [format!("mtu = {longest}"), format!("mtu={longest}")];
            assert!(told.iter().any(|told| said.contains(told)), "{underlay:?}: {said}");
            assert!(transfer(&link, address), "{address} over {underlay:?}");
        }
        // What may be fragmented still arrives.
        assert!(pings(a, &format!("-M dont -s 1392 {v4}")));
    }
}

#[test]
fn without_a_source_check_any_source_may_come() {
    let link = Link::new(2);
    link.settle();
    let [a, b] = [0, 1].map(|place| link.node(place));
    for (address, prefix, gateway) in
        [("172.31.0.9", "172.31.0.0/16", inner(0)[0]), ("fd31::9", "fd31::/16", inner(0)[1])]
    {
        a.run(&format!("ip address add {address} dev lo")).unwrap();
        b.run(&format!("ip route add {prefix} via {gateway}")).unwrap();
    }
    assert!(pings(a, &format!("-I 172.31.0.9 {}", inner(1)[0])));
    assert!(pings(a, &format!("-I fd31::9 {}", inner(1)[1])));
}

/// Both of the device's own choices, beside each other: the first node checks no sources, on a TUN.
#[test]
fn without_a_link_any_source_may_come_as_well() {
    require(&["nft"]).unwrap();
    let mut link = Link::without_devices(Layout { nodes: 2, pods: 0, ..Layout::default() });
    link.start(Family::V4, |place| ["--source-check off", ""][place]);
    let [a, b] = [0, 1].map(|place| link.node(place));
    reach(a, inner(1)[0]);
    let counters = "table inet seen {\n counter v4 { }\n counter v6 { }\n\
                    chain input { type filter hook input priority 0;\n\
                    ip saddr 203.0.113.5 counter name v4\nip6 saddr 2001:db8:113::5 counter name v6\n}\n}\n";
    let sources = [("203.0.113.5", 32), ("2001:db8:113::5", 128)];
    for node in [a, b] {
        node.host.space.feed("nft -f -", counters).unwrap();
    }
    let arrived = |from: &Node, to: &Node, place: usize| {
        for ((source, length), address) in sources.iter().zip(inner(place)) {
            from.run(&format!("ip address add {source}/{length} dev lo nodad")).unwrap();
            // There is no way back; that the packet arrives is all.
            assert!(!pings(from, &format!("-I {source} {address}")));
            from.run(&format!("ip address del {source}/{length} dev lo")).unwrap();
        }
        ["v4", "v6"].map(|name| {
            let shown = to.run(&format!("nft list counter inet seen {name}")).unwrap();
            shown.contains("packets 1 ")
        })
    };
    assert_eq!(arrived(b, a, 0), [true; 2]);
    assert_eq!(arrived(a, b, 1), [false; 2]);
    let drops = request(b, "get_drops=1\n\n");
    assert!(drops.contains("source-not-allowed=2\n"), "{drops}");
    // Live, by the control socket.
    assert_eq!(request(b, "set=1\nsource_check=off\n\n"), "errno=0\n\n");
    assert_eq!(arrived(a, b, 1), [true; 2]);
}

#[test]
fn a_standard_peer_is_a_neighbour_like_any_other() {
    require(&["wireguard-go"]).unwrap();
    let link = Link::new(2);
    let [a, b] = [0, 1].map(|place| link.node(place));
    b.run("ip link delete wg0").unwrap();
    until(PATIENCE, "the old device to end", || b.run("ls /run/wireguard/wg0.sock").is_err().then_some(()))
        .unwrap();
    Program::WireguardGo.start(b);
    link.configure(1);
    link.address(1);
    // Each begins once: without a session, and with nothing under way.
    for beginner in [0, 1] {
        for (from, to) in [(beginner, 1 - beginner), (1 - beginner, beginner)] {
            for address in inner(to) {
                reach(link.node(from), address);
            }
        }
        let [x, y] = [beginner, 1 - beginner];
        for (place, peer) in [(x, y), (y, x)] {
            let key = link.keys[peer].public.trim();
            link.node(place).run(&format!("wg set wg0 peer {key} remove")).unwrap();
        }
        [0, 1].iter().for_each(|place| link.configure(*place));
    }
    put_behind(b);
    a.run(&format!("ip route add 172.20.0.0/16 via {}", inner(1)[0])).unwrap();
    a.run(&format!("ip route add fd20::/16 via {}", inner(1)[1])).unwrap();
    for to in BEHIND {
        reach(a, to.parse().unwrap());
    }
    assert!(transfer(&link, inner(1)[0]));
}

#[test]
fn addresses_routes_and_neighbours_outlive_the_process() {
    let link = Link::new(2);
    link.settle();
    let node = link.node(0);
    node.run(&format!("ip route add 172.20.0.0/16 via {}", inner(1)[0])).unwrap();
    node.run(&format!(
        "ip neigh replace {} lladdr {} dev wg0 nud permanent",
        inner(1)[0],
        link.link_address(1)
    ))
    .unwrap();
    let state = || {
        ["ip -o address show dev wg0", "ip route show dev wg0", "ip -6 route show dev wg0"]
            .map(|line| node.run(line).unwrap().replace(" linkdown", ""))
    };
    let before = state();
    for signal in ["KILL", "TERM"] {
        let process = node.run("pgrep -x wireloom").unwrap();
        node.run(&format!("kill -{signal} {}", process.trim())).unwrap();
        until(PATIENCE, "the process to end", || node.run("pgrep -x wireloom").is_err().then_some(()))
            .unwrap();
        assert_eq!(state(), before, "{signal}");
        start(node, LINK);
        link.configure(0);
        assert_eq!(state(), before, "{signal}");
        let neighbours = node.run("ip neigh show dev wg0 nud permanent").unwrap();
        assert!(neighbours.contains(&inner(1)[0].to_string()), "{neighbours}");
        reach(node, inner(1)[0]);
    }
    // Removing the socket takes the interface away.
    node.run("rm /run/wireguard/wg0.sock").unwrap();
    until(PATIENCE, "the interface to go", || node.run("ip link show wg0").is_err().then_some(())).unwrap();
}

#[test]
fn pairs_of_decisions_that_make_no_sense_are_refused() {
    let lab = Lab::new(&Layout { nodes: 1, pods: 0, ..Layout::default() }).unwrap();
    let node = &lab.nodes[0];
    for (words, mend) in [
        ("--peer-lookup gateway", "choose \"firewall\" or \"off\""),
        ("--source-check firewall", "choose \"allowed-ips\" or \"off\""),
        ("--peer-lookup next-hop", "expected destination or gateway"),
    ] {
        let error = node.run(&format!("{} device wg0 {words}", wireloom().display())).unwrap_err();
        assert!(error.to_string().contains(mend), "{error}");
        assert!(node.run("ip link show wg0").is_err());
    }
}
