//! Nodes that are neighbours on a link of userspace interfaces, configured by `wg`.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use wireloom_lab::{Lab, Layout, Node, PATIENCE, mesh::KeyPair, until};
use wireloom_plan::routing::Family;

use crate::{
    tunnel::{PORT, inner, ping},
    wireloom,
};

/// Nodes whose interfaces `wg0` are on one link, all of them each other's peers.
pub(crate) struct Link {
    pub(crate) lab: Lab,
    pub(crate) keys: Vec<KeyPair>,
    /// Of the peers' endpoints.
    pub(crate) underlay: Family,
}

impl Link {
    pub(crate) fn new(nodes: u8) -> Self {
        Self::with(Layout { nodes, pods: 0, ..Layout::default() })
    }

    pub(crate) fn with(layout: Layout) -> Self {
        let mut link = Self::without_devices(layout);
        link.start(Family::V4, |_| LINK);
        link
    }

    pub(crate) fn without_devices(layout: Layout) -> Self {
        let lab = Lab::new(&layout).unwrap();
        let keys = lab.nodes.iter().map(|node| KeyPair::generate(wireloom(), node).unwrap()).collect();
        Self { lab, keys, underlay: Family::V4 }
    }

    /// Starts every node's device, with these options, over an underlay of this family.
    pub(crate) fn start(&mut self, underlay: Family, options: impl Fn(usize) -> &'static str) {
        self.underlay = underlay;
        for place in 0..self.lab.nodes.len() {
            start(self.node(place), options(place));
            self.configure(place);
            self.address(place);
        }
    }

    pub(crate) fn node(&self, place: usize) -> &Node {
        &self.lab.nodes[place]
    }

    /// The interface's key and its peers, who may have their link addresses.
    pub(crate) fn configure(&self, place: usize) {
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

    pub(crate) fn address(&self, place: usize) {
        let node = self.node(place);
        let [v4, v6] = inner(place);
        node.run(&format!("ip address add {v4}/24 dev wg0")).unwrap();
        node.run(&format!("ip address add {v6}/64 dev wg0")).unwrap();
        node.run("ip link set wg0 up").unwrap();
    }

    pub(crate) fn link_address(&self, place: usize) -> String {
        let key = self.keys[place].public.trim();
        let said = self.node(place).run(&format!("{} key link-address {key}", wireloom().display()));
        said.unwrap().trim().to_owned()
    }

    /// The link-local address that the kernel gave the interface.
    pub(crate) fn link_local(&self, place: usize) -> Ipv6Addr {
        let shown = self.node(place).run("ip -6 -o address show dev wg0 scope link").unwrap();
        let address = shown.split_whitespace().find(|word| word.starts_with("fe80:")).unwrap();
        address.split('/').next().unwrap().parse().unwrap()
    }

    /// Bytes that a node's interface has sent to a peer.
    pub(crate) fn sent(&self, place: usize, peer: usize) -> u64 {
        let shown = self.node(place).run("wg show wg0 transfer").unwrap();
        let line = shown.lines().find(|line| line.starts_with(self.keys[peer].public.trim())).unwrap();
        line.split_whitespace().nth(2).unwrap().parse().unwrap()
    }

    /// Bytes sent to each of two peers while this was done.
    pub(crate) fn sent_meanwhile(&self, peers: [usize; 2], work: impl FnOnce()) -> [u64; 2] {
        let before = peers.map(|peer| self.sent(0, peer));
        work();
        let after = peers.map(|peer| self.sent(0, peer));
        [after[0] - before[0], after[1] - before[1]]
    }

    /// Waits until every node has reached every other one.
    #[track_caller]
    pub(crate) fn settle(&self) {
        for from in 0..self.lab.nodes.len() {
            for to in (0..self.lab.nodes.len()).filter(|to| *to != from) {
                reach(self.node(from), inner(to)[0]);
            }
        }
    }
}

/// The options of a device whose peers are neighbours.
pub(crate) const LINK: &str = "--peer-lookup gateway --source-check off";

pub(crate) fn start(node: &Node, options: &str) {
    node.run(&format!("{} device wg0 {options}", wireloom().display())).unwrap();
}

#[track_caller]
pub(crate) fn reach(node: &Node, to: IpAddr) {
    until(PATIENCE, &format!("a ping to {to}"), || ping(node, to).then_some(())).unwrap();
}

/// What the stack was told of an address is corrected: by itself it would ask again after half a minute.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Asserts that pings to these addresses, from the first node, soon arrive.
#[track_caller]
pub(crate) fn reached_at_once(link: &Link, addresses: impl IntoIterator<Item = IpAddr>) {
    let begun = Instant::now();
    for address in addresses {
        reach(link.node(0), address);
    }
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
}

/// Whether a ping with these options arrives.
pub(crate) fn pings(node: &Node, words: &str) -> bool {
    node.run(&format!("ping -n -q -c1 -W2 {words}")).is_ok()
}

pub(crate) fn request(node: &Node, lines: &str) -> String {
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

pub(crate) const BEHIND: [&str; 2] = ["172.20.0.1", "fd20::1"];

/// Gives a node addresses that no allowed IPs name.
pub(crate) fn put_behind(node: &Node) {
    node.run(&format!("ip address add {}/32 dev lo", BEHIND[0])).unwrap();
    node.run(&format!("ip address add {}/128 dev lo nodad", BEHIND[1])).unwrap();
}

/// Sends a megabyte by TCP between the first two nodes, and tells whether it arrived in time.
pub(crate) fn transfer(link: &Link, to: IpAddr) -> bool {
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
