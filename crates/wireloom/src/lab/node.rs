//! The laboratory's network: an underlay, nodes on it, pods on them.

use std::fmt::Write as _;

use ipnet::IpNet;
use wireloom_plan::kernel::Family;

use super::{
    Addresses, Holder, Layout, PATIENCE, Result, Space,
    layout::{FAMILIES, block, host, link_local, node_name, pod},
    tools, until,
};

/// On every namespace before its first interface: addresses are usable at once, without duplicate
/// address detection.
const READY_AT_ONCE: [(&str, &str); 2] =
    [("net/ipv6/conf/all/accept_dad", "0"), ("net/ipv6/conf/default/accept_dad", "0")];

/// On every node: it forwards, and of what a new namespace takes over from the machine's own IPv4
/// settings, nothing that matters here is left to chance.
const FORWARDING: [(&str, &str); 4] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/src_valid_mark", "0"),
    ("net/ipv4/conf/default/src_valid_mark", "0"),
];

/// Where traffic starts or ends: a node's own network or a pod's.
#[derive(Debug)]
pub struct Place {
    /// `node-a`, or `pod-1 on node-a`.
    pub name: String,
    /// Its namespaces; a pod shares mounts and processes with its node.
    pub space: Space,
    /// Its own.
    pub addresses: Addresses,
}

/// A machine: its own network, processes, `/run`, `/etc/wireloom` and `/var/lib/wireloom`.
#[derive(Debug)]
pub struct Node {
    /// `node-a` and so on.
    pub name: String,
    /// The node's own network.
    pub host: Place,
    /// Those that [`Layout::pods`] asked for, and [borrowers](Lab::lend_address).
    pub pods: Vec<Place>,
    /// Where its pods live: one prefix for each family.
    pub block: [IpNet; 2],
    number: u8,
    /// On the bridge `cni0`.
    gateway: Addresses,
    pods_made: u32,
    pod_mtu: u16,
    holder: Holder,
}

impl Node {
    /// The process whose namespaces are this node's: `nsenter --target PID --all`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.holder.pid()
    }

    /// Runs a command line on the node; see [`Space::run`].
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, line: &str) -> Result<String> {
        self.host.space.run(line)
    }

    /// The name of the interface towards the underlay.
    #[must_use]
    pub fn uplink(&self) -> &'static str {
        "eth0"
    }

    /// Where the WireGuard of this node listens, over one family.
    #[must_use]
    pub fn endpoint(&self, family: Family) -> std::net::SocketAddr {
        (self.host.addresses.of(family), super::mesh::PORT).into()
    }

    fn new(number: u8, layout: &Layout) -> Result<Self> {
        let name = node_name(number);
        let (holder, space) = Holder::new(&name)?;
        let rp_filter = layout.rp_filter.to_string();
        space.set_sysctls(&READY_AT_ONCE)?;
        space.set_sysctls(&FORWARDING)?;
        space.set_sysctls(&[
            ("net/ipv4/conf/all/rp_filter", &rp_filter),
            ("net/ipv4/conf/default/rp_filter", &rp_filter),
        ])?;
        let gateway = if layout.block_address { pod(number, 1) } else { link_local() };
        let host = Place { name: name.clone(), space, addresses: host(number) };
        Ok(Self {
            name,
            host,
            pods: Vec::new(),
            block: block(number),
            number,
            gateway,
            pods_made: 0,
            pod_mtu: layout.pod_mtu,
            holder,
        })
    }

    /// A pod on this node's bridge, with an address of the node's block or a borrowed one.
    fn add_pod(&mut self, addresses: Addresses) -> Result<()> {
        self.pods_made += 1;
        let name = format!("pod-{}", self.pods_made);
        let gateway = self.gateway;
        let space = &self.host.space;
        space.run(&format!("ip netns add {name}"))?;
        let place = format!("{name} on {}", self.name);
        let inside = space.named_network(&name, place.clone())?;
        inside.set_sysctls(&READY_AT_ONCE)?;
        let mut outside = format!(
            "link add {name} type veth peer name eth0 netns {name}\n\
             link set {name} master cni0 up\n"
        );
        for single in addresses.single() {
            // Stronger than the way to where a borrowed address was before.
            let _ = writeln!(outside, "route replace {single} dev cni0");
        }
        space.feed("ip -batch -", &outside)?;
        inside.feed(
            "ip -batch -",
            &format!(
                "link set lo up\n\
                 link set eth0 mtu {} up\n\
                 address add {}/32 dev eth0\n\
                 address add {}/128 dev eth0 nodad\n\
                 route add 0.0.0.0/0 via {} dev eth0 onlink\n\
                 route add ::/0 via {} dev eth0 onlink\n",
                self.pod_mtu, addresses.v4, addresses.v6, gateway.v4, gateway.v6
            ),
        )?;
        self.pods.push(Place { name: place, space: inside, addresses });
        Ok(())
    }
}

impl Node {
    /// A bridge forwards to a port once the kernel has noticed its carrier, up to a second later.
    fn wait_for_pods(&self) -> Result<()> {
        until(PATIENCE, &format!("the pods of {} to be connected", self.name), || {
            let ports = self.host.space.run("ip -o link show master cni0").ok()?;
            (ports.matches("state UP").count() == self.pods.len()).then_some(())
        })
    }

