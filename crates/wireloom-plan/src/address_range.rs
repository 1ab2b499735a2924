//! Ranges of addresses: the remainder of a prefix after narrower prefixes are taken out of it.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Serialize, Serializer};

/// The addresses of one family from the first to the last, both included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// A range; `None` when the addresses are of two families or the last comes before the first.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    /// The lowest address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The highest address.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether the range holds the address.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && (self.first..=self.last).contains(&address)
    }

    /// Whether the ranges have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// The remainder without these ranges, which lie inside this one, are sorted by their first address and
    /// may contain each other.
    pub(crate) fn without(self, inside: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut left = Vec::new();
        let mut next = Some(number(self.first));
        for hole in inside {
            let Some(from) = next else { break };
            let (first, last) = (number(hole.first), number(hole.last));
            if from < first {
                left.push(self.part(from, first - 1));
            }
            // `None` after the last of all addresses.
            next = from.max(last).checked_add(u128::from(from <= last));
        }
        left.extend(
            next.filter(|from| *from <= number(self.last)).map(|from| self.part(from, number(self.last))),
        );
        left
    }

    fn part(self, first: u128, last: u128) -> Self {
        let address = |number: u128| match self.first {
            IpAddr::V4(_) => IpAddr::V4((number as u32).into()),
            IpAddr::V6(_) => IpAddr::V6(number.into()),
        };
        Self { first: address(first), last: address(last) }
    }

    /// The prefix with exactly these addresses, if there is one.
    fn prefix(&self) -> Option<IpNet> {
        let (first, last) = (number(self.first), number(self.last));
        let host = last - first;
        let aligned = host & host.wrapping_add(1) == 0 && first & host == 0;
        let length = if self.first.is_ipv4() { 32 } else { 128 } - host.count_ones();
        aligned.then(|| IpNet::new(self.first, length as u8).ok())?
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

impl From<IpNet> for AddressRange {
    fn from(prefix: IpNet) -> Self {
        match prefix {
            IpNet::V4(net) => Self { first: net.network().into(), last: net.broadcast().into() },
            IpNet::V6(net) => Self { first: net.network().into(), last: net.broadcast().into() },
        }
    }
}

impl From<IpAddr> for AddressRange {
    fn from(address: IpAddr) -> Self {
        Self { first: address, last: address }
    }
}

/// The syntax of nft: an address, a prefix if there is one, otherwise the first and the last address.
impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix() {
            _ if self.first == self.last => write!(f, "{}", self.first),
            Some(prefix) => write!(f, "{prefix}"),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl fmt::Debug for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for AddressRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> AddressRange {
        text.parse::<IpNet>().unwrap().into()
    }

    fn left(of: &str, without: &[&str]) -> Vec<String> {
        net(of).without(without.iter().copied().map(net)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn holes_leave_the_ranges_between_them() {
        assert_eq!(left("10.0.0.0/24", &[]), ["10.0.0.0/24"]);
        assert_eq!(left("10.0.0.0/24", &["10.0.0.0/25"]), ["10.0.0.128/25"]);
        assert_eq!(left("10.0.0.0/24", &["10.0.0.7/32"]), ["10.0.0.0-10.0.0.6", "10.0.0.8-10.0.0.255"]);
        assert_eq!(left("10.0.0.0/24", &["10.0.0.0/25", "10.0.0.7/32", "10.0.0.128/25"]), [""; 0]);
        assert_eq!(left("0.0.0.0/0", &["255.255.255.255/32"]), ["0.0.0.0-255.255.255.254"]);
        assert_eq!(left("::/0", &["::/1", "8000::/1"]), [""; 0]);
        assert_eq!(left("::/0", &[]), ["::/0"]);
        assert_eq!(left("fd00::/126", &["fd00::1/128"]), ["fd00::", "fd00::2/127"]);
    }

    #[test]
    fn a_range_has_one_family_and_its_addresses_in_order() {
        let [low, high, other] = ["10.0.0.1", "10.0.0.9", "fd00::1"].map(|text| text.parse().unwrap());
        assert!(AddressRange::new(low, other).is_none() && AddressRange::new(high, low).is_none());
        let range = AddressRange::new(low, high).unwrap();
        assert!(range.contains(low) && range.contains(high) && !range.contains(other));
    }

    proptest! {
        /// Checked address by address.
        #[test]
        fn the_remainder_holds_every_address_outside_the_holes(
            of in (0..8_u32, 24..=32_u8),
            holes in prop::collection::btree_set((0..256_u32, 24..=32_u8), 0..8),
        ) {
            let net = |(low, length): (u32, u8)| {
                IpNet::new(IpAddr::V4((0x0a00_0000 | low).into()), length).unwrap().trunc()
            };
            let of = net(of);
            let mut holes: Vec<_> = holes.into_iter().map(net).filter(|hole| of.contains(hole)).collect();
            holes.sort();
            let left = AddressRange::from(of).without(holes.iter().copied().map(AddressRange::from));
            for address in of.hosts().chain([of.network(), of.broadcast()]) {
                let expected = !holes.iter().any(|hole| hole.contains(&address));
                let found = left.iter().filter(|range| range.contains(address)).count();
                prop_assert_eq!(found, usize::from(expected), "{}", address);
            }
        }
    }
}
