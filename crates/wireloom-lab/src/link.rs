//! Routers on one common link: a WireGuard interface on every node, each node a neighbour of the others.
//!
//! ```text
//!   pod ── lan0  router 1  wg0 ─────┬───── wg0  router 2  lan0 ── pod
//!       10.161.1.0/24   100.64.0.1  │  100.64.0.2   10.161.2.0/24
//!                                  wg0
//!                               router 3 …
//! ```
//!
//! Allowed-IPs name the peers' addresses on the link and nothing else, and no main table knows another
//! router's pods: what is behind a router is for [routing daemons](super::routing) to tell.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use base64ct::{Base64, Encoding as _};

use super::{
    Addresses, Lab, Layout, Node, Place, Result,
    layout::{SERVICE, link_address},
    mesh::{KeyPair, PORT},
    unscoped::{configure, hex},
};

/// Who is whose peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// Everybody is everybody's, and the link is a subnet: a /24 and a /64.
    Full,
    /// The first router is everybody's, the others know no more than it; addresses stand alone (/32 and
    /// /128), with a route to each peer's.
    Hub,
}

/// Routers on one common link; everything goes when it is dropped.
#[derive(Debug)]
pub struct Link {
    /// The routers, the first one first; their pods are the hosts behind them.
    pub lab: Lab,
    /// Theirs: always the same ones, so that what derives from a key can be written down.
    pub keys: Vec<KeyPair>,
    topology: Topology,
    wireloom: PathBuf,
}

impl Link {
    /// Builds it, with a pod behind each router; `wireloom` is the program.
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
        // All of them before the first packet: who is not there does not hear it, and WireGuard tries
        // again after five seconds.
        routers.clone().try_for_each(|router| link.start_device(router))?;
        routers.into_iter().try_for_each(|router| link.raise(router))?;
        Ok(link)
    }

    /// Starts the device of a router (by its place in [`Lab::nodes`]), with its key and peers.
    ///
    /// # Errors
    /// When it does not start, or refuses them.
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

    /// The other routers that this one has as peers.
    pub fn peers(&self, router: usize) -> impl Iterator<Item = (usize, &Node)> {
        let all = self.lab.nodes.iter().enumerate();
        all.filter(move |(other, _)| {
            *other != router && (self.topology == Topology::Full || router == 0 || *other == 0)
        })
    }

    /// What a router's neighbours call it in their routes: its link addresses, and the `fe80` one.
    #[must_use]
    pub fn gateways(&self, router: usize) -> [String; 3] {
        let Addresses { v4, v6 } = self.address(router);
        let node = &self.lab.nodes[router];
        let shown = node.run("ip -6 -o address show dev wg0 scope link").unwrap_or_default();
        let own = shown.split_whitespace().skip_while(|word| *word != "inet6").nth(1).unwrap_or_default();
        [v4.to_string(), v6.to_string(), own.split('/').next().unwrap_or_default().to_owned()]
    }

    /// A service behind a router, on an interface of this name: the same address on every router.
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

    /// The service as this router has it.
    #[must_use]
    pub fn service(&self, router: usize) -> Place {
        let node = &self.lab.nodes[router];
        Place {
            name: format!("the service on {}", node.name),
            space: node.host.space.clone(),
            addresses: SERVICE,
        }
    }

    /// In the words of the control socket (<https://www.wireguard.com/xplatform/>).
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

    /// Addresses, and the settings that a link needs where a packet may go out as it came in.
    fn raise(&self, router: usize) -> Result<()> {
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

/// Of the router at this place, from 1.
fn number(router: usize) -> u8 {
    u8::try_from(router + 1).expect("a laboratory has 26 nodes at most")
}