    fn remove_pod(&mut self, k: usize) -> Result<()> {
        let pod = self.pods.remove(k);
        // `pod-1 on node-a`: the first word names its network and its interface here.
        let name = pod.name.split(' ').next().unwrap_or_default();
        let space = &self.host.space;
        space.run(&format!("ip link del {name}"))?;
        space.run(&format!("ip netns del {name}"))?;
        for single in pod.addresses.single() {
            space.run(&format!("ip route flush {single}"))?;
            // The address may come back with another pod, that is: another link address.
            space.run(&format!("ip neigh flush to {single} dev cni0"))?;
        }
        Ok(())
    }
}

/// Machines on one network, in namespaces; everything goes when it is dropped.
#[derive(Debug)]
pub struct Lab {
    /// `node-a` first.
    pub nodes: Vec<Node>,
    underlay: Space,
    underlay_holder: Holder,
}

impl Lab {
    /// Builds a laboratory; becomes root of a user namespace first where that is needed.
    ///
    /// # Errors
    /// When a program is missing, or the kernel refuses.
    pub fn new(layout: &Layout) -> Result<Self> {
        super::become_root()?;
        tools::require(&["ip"])?;
        let (underlay_holder, underlay) = Holder::new("the underlay")?;
        underlay.set_sysctls(&READY_AT_ONCE)?;
        underlay.feed(
            "ip -batch -",
            "link set lo up\nlink add underlay type bridge mcast_snooping 0\nlink set underlay up\n",
        )?;
        let nodes = (1..=layout.nodes).map(|n| Node::new(n, layout)).collect::<Result<Vec<_>>>()?;
        let mut lab = Self { nodes, underlay, underlay_holder };
        lab.connect()?;
        for node in &mut lab.nodes {
            for k in 0..layout.pods {
                node.add_pod(pod(node.number, k + 2))?;
            }
        }
        lab.nodes.iter().try_for_each(Node::wait_for_pods)?;
        Ok(lab)
    }

    /// Cables, addresses, and routes to the other nodes' pods.
    fn connect(&self) -> Result<()> {
        // Process ids are looked up as those of this pid namespace: so `ip` must run here.
        let mut cables = String::new();
        for node in &self.nodes {
            let _ = writeln!(cables, "link add {} type veth peer name eth0 netns {}", node.name, node.pid());
            let _ = writeln!(cables, "link set {} master underlay up", node.name);
        }
        self.underlay.network_only().feed("ip -batch -", &cables)?;
        for node in &self.nodes {
            let own = node.host.addresses;
            let gateway = node.gateway;
            let mut batch = format!(
                "link set lo up\n\
                 link set eth0 up\n\
                 address add {}/24 dev eth0\n\
                 address add {}/64 dev eth0 nodad\n\
                 link add cni0 type bridge mcast_snooping 0\n\
                 link set cni0 up\n\
                 address add {}{} dev cni0\n\
                 address add {}/64 dev cni0 nodad\n",
                own.v4,
                own.v6,
                gateway.v4,
                if gateway.v4.is_link_local() { "/32 scope link" } else { "/24" },
                gateway.v6
            );
            for other in self.nodes.iter().filter(|other| other.number != node.number) {
                for (prefix, family) in other.block.iter().zip(FAMILIES) {
                    let _ = writeln!(batch, "route add {prefix} via {}", other.host.addresses.of(family));
                }
            }
            node.host.space.feed("ip -batch -", &batch)?;
        }
        Ok(())
    }

    /// Address `k` (2 to 254) of node `owner`'s block goes to a new pod on node `borrower`; nodes are
    /// named by their places in [`Lab::nodes`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lend_address(&mut self, owner: usize, k: u8, borrower: usize) -> Result<Addresses> {
        let addresses = pod(self.nodes[owner].number, k);
        self.attach(addresses, borrower)?;
        Ok(addresses)
    }

    /// A new pod on a node, with any addresses; every main table routes them there, as the network
    /// plugin would.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&mut self, addresses: Addresses, home: usize) -> Result<()> {
        self.nodes[home].add_pod(addresses)?;
        self.nodes[home].wait_for_pods()?;
        self.route_to(addresses, home)
    }

    /// A borrowed address moves to another node: its pod ends and one is made there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn move_address(&mut self, addresses: Addresses, to: usize) -> Result<()> {
        let home = self.nodes.iter_mut().find_map(|node| {
            let k = node.pods.iter().position(|pod| pod.addresses == addresses)?;
            Some((node, k))
        });
        if let Some((node, k)) = home {
            node.remove_pod(k)?;
        }
        self.attach(addresses, to)
    }

    fn route_to(&self, addresses: Addresses, home: usize) -> Result<()> {
        let via = self.nodes[home].host.addresses;
        let mut batch = String::new();
        for (single, family) in addresses.single().into_iter().zip(FAMILIES) {
            let _ = writeln!(batch, "route replace {single} via {}", via.of(family));
        }
        let mut others = self.nodes.iter().enumerate().filter(|(n, _)| *n != home);
        others.try_for_each(|(_, node)| node.host.space.feed("ip -batch -", &batch).map(drop))
    }

    /// The network between the nodes: where captures are made.
    #[must_use]
    pub fn underlay(&self) -> &Space {
        &self.underlay
    }

    /// Lets the laboratory outlive this process; killing the returned processes takes it down.
    ///
    /// # Errors
    /// When a part of it has gone already.
    pub fn keep(mut self) -> Result<Vec<u32>> {
        let nodes = self.nodes.iter_mut().map(|node| &mut node.holder);
        nodes.chain([&mut self.underlay_holder]).map(Holder::keep).collect()
    }
}
