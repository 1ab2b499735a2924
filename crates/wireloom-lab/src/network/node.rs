//! A machine of the laboratory, and the places on it where traffic starts and ends.

use std::{fmt::Write as _, net::SocketAddr};

use ipnet::IpNet;
use wireloom_plan::routing::Family;

use super::{
    Addresses, Holder, Layout, Space,
    layout::{FAMILIES, block, host, link_local, pod},
};
use crate::{PATIENCE, Result, mesh, until};

/// Set in every namespace before its first interface: IPv6 addresses are usable at once.
pub(super) const NO_DUPLICATE_ADDRESS_DETECTION: [(&str, &str); 2] =
    [("net/ipv6/conf/all/accept_dad", "0"), ("net/ipv6/conf/default/accept_dad", "0")];

/// Set on every node: it forwards. A new network namespace copies IPv4 settings from the machine
/// (`net.core.devconf_inherit_init_net`), so the ones that matter here are set, not assumed.
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
    /// Its namespaces. A pod shares mounts and processes with its node.
    pub space: Space,
    /// Its own addresses: a node's on the underlay, or a pod's.
    pub addresses: Addresses,
}

/// A machine with its own network, processes, `/run`, `/etc/wireloom` and `/var/lib/wireloom`.
#[derive(Debug)]
pub struct Node {
    /// The host name: `node-a` and so on.
    pub name: String,
    /// The node's own network.
    pub host: Place,
    /// The pods: first the [`Layout::pods`] ones, then those [added later](super::Lab::attach).
    pub pods: Vec<Place>,
    /// The prefixes of its pods' addresses, IPv4 first.
    pub block: [IpNet; 2],
    pub(crate) number: u8,
    pub(super) holder: Holder,
    /// The pods' gateway: the addresses of the bridge `cni0`.
    gateway: Addresses,
    pods_made: u32,
    pod_mtu: u32,
}

impl Node {
    /// The process that holds this node's namespaces: `nsenter --target PID --all` enters them.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.holder.pid()
    }

    /// Runs a command line in the node's own network, as [`Space::run`] does.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, line: &str) -> Result<String> {
        self.host.space.run(line)
    }

    /// The address and port at which this node's WireGuard listens.
    #[must_use]
    pub fn endpoint(&self, family: Family) -> SocketAddr {
        (self.host.addresses.of(family), mesh::PORT).into()
    }

    /// A machine that has the addresses of this number, and any name.
    pub(super) fn new(name: String, number: u8, layout: &Layout) -> Result<Self> {
        let (holder, space) = Holder::new(&name)?;
        let rp_filter = layout.rp_filter.to_string();
        space.set_sysctls(&NO_DUPLICATE_ADDRESS_DETECTION)?;
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

    /// The MAC address of `eth0`. It is fixed: other nodes keep it in their neighbour tables while this one restarts.
    pub(super) fn mac(&self) -> String {
        format!("02:00:00:00:00:{:02x}", self.number)
    }

    /// Brings up `eth0` and the bridge `cni0` with their addresses, and adds routes to the pods of `others`.
    pub(super) fn connect<'a>(&self, others: impl Iterator<Item = &'a Self>) -> Result<()> {
        let (own, gateway) = (self.host.addresses, self.gateway);
        // The bridge needs a fixed MAC address. Without one it takes the lowest of its ports': when that pod goes,
        // the others keep sending to a stale address until their neighbour entries expire, half a minute later.
        let bridge = format!("02:00:00:00:01:{:02x}", self.number);
        let mut batch = format!(
            "link set lo up\n\
             link set eth0 up\n\
             address add {}/24 dev eth0\n\
             address add {}/64 dev eth0 nodad\n\
             link add cni0 address {bridge} type bridge mcast_snooping 0\n\
             link set cni0 up\n\
             address add {}{} dev cni0\n\
             address add {}/64 dev cni0 nodad\n",
            own.v4,
            own.v6,
            gateway.v4,
            if gateway.v4.is_link_local() { "/32 scope link" } else { "/24" },
            gateway.v6
        );
        for other in others {
            for (prefix, family) in other.block.iter().zip(FAMILIES) {
                let _ = writeln!(batch, "route add {prefix} via {}", other.host.addresses.of(family));
            }
        }
        self.host.space.feed("ip -batch -", &batch).map(drop)
    }

    /// Adds a pod to this node's bridge, with addresses of the node's block or borrowed ones.
    pub(super) fn add_pod(&mut self, addresses: Addresses) -> Result<()> {
        self.pods_made += 1;
        let name = format!("pod-{}", self.pods_made);
        let gateway = self.gateway;
        let space = &self.host.space;
        space.run(&format!("ip netns add {name}"))?;
        let place = format!("{name} on {}", self.name);
        let inside = space.named_network(&name, place.clone())?;
        inside.set_sysctls(&NO_DUPLICATE_ADDRESS_DETECTION)?;
        let mut outside = format!(
            "link add {name} type veth peer name eth0 netns {name}\n\
             link set {name} master cni0 up\n"
        );
        for single in addresses.single() {
            // Replaces the route to the node that had a borrowed address before.
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

    /// Waits until the bridge forwards to every pod: the kernel notices a port's carrier up to a second late.
    pub(super) fn wait_for_pods(&self) -> Result<()> {
        until(PATIENCE, &format!("the pods of {} to be connected", self.name), || {
            let ports = self.host.space.run("ip -o link show master cni0").ok()?;
            (ports.matches("state UP").count() == self.pods.len()).then_some(())
        })
    }

    /// Removes a pod, by its index in [`Node::pods`].
    pub(super) fn remove_pod(&mut self, k: usize) -> Result<()> {
        let pod = self.pods.remove(k);
        // `pod-1 on node-a`: the first word is the name of its network namespace, and of its interface here.
        let name = pod.name.split(' ').next().unwrap_or_default();
        let space = &self.host.space;
        space.run(&format!("ip link del {name}"))?;
        space.run(&format!("ip netns del {name}"))?;
        for single in pod.addresses.single() {
            space.run(&format!("ip route flush {single}"))?;
            // The address may come back with another pod, which has another MAC address.
            space.run(&format!("ip neigh flush to {single} dev cni0"))?;
        }
        Ok(())
    }
}
