//! Paths that carry less than the interface takes.

use std::net::IpAddr;

use wireloom_lab::{FAMILIES, Layout, Node, PATIENCE, Promise, Space, until};
use wireloom_plan::routing::Family;

use crate::fixtures::{
    device::request,
    fleet::Fleet,
    transfer::{RunningStreams, streams},
    tunnel::{Program, Tunnel, inner},
};

/// A tunnel whose way from the first node to the second leads through the third, a router.
struct NarrowWay(Tunnel);

impl NarrowWay {
    fn new() -> Self {
        let layout = Layout { nodes: 3, pods: 0, ..Layout::default() };
        let way = Self(Tunnel::between(&[Program::Wireloom; 2], &layout));
        for setting in ["all", "default", "eth0"] {
            let path = format!("net/ipv4/conf/{setting}/send_redirects");
            way.node(2).host.space.set_sysctls(&[(&path, "0")]).unwrap();
        }
        for family in [Family::V4, Family::V6] {
            let [to, via] = [1, 2].map(|place| way.node(place).host.addresses.of(family));
            way.node(0).run(&format!("ip route add {to} via {via}")).unwrap();
        }
        way
    }

    fn node(&self, place: usize) -> &Node {
        self.0.node(place)
    }

    /// Begins anew over this family: nobody knows the path MTU, which is this many bytes behind the router.
    fn begin(&self, underlay: Family, mtu: usize) {
        let to = self.node(1).host.addresses.of(underlay);
        self.node(2).run(&format!("ip route replace {to} dev eth0 mtu lock {mtu}")).unwrap();
        // The device forgets what it has learnt when the endpoint has another address.
        self.0.set_peer(0, 1, "endpoint 192.0.2.1:9");
        self.0.set_endpoint(0, 1, underlay);
        for family in ["-4", "-6"] {
            self.node(0).run(&format!("ip {family} route flush cache")).unwrap();
        }
        self.0.settle();
        assert!(!self.paths().contains("path_mtu"), "{}", self.paths());
    }

    fn paths(&self) -> String {
        request(self.node(0), "get_paths=1\n\n")
    }

    /// How many fragments the first node and the router have made.
    fn fragments(&self) -> u64 {
        let made = |node: &Node| {
            let counters = node.run("nstat -asz IpFragCreates Ip6FragCreates").unwrap();
            let values = counters.lines().filter_map(|line| line.split_whitespace().nth(1));
            values.map(|value| value.parse::<u64>().unwrap()).sum::<u64>()
        };
        made(self.node(0)) + made(self.node(2))
    }

    /// Runs a TCP stream to this address until the device has learnt the path MTU and all packets are short enough,
    /// and then for 10 MB more. Returns how many fragments these needed.
    fn fragments_of_a_stream(&self, to: IpAddr, mtu: usize) -> u64 {
        const MEGABYTE: u64 = 1 << 20;
        let stream = RunningStreams::start(&self.node(0).host.space, &self.node(1).host.space, to, 1);
        let moves = |bytes: u64| {
            let before = stream.arrived();
            until(PATIENCE, "the stream to move", || stream.have_moved(&before, bytes).then_some(()))
                .unwrap();
        };
        let told = format!("path_mtu={mtu}\n");
        until(PATIENCE, "the path MTU", || self.paths().contains(&told).then_some(())).unwrap();
        moves(MEGABYTE);
        let before = self.fragments();
        moves(10 * MEGABYTE);
        let made = self.fragments() - before;
        stream.finish();
        made
    }
}

#[test]
fn a_transfer_needs_no_fragments_once_the_path_mtu_is_known() {
    let way = NarrowWay::new();
    let [v4, v6] = inner(1);
    for mtu in [1400, 1280] {
        for underlay in [Family::V4, Family::V6] {
            way.begin(underlay, mtu);
            assert_eq!(way.fragments_of_a_stream(v4, mtu), 0, "IPv4 over {underlay:?}, {mtu}");
            let fragments = way.fragments_of_a_stream(v6, mtu);
            // IPv6 packets of 1,280 bytes have to pass, whatever the path.
            assert_eq!(fragments > 0, mtu == 1280, "IPv6 over {underlay:?}, {mtu}: {fragments}");
        }
    }
}

#[test]
fn where_icmp_is_filtered_a_transfer_goes_on_in_fragments() {
    let way = NarrowWay::new();
    let filter = "table inet test { chain input {\n type filter hook input priority 0\n \
                  iifname eth0 icmp type destination-unreachable drop\n }\n }\n";
    way.node(0).host.space.feed("nft -f -", filter).unwrap();
    way.begin(Family::V4, 1400);
    let before = way.fragments();
    for to in inner(1) {
        streams(&way.node(0).host.space, &way.node(1).host.space, to, 1, 32);
    }
    assert!(way.fragments() > before + 1000);
    assert!(!way.paths().contains("path_mtu"));
}

/// Both a pod, whose packets are forwarded, and the node itself are told, whatever the agent's firewall refuses.
#[test]
fn the_agents_guard_lets_the_errors_of_the_device_pass() {
    let knows = |from: &Space, to: IpAddr| {
        let _ = from.run(&format!("ping -n -q -M do -c 2 -i 0.2 -W 0.2 -s 1372 {to}"));
        from.run(&format!("ip route get {to}")).unwrap().contains("mtu 1296 ")
    };
    for (routing, promise) in
        [("encrypt_host_traffic = false", Promise::SCOPED), ("encrypt_host_traffic = true", Promise::HOST)]
    {
        let fleet = Fleet::new(Layout::default(), routing);
        fleet.settle(promise);
        let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
        let peer = request(a, "get=1\n\n");
        let peer = peer.lines().find(|line| line.starts_with("public_key=")).unwrap();
        assert_eq!(request(a, &format!("set=1\n{peer}\npath_mtu=1360\n\n")), "errno=0\n\n");
        for family in FAMILIES {
            let mut places = vec![(&a.pods[0], &b.pods[0])];
            if promise == Promise::HOST {
                places.push((&a.host, &b.host));
            }
            for (from, to) in places {
                let told = || knows(&from.space, to.addresses.of(family)).then_some(());
                until(PATIENCE, &format!("{} to be told, {routing}, {family:?}", from.name), told).unwrap();
            }
        }
    }
}
