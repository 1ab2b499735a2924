//! Routers on one common link: a WireGuard interface on every node, each node a neighbour of the others.
//!
//! ```text
//!   pod ── lan0  router 1  wg0 ─────┬───── wg0  router 2  lan0 ── pod
//!       10.161.1.0/24   100.64.0.1  │  100.64.0.2   10.161.2.0/24
//!                                  wg0
//!                               router 3 …
//! ```
//!
//! Allowed-IPs hold the peers' addresses on the link and nothing else, and no main table has a route to another
//! router's pods: [routing daemons](crate::routing) announce what is behind each router.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use base64ct::{Base64, Encoding as _};

use crate::{
    Addresses, Lab, Layout, Node, Place, Result,
    control::{configure, hex},
    mesh::{KeyPair, PORT},
    network::layout::{SERVICE, link_address},
};

/// Which routers are peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// Every two routers are peers, and the link is a subnet: a /24 and a /64.
    Full,
    /// The first router (the hub) is the only peer of each other one. Addresses are /32 and /128, with a route to
    /// each peer's.
    Hub,
}

/// Routers on one common link. Dropping it takes everything down.
#[derive(Debug)]
pub struct Link {
    /// The routers; their pods are the hosts behind them.
    pub lab: Lab,
    /// The routers' keys, in the order of [`Lab::nodes`]. They never change, so tests and guide can name what
    /// derives from a key.
    pub keys: Vec<KeyPair>,
    topology: Topology,
    wireloom: PathBuf,
}

impl Link {
    /// Builds a link of 1 to 26 routers, each with one pod behind it. `wireloom` is the path of the program.
    ///
    /// # Errors
    /// When a program fails, or the device refuses its configuration.
    pub fn new(wireloom: &Path, routers: u8, topology: Topology) -> Result<Self> {
        let layout = Layout { nodes: routers, block_address: true, routed: false, ..Layout::default() };
        let lab = Lab::new(&layout)?;
        let key = |(n, node)| {
            let private = Base64::encode_string(&[n; 32]);
            KeyPair::of(wireloom, node, private)
        };
        let keys = (1..).zip(&lab.nodes).map(key).collect::<Result<_>>()?;
        let link = Self { lab, keys, topology, wireloom: wireloom.to_owned() };
        let routers = 0..link.lab.nodes.len();
        // All devices run before the first packet is sent: an initiation to a device that is not there yet is lost,
        // and WireGuard retries after five seconds only.
        routers.clone().try_for_each(|router| link.start_device(router))?;
        routers.into_iter().try_for_each(|router| link.bring_up(router))?;
        Ok(link)
    }

    /// Starts the device of a router (an index into [`Lab::nodes`]) and gives it its key and peers.
    ///
    /// # Errors
    /// When it does not start, or refuses its configuration.
    pub fn start_device(&self, router: usize) -> Result<()> {
        let node = &self.lab.nodes[router];
        let device = "device wg0 --peer-lookup gateway --source-check off";
        node.run(&format!("{} {device}", self.wireloom.display()))?;
        configure(&node.host.space, "wg0", &self.configuration(router)?)
    }

    /// A router's addresses on the link.
    #[must_use]
    pub fn address(&self, router: usize) -> Addresses {
        link_address(number(router))
    }

    /// The peers of a router: their indices and nodes.
    pub fn peers(&self, router: usize) -> impl Iterator<Item = (usize, &Node)> {
        let all = self.lab.nodes.iter().enumerate();
        all.filter(move |(other, _)| {
            *other != router && (self.topology == Topology::Full || router == 0 || *other == 0)
        })
    }

    /// The next hops by which other routers' routes can name this one: its IPv4 and IPv6 addresses on the link, and
    /// its link-local one.
    #[must_use]
    pub fn gateways(&self, router: usize) -> [String; 3] {
        let Addresses { v4, v6 } = self.address(router);
        let node = &self.lab.nodes[router];
        let shown = node.run("ip -6 -o address show dev wg0 scope link").unwrap_or_default();
        let own = shown.split_whitespace().skip_while(|word| *word != "inet6").nth(1).unwrap_or_default();
        [v4.to_string(), v6.to_string(), own.split('/').next().unwrap_or_default().to_owned()]
    }

    /// Adds the service behind a router, on an interface of this name. Its address is the same on every router that
    /// has it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn serve(&self, router: usize, interface: &str) -> Result<()> {
        let Addresses { v4, v6 } = SERVICE;
        let batch = format!(
            "link add {interface} type veth peer name service\n\
             address add {v4}/24 dev {interface}\n\
             address add {v6}/64 dev {interface} nodad\n\
             link set service up\n\
             link set {interface} up\n"
        );
        self.lab.nodes[router].host.space.feed("ip -batch -", &batch).map(drop)
    }

    /// The service on a router, as a place.
    #[must_use]
    pub fn service(&self, router: usize) -> Place {
        let node = &self.lab.nodes[router];
        Place {
            name: format!("the service on {}", node.name),
            space: node.host.space.clone(),
            addresses: SERVICE,
        }
    }

    /// A router's key and peers, for the control socket.
    fn configuration(&self, router: usize) -> Result<String> {
        let private = hex(&self.keys[router].private)?;
        let mut request = format!("private_key={private}\nlisten_port={PORT}\n");
        for (peer, node) in self.peers(router) {
            let public = hex(&self.keys[peer].public)?;
            let endpoint = node.endpoint(wireloom_plan::routing::Family::V4);
            let _ = writeln!(request, "public_key={public}\nendpoint={endpoint}");
            for address in self.address(peer).single() {
                let _ = writeln!(request, "allowed_ip={address}");
            }
        }
        Ok(request)
    }

    /// Brings up a router's interfaces with their addresses. ICMP redirects are off: on a link, a packet often leaves
    /// by the interface that it came in by.
    fn bring_up(&self, router: usize) -> Result<()> {
        let node = &self.lab.nodes[router];
        let Addresses { v4, v6 } = self.address(router);
        let (v4_length, v6_length) = match self.topology {
            Topology::Full => (24, 64),
            Topology::Hub => (32, 128),
        };
        let mut batch = format!(
            "link set cni0 name lan0\n\
             address add {v4}/{v4_length} dev wg0\n\
             address add {v6}/{v6_length} dev wg0 nodad\n\
             link set wg0 mtu 1420 up\n"
        );
        if self.topology == Topology::Hub {
            for (peer, _) in self.peers(router) {
                for address in self.address(peer).single() {
                    let _ = writeln!(batch, "route add {address} dev wg0");
                }
            }
        }
        node.host.space.feed("ip -batch -", &batch)?;
        node.host.space.set_sysctls(&[
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/wg0/send_redirects", "0"),
        ])
    }
}

/// The number of the router at an index: numbers start at 1.
fn number(router: usize) -> u8 {
    u8::try_from(router + 1).expect("a laboratory has 26 nodes at most")
}
