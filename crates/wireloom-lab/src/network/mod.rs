//! The laboratory as a whole: an underlay, the nodes on it, and their pods.

mod holder;
pub(crate) mod layout;
mod node;
mod space;

use std::fmt::Write as _;

pub use self::{
    holder::Holder,
    layout::{Addresses, FAMILIES, Layout},
    node::{Node, Place},
    space::Space,
};
use self::{
    layout::{node_name, pod},
    node::NO_DUPLICATE_ADDRESS_DETECTION,
};
use crate::{Result, become_root};

/// Machines on one network, in namespaces. Dropping it takes everything down; so do a panic and the death of this
/// process, even by SIGKILL.
#[derive(Debug)]
pub struct Lab {
    /// The machines, in the order of their names: `node-a` first.
    pub nodes: Vec<Node>,
    layout: Layout,
    underlay: Space,
    underlay_holder: Holder,
}

impl Lab {
    /// Builds a laboratory. An ordinary user becomes root of a user namespace first ([`become_root`]).
    ///
    /// # Errors
    /// When a program is missing, or the kernel refuses.
    pub fn new(layout: &Layout) -> Result<Self> {
        become_root()?;
        let (underlay_holder, underlay) = Holder::new("the underlay")?;
        underlay.set_sysctls(&NO_DUPLICATE_ADDRESS_DETECTION)?;
        underlay.feed(
            "ip -batch -",
            "link set lo up\nlink add underlay type bridge mcast_snooping 0\nlink set underlay up\n",
        )?;
        let nodes =
            (1..=layout.nodes).map(|n| Node::new(node_name(n), n, layout)).collect::<Result<Vec<_>>>()?;
        let mut lab = Self { nodes, layout: *layout, underlay, underlay_holder };
        lab.connect(&lab.nodes)?;
        for node in &mut lab.nodes {
            for k in 0..layout.pods {
                node.add_pod(pod(node.number, k + 2))?;
            }
        }
        lab.nodes.iter().try_for_each(Node::wait_for_pods)?;
        Ok(lab)
    }

    /// Connects nodes to the underlay, and adds their routes to the other nodes' pods if the layout says so.
    fn connect(&self, nodes: &[Node]) -> Result<()> {
        // `ip` must run in our own pid namespace: `netns {pid}` below is a process id of this one.
        let mut cables = String::new();
        for node in nodes {
            // At most one segment in a packet: senders split GSO packets before they reach the cable, so a
            // capture sees each datagram by itself, and a probe recognises its own by the length.
            let (name, pid, mac) = (&node.name, node.pid(), node.mac());
            let _ = writeln!(
                cables,
                "link add {name} gso_max_segs 1 type veth peer name eth0 address {mac} gso_max_segs 1 netns {pid}"
            );
            let _ = writeln!(cables, "link set {name} master underlay up");
        }
        self.underlay.network_only().feed("ip -batch -", &cables)?;
        nodes.iter().try_for_each(|node| {
            let others = self.nodes.iter().filter(|other| other.number != node.number);
            node.connect(others.filter(|_| self.layout.routed))
        })
    }

    /// Turns a node (an index into [`Lab::nodes`]) off and on again: its processes, network and files are gone, and it
    /// comes back with its name, addresses and routes, but without pods.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn restart(&mut self, node: usize) -> Result<()> {
        let Node { name, number, .. } = &self.nodes[node];
        self.replace(node, name.clone(), *number)
    }

    /// Turns a node (an index into [`Lab::nodes`]) off and on again as [`Lab::restart`] does, but it comes back with
    /// another name, or with the addresses of another number: up to 253, and no other machine's. The other nodes'
    /// routes to its pods' addresses change with it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn replace(&mut self, node: usize, name: String, number: u8) -> Result<()> {
        let new = Node::new(name, number, &self.layout)?;
        let old = std::mem::replace(&mut self.nodes[node], new);
        // The kernel removes the old network, with the other end of this cable, at its leisure.
        self.underlay.run(&format!("ip link del {}", old.name))?;
        let new = &self.nodes[node];
        if self.layout.routed && old.block != new.block {
            let mut batch = String::new();
            for ((was, is), family) in old.block.iter().zip(new.block).zip(FAMILIES) {
                let via = new.host.addresses.of(family);
                let _ = writeln!(batch, "route del {was}\nroute add {is} via {via}");
            }
            let mut others = self.nodes.iter().enumerate().filter(|(n, _)| *n != node);
            others.try_for_each(|(_, other)| other.host.space.feed("ip -batch -", &batch).map(drop))?;
        }
        self.connect(&self.nodes[node..=node])
    }

    /// Gives address `k` (2 to 254) of the block of node `owner` to a new pod on node `borrower`, as an IPAM does
    /// that lends single addresses across nodes. Both nodes are indices into [`Lab::nodes`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lend_address(&mut self, owner: usize, k: u8, borrower: usize) -> Result<Addresses> {
        let addresses = pod(self.nodes[owner].number, k);
        self.attach(addresses, borrower)?;
        Ok(addresses)
    }

    /// Adds a pod with any addresses to node `home` (an index into [`Lab::nodes`]), and routes them there in every
    /// node's main table, as a network plugin does.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&mut self, addresses: Addresses, home: usize) -> Result<()> {
        self.nodes[home].add_pod(addresses)?;
        self.nodes[home].wait_for_pods()?;
        self.route_to(addresses, home)
    }

    /// Moves a pod's addresses to node `to` (an index into [`Lab::nodes`]): removes the pod that has them, and adds
    /// one there.
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

    /// The network between the nodes, where a [`Capture`](crate::Capture) listens.
    #[must_use]
    pub fn underlay(&self) -> &Space {
        &self.underlay
    }

    /// Lets the laboratory outlive this process. Killing all processes whose ids are returned (SIGKILL) takes it down.
    ///
    /// # Errors
    /// When a part of it has already ended.
    pub fn keep(mut self) -> Result<Vec<u32>> {
        let nodes = self.nodes.iter_mut().map(|node| &mut node.holder);
        nodes.chain([&mut self.underlay_holder]).map(Holder::keep).collect()
    }
}
