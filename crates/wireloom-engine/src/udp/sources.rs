//! The source addresses of datagrams: the address that the peer sent to, as long as it works.
//!
//! It no longer works when routing sends the datagrams through another interface: an uplink has failed, and nobody
//! forwards packets with its address by way of the other one. Like the kernel's WireGuard (`send4` in
//! drivers/net/wireguard/socket.c), the device then lets routing choose the source. The kernel looks at the route of
//! each packet. Here a [`RouteWatch`](super::route_watch::RouteWatch) looks routes up again when they may have changed.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use arc_swap::{ArcSwap, Guard};
use wireloom_proto::{Endpoint, LocalAddress};

/// How many entries are kept before those that nobody uses any more are looked for.
const PRUNE_FROM: usize = 64;

/// A destination, and the address of ours that it was sent to.
pub(super) type Way = (IpAddr, LocalAddress);

/// The source addresses that no longer work. All sockets of a port share them.
#[derive(Clone, Default)]
pub(super) struct Sources(Arc<ArcSwap<Unusable>>);

/// The source addresses that datagrams do not leave from.
#[derive(Clone, Debug, Default)]
pub(super) struct Unusable {
    /// The ways whose source address is left to routing.
    moved: HashSet<Way>,
    /// The addresses that this machine no longer has.
    gone: HashSet<IpAddr>,
    /// How many entries were in use when that was looked at last.
    in_use: usize,
}

impl Sources {
    /// Those that no longer work at this moment.
    pub(super) fn unusable(&self) -> Guard<Arc<Unusable>> {
        self.0.load()
    }

    /// Notes which ways have moved, and which have not. Returns false when all of that was known.
    pub(super) fn note_ways(&self, ways: &[(Way, bool)]) -> bool {
        let unusable = self.unusable();
        let news = |(way, has_moved): &&(Way, bool)| unusable.moved.contains(way) != *has_moved;
        let news: Vec<_> = ways.iter().filter(news).collect();
        for ((remote, _), has_moved) in &news {
            let choice = if *has_moved { "routing's choice" } else { "kept" };
            tracing::debug!("the source address for {remote} is {choice}");
        }
        if !news.is_empty() {
            self.change(|unusable| {
                for (way, has_moved) in &news {
                    if *has_moved {
                        unusable.moved.insert(*way);
                    } else {
                        unusable.moved.remove(way);
                    }
                }
            });
        }
        !news.is_empty()
    }

    /// Notes that this machine no longer has an address. Returns false when that was known.
    pub(super) fn note_gone(&self, address: IpAddr) -> bool {
        if self.unusable().gone.contains(&address) {
            return false;
        }
        self.change(|unusable| {
            unusable.gone.insert(address);
        });
        true
    }

    /// Notes at which addresses datagrams have arrived. They prove that the machine has these, perhaps again.
    pub(super) fn note_arrivals(&self, addresses: impl Iterator<Item = IpAddr>) {
        let unusable = self.unusable();
        if unusable.gone.is_empty() {
            return;
        }
        let back: Vec<IpAddr> = addresses.filter(|address| unusable.gone.contains(address)).collect();
        if !back.is_empty() {
            self.change(|unusable| unusable.gone.retain(|address| !back.contains(address)));
        }
    }

    /// Whether there may be many entries that no endpoint needs any more. A peer that roams leaves one behind for each
    /// address that it had.
    pub(super) fn has_grown(&self) -> bool {
        let unusable = self.unusable();
        unusable.len() > PRUNE_FROM + 2 * unusable.in_use
    }

    /// Forgets what none of these endpoints needs.
    pub(super) fn prune(&self, endpoints: &[Endpoint]) {
        if self.unusable().len() == 0 {
            return;
        }
        let in_use = |endpoint: &Endpoint| Some((endpoint.remote.ip(), endpoint.local?));
        let ways: HashSet<Way> = endpoints.iter().filter_map(in_use).collect();
        let addresses: HashSet<IpAddr> = ways.iter().map(|(_, local)| local.address).collect();
        self.change(|unusable| {
            unusable.moved.retain(|way| ways.contains(way));
            unusable.gone.retain(|address| addresses.contains(address));
            unusable.in_use = unusable.len();
        });
    }

    fn change(&self, change: impl Fn(&mut Unusable)) {
        self.0.rcu(|unusable| {
            let mut unusable = Unusable::clone(unusable);
            change(&mut unusable);
            unusable
        });
    }
}

impl Unusable {
    /// Whether datagrams to this destination can leave from this address.
    #[inline]
    pub(super) fn allow(&self, remote: IpAddr, local: LocalAddress) -> bool {
        (self.gone.is_empty() || !self.gone.contains(&local.address))
            && (self.moved.is_empty() || !self.moved.contains(&(remote, local)))
    }

    fn len(&self) -> usize {
        self.moved.len() + self.gone.len()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn way(remote: u8, local: u8) -> Way {
        let local = LocalAddress { address: [198, 51, 100, local].into(), interface: 2 };
        ([192, 0, 2, remote].into(), local)
    }

    fn endpoint((remote, local): Way) -> Endpoint {
        Endpoint { remote: SocketAddr::new(remote, 51820), local: Some(local) }
    }

    #[test]
    fn an_address_counts_as_gone_until_a_datagram_arrives_at_it() {
        let sources = Sources::default();
        let (remote, local) = way(1, 1);
        assert!(sources.note_gone(local.address) && !sources.note_gone(local.address));
        assert!(!sources.unusable().allow(remote, local));
        sources.note_arrivals([way(1, 2).1.address].into_iter());
        assert!(!sources.unusable().allow(remote, local));
        sources.note_arrivals([way(1, 2).1.address, local.address].into_iter());
        assert!(sources.unusable().allow(remote, local));
    }

    #[test]
    fn ways_that_nobody_uses_are_forgotten() {
        let sources = Sources::default();
        let all: Vec<Way> = (0..=255).map(|remote| way(remote, 1)).collect();
        let (used, stale) = all.split_at(100);
        let used: Vec<Endpoint> = used.iter().copied().map(endpoint).collect();
        let moved: Vec<_> = all.iter().map(|way| (*way, true)).collect();
        assert!(sources.note_ways(&moved) && !sources.note_ways(&moved));
        sources.note_gone(way(0, 9).1.address);
        assert!(sources.has_grown());
        sources.prune(&used);
        assert!(!sources.has_grown(), "the rest is in use");
        let unusable = sources.unusable();
        assert!(used.iter().all(|used| !unusable.allow(used.remote.ip(), used.local.unwrap())));
        assert!(stale.iter().all(|(remote, local)| unusable.allow(*remote, *local)));
        assert_eq!(unusable.len(), 100);
        // Once more as many as are in use may come along.
        sources.note_ways(&moved[100..220]);
        assert!(!sources.has_grown());
        sources.note_ways(&moved);
        sources.note_ways(&(0..=255).map(|remote| (way(remote, 2), true)).collect::<Vec<_>>());
        assert!(sources.has_grown());
    }
}
