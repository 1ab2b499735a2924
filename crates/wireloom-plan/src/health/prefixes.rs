//! Questions to a set of prefixes that are answered without looking at all of them.

use std::collections::BTreeSet;

use ipnet::IpNet;

/// A set of prefixes without host bits.
pub struct Prefixes<'a> {
    set: &'a BTreeSet<IpNet>,
    /// The lengths that occur, of both families.
    lengths: BTreeSet<u8>,
}

impl<'a> Prefixes<'a> {
    /// Of these prefixes.
    pub fn new(set: &'a BTreeSet<IpNet>) -> Self {
        Self { set, lengths: set.iter().map(IpNet::prefix_len).collect() }
    }

    /// Whether one of at least this length has an address in common with `with`.
    pub fn any_overlaps(&self, with: IpNet, least: u8) -> bool {
        self.any_covers(with, least) || self.any_inside(with, least)
    }

    /// Whether one of at least this length holds the whole of `inner`.
    pub(super) fn any_covers(&self, inner: IpNet, least: u8) -> bool {
        let mut lengths = self.lengths.range(least..).filter(|length| **length <= inner.prefix_len());
        lengths.any(|length| {
            IpNet::new(inner.addr(), *length).is_ok_and(|around| self.set.contains(&around.trunc()))
        })
    }

    fn any_inside(&self, outer: IpNet, least: u8) -> bool {
        // A prefix comes before all that it contains, and these before the next one of its length.
        let inside = self.set.range(outer.trunc()..).take_while(|prefix| outer.contains(*prefix));
        inside.take(LOOKED_AT).any(|prefix| prefix.prefix_len() >= least)
    }
}

/// How many prefixes inside another one are looked at; almost always the first decides.
const LOOKED_AT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_cover_and_lie_inside() {
        let set =
            ["10.0.0.0/8", "10.1.2.0/24", "10.1.2.3/32", "::/0"].map(|text| text.parse().unwrap()).into();
        let prefixes = Prefixes::new(&set);
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        assert!(prefixes.any_covers(net("10.9.0.0/16"), 0) && !prefixes.any_covers(net("10.9.0.0/16"), 9));
        assert!(prefixes.any_covers(net("fd61::/64"), 0) && !prefixes.any_covers(net("fd61::/64"), 1));
        assert!(!prefixes.any_covers(net("0.0.0.0/0"), 0) && prefixes.any_overlaps(net("0.0.0.0/0"), 32));
        assert!(
            prefixes.any_overlaps(net("10.1.2.0/24"), 24) && !prefixes.any_overlaps(net("10.1.3.0/24"), 9)
        );
        assert!(prefixes.any_overlaps(net("10.1.0.0/16"), 9));
    }
}
