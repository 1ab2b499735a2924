//! Borrowed addresses: those of pods on this node that come from another node's block.
//!
//! Calico's IPAM takes addresses from other nodes' blocks when it may not give this node another block of its own. Who
//! has which is written in IPAMBlocks, which change with every pod of the cluster. This node's own kernel knows it,
//! too: Felix makes a route to each pod's address, by an interface with a name of its own.
//!
//! ```text
//!  10.162.0.2  dev calif7f2bf68895 scope link     in a pool, in no block of ours: borrowed
//!  10.162.0.16 dev cali2aef6d58065 scope link     in our block 10.162.0.16/29
//! ```

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

/// How the names of pods' interfaces begin, unless Felix is told otherwise (`interfacePrefix` of FelixConfiguration).
const FELIX_PREFIX: &str = "cali";

/// Which of this node's routes lead to borrowed addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Borrowable {
    pools: BTreeSet<IpNet>,
    own: BTreeSet<IpNet>,
}

impl Borrowable {
    /// What lies in one of the pools, and in none of this node's own blocks.
    #[must_use]
    pub fn new(pools: BTreeSet<IpNet>, own: BTreeSet<IpNet>) -> Self {
        Self { pools, own }
    }

    /// Whether nothing can be borrowed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }

    /// Whether an address is borrowed if a pod here has it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let is_in = |cidrs: &BTreeSet<IpNet>| cidrs.iter().any(|cidr| cidr.contains(&address));
        is_in(&self.pools) && !is_in(&self.own)
    }

    /// Whether a route may lead to a borrowed address at all. A cheap answer, without the interface's name.
    #[must_use]
    pub fn may_hold(&self, destination: IpNet) -> bool {
        destination.prefix_len() == destination.max_prefix_len() && self.contains(destination.addr())
    }

    /// The borrowed addresses, as prefixes of one address each, if these are the destinations of this node's unicast
    /// routes without a gateway, and the interfaces that they lead to.
    #[must_use]
    pub fn borrowed<'a>(&self, routes: impl IntoIterator<Item = (IpNet, &'a str)>) -> BTreeSet<IpNet> {
        let routes = routes.into_iter().filter(|(_, interface)| interface.starts_with(FELIX_PREFIX));
        routes.map(|(destination, _)| destination).filter(|destination| self.may_hold(*destination)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// Routes of a node on which the real Calico has lent its pods four addresses out of another node's block.
    const ROUTES: [(&str, &str); 9] = [
        ("0.0.0.0/0", "eth0"),
        ("10.162.0.0/29", "eth0"),
        ("10.162.0.2/32", "calif7f2bf68895"),
        ("10.162.0.5/32", "cali93e816aafcd"),
        ("10.162.0.16/32", "cali2aef6d58065"),
        ("192.168.77.0/24", "eth0"),
        ("fd61::2893:e83c:c9a6:7f8b:bb88/128", "cali2aef6d58065"),
        ("fd61::d01c:d569:d420:c640:6201/128", "cali30e718221de"),
        ("fd61:0:0:1::/64", "eth0"),
    ];

    fn routes() -> impl Iterator<Item = (IpNet, &'static str)> {
        ROUTES.iter().map(|(destination, interface)| (destination.parse().unwrap(), *interface))
    }

    #[test]
    fn single_addresses_of_a_pool_outside_the_own_blocks_are_borrowed() {
        let pools = cidrs(&["10.162.0.0/27", "fd61::/48"]);
        let own = cidrs(&["10.162.0.16/29", "fd61::2893:e83c:c9a6:7f8b:bb80/122"]);
        let borrowed = Borrowable::new(pools, own).borrowed(routes());
        let expected = ["10.162.0.2/32", "10.162.0.5/32", "fd61::d01c:d569:d420:c640:6201/128"];
        assert_eq!(borrowed, cidrs(&expected));
    }

    #[test]
    fn nothing_is_borrowed_outside_the_pools_or_by_another_interface() {
        assert_eq!(Borrowable::default().borrowed(routes()), cidrs(&[]), "no pools");
        let others = Borrowable::new(cidrs(&["10.99.0.0/16"]), cidrs(&[]));
        assert_eq!(others.borrowed(routes()), cidrs(&[]));
        let all = Borrowable::new(cidrs(&["10.162.0.0/27"]), cidrs(&[]));
        let by_card = routes().map(|(destination, _)| (destination, "eth0"));
        assert_eq!(all.borrowed(by_card), cidrs(&[]), "another machine has it");
        let blocks = routes().map(|(destination, _)| (destination, "cali0"));
        assert!(!all.borrowed(blocks).contains(&"10.162.0.0/29".parse().unwrap()), "a block is no address");
    }
}
