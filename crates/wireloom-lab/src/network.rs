//! The laboratory as a whole: an underlay, the nodes on it, and who has which pod.

use std::fmt::Write as _;

use super::{
    Addresses, Holder, Layout, Node, Result, Space, become_root,
    layout::{FAMILIES, pod},
    node::READY_AT_ONCE,
};

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
        become_root()?;
        let (underlay_holder, underlay) = Holder::new("the underlay")?;
        underlay.set_sysctls(&READY_AT_ONCE)?;
        underlay.feed(
            "ip -batch -",
            "link set lo up\nlink add underlay type bridge mcast_snooping 0\nlink set underlay up\n",
        )?;
        let nodes = (1..=layout.nodes).map(|n| Node::new(n, layout)).collect::<Result<Vec<_>>>()?;
        let mut lab = Self { nodes, underlay, underlay_holder };
        lab.connect(layout.routed)?;
        for node in &mut lab.nodes {
            for k in 0..layout.pods {
                node.add_pod(pod(node.number, k + 2))?;
            }
        }
        lab.nodes.iter().try_for_each(Node::wait_for_pods)?;
        Ok(lab)
    }

    /// Plugs every node in, with routes to the other nodes' pods where that is asked for.
    fn connect(&self, routed: bool) -> Result<()> {
        // Process ids are looked up as those of this pid namespace: so `ip` must run here.
        let mut cables = String::new();
        for node in &self.nodes {
            // One segment: what is sent as one is cut before it crosses, so that a capture sees every
            // datagram, and a probe finds its own by its length.
            let (name, pid) = (&node.name, node.pid());
            let _ = writeln!(
                cables,
                "link add {name} gso_max_segs 1 type veth peer name eth0 gso_max_segs 1 netns {pid}"
            );
            let _ = writeln!(cables, "link set {} master underlay up", node.name);
        }
        self.underlay.network_only().feed("ip -batch -", &cables)?;
        self.nodes.iter().try_for_each(|node| {
            node.connect(self.nodes.iter().filter(|other| routed && other.number != node.number))
        })
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
