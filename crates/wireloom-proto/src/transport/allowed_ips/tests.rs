//! The table, compared with a simple model: a list of networks.

use std::collections::BTreeMap;

use ipnet::{Ipv4Net, Ipv6Net};
use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Model(BTreeMap<IpNet, u32>);

impl Model {
    fn lookup(&self, address: IpAddr) -> Option<&u32> {
        let covering = self.0.iter().filter(|(network, _)| network.contains(&address));
        covering.max_by_key(|(network, _)| network.prefix_len()).map(|(_, value)| value)
    }
}

#[derive(Clone, Debug)]
enum Change {
    Insert(IpNet, u32),
    Remove(IpNet),
}

/// Addresses that differ in few bits, so that networks often nest, touch and repeat.
fn address_v4() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        (0..4_u32, 0..4_u32).prop_map(|(high, low)| high << 30 | low),
        (0..8_u32).prop_map(|bits| 0x0a00_0000 | bits << 8),
    ]
}

fn address_v6() -> impl Strategy<Value = u128> {
    prop_oneof![
        any::<u128>(),
        (0..4_u128, 0..4_u128).prop_map(|(high, low)| high << 126 | low),
        (0..8_u128).prop_map(|bits| 0xfd << 120 | bits << 61),
    ]
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        address_v4().prop_map(|bits| IpAddr::V4(bits.into())),
        address_v6().prop_map(|bits| IpAddr::V6(bits.into())),
    ]
}

fn network() -> impl Strategy<Value = IpNet> {
    let v4 = (address_v4(), prop_oneof![0..=32_u8, 22..=26_u8, Just(32)]);
    let v6 = (address_v6(), prop_oneof![0..=128_u8, 60..=68_u8, Just(128)]);
    prop_oneof![
        v4.prop_map(|(bits, len)| Ipv4Net::new_assert(bits.into(), len).trunc().into()),
        v6.prop_map(|(bits, len)| Ipv6Net::new_assert(bits.into(), len).trunc().into()),
    ]
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        2 => (network(), 0..9_u32).prop_map(|(network, value)| Change::Insert(network, value)),
        1 => network().prop_map(Change::Remove),
    ];
    proptest::collection::vec(change, 0..120)
}

/// Asserts that every node is a network or branches, so that the trie is as small as possible.
fn assert_compressed<K: Bits, T>(trie: &Trie<K, T>, networks: usize) {
    let used = trie.nodes.len() - trie.free.len();
    assert!(used <= (2 * networks).saturating_sub(1), "{used} nodes for {networks} networks");
    assert_eq!(trie.root == NIL, networks == 0);
}

proptest! {
    #[test]
    fn table_and_model_agree_after_any_changes(
        changes in changes(),
        probes in proptest::collection::vec(address(), 40),
    ) {
        let (mut table, mut model) = (AllowedIps::default(), Model::default());
        for change in &changes {
            match change {
                Change::Insert(network, value) => {
                    let replaced = table.insert(*network, *value);
                    prop_assert_eq!(replaced, model.0.insert(*network, *value));
                }
                Change::Remove(network) => {
                    prop_assert_eq!(table.remove(*network), model.0.remove(network));
                }
            }
        }
        let ends = model.0.keys().flat_map(|network| [network.network(), network.broadcast()]);
        for probe in probes.into_iter().chain(ends) {
            prop_assert_eq!(table.lookup(probe), model.lookup(probe), "{}", probe);
        }
        let v4 = model.0.keys().filter(|network| network.network().is_ipv4()).count();
        assert_compressed(&table.v4, v4);
        assert_compressed(&table.v6, model.0.len() - v4);

        // A copy is independent of the original, and an emptied table has no nodes.
        let copy = table.clone();
        for network in model.0.keys() {
            prop_assert!(table.remove(*network).is_some());
        }
        assert_compressed(&table.v4, 0);
        assert_compressed(&table.v6, 0);
        for (network, value) in &model.0 {
            if model.lookup(network.network()) == Some(value) {
                prop_assert_eq!(copy.lookup(network.network()), Some(value));
            }
        }
    }
}

#[test]
fn the_longest_prefix_wins() {
    let mut table = AllowedIps::default();
    let networks = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "::/0", "fd00::/8"];
    for network in networks {
        assert_eq!(table.insert(network.parse().unwrap(), network), None);
    }
    for (address, network) in [
        ("192.0.2.1", "0.0.0.0/0"),
        ("10.2.0.1", "10.0.0.0/8"),
        ("10.1.2.2", "10.1.0.0/16"),
        ("10.1.2.3", "10.1.2.3/32"),
        ("2001:db8::1", "::/0"),
        ("fd00::1", "fd00::/8"),
    ] {
        assert_eq!(table.lookup(address.parse().unwrap()), Some(&network), "{address}");
    }
    table.remove("0.0.0.0/0".parse().unwrap());
    assert_eq!(table.lookup("192.0.2.1".parse().unwrap()), None);
    assert_eq!(table.lookup("2001:db8::1".parse().unwrap()), Some(&"::/0"), "the IPv6 default route stays");
}

#[test]
fn host_bits_are_ignored() {
    let mut table = AllowedIps::default();
    assert_eq!(table.insert("10.1.2.3/8".parse().unwrap(), 1), None);
    assert_eq!(table.insert("10.0.0.0/8".parse().unwrap(), 2), Some(1));
    assert_eq!(table.remove("10.9.9.9/8".parse().unwrap()), Some(2));
}
