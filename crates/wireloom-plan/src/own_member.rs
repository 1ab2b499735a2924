//! This node in the mesh that a store shows: what it is there is not for the store to say.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use crate::cluster::{Cluster, Node};

/// Makes this node in the mesh what it wants to be, whatever its record says or whether there is one: who changes the
/// record of an encrypting node would else have it send in plaintext. Only what the record lacks and another node of
/// the mesh has stays that one's, because the store's readers have decided so.
///
/// Nothing changes unless this node encrypts by `before`, its entry in the mesh in force: one that is about to become
/// a member waits until the other nodes can know of it.
pub fn assert_own(mesh: &mut Cluster, own: &str, wanted: Option<&Node>, before: Option<&Node>) {
    let Some(before) = before.filter(|before| before.encrypt && before.public_key.is_some()) else { return };
    let wanted = wanted.unwrap_or(before);
    let shown = mesh.nodes.remove(own).unwrap_or_default();
    if shown == *wanted {
        mesh.nodes.insert(own.to_owned(), shown);
        return;
    }
    let mut node = wanted.clone();
    for other in mesh.nodes.values() {
        if node.public_key == other.public_key && shown.public_key != node.public_key {
            node.public_key = None;
        }
        node.workloads.retain(|cidr| shown.workloads.contains(cidr) || !takes_prefix(other, *cidr));
        retain(&mut node.addresses, &shown.addresses, other);
        retain(&mut node.link_addresses, &shown.link_addresses, other);
        retain(&mut node.tunnel_addresses, &shown.tunnel_addresses, other);
    }
    mesh.nodes.insert(own.to_owned(), node);
}

/// Whether another node has this prefix, or one around it. A single address may be borrowed out of another's block.
fn takes_prefix(other: &Node, cidr: IpNet) -> bool {
    let is_single = cidr.prefix_len() == cidr.max_prefix_len();
    other.workloads.contains(&cidr)
        || (!is_single && other.workloads.iter().any(|block| block.contains(&cidr)))
}

fn retain(values: &mut BTreeSet<IpAddr>, shown: &BTreeSet<IpAddr>, other: &Node) {
    let of_other = [&other.addresses, &other.link_addresses, &other.tunnel_addresses];
    values.retain(|value| shown.contains(value) || !of_other.iter().any(|all| all.contains(value)));
}

#[cfg(test)]
mod tests {
    use wireloom_types::PublicKey;

    use super::*;

    const KEY: PublicKey = PublicKey::from_bytes([1; 32]);
    const OTHER: PublicKey = PublicKey::from_bytes([2; 32]);

    fn node(key: PublicKey, workloads: &[&str], address: &str) -> Node {
        Node {
            public_key: Some(key),
            workloads: workloads.iter().filter_map(|text| text.parse().ok()).collect(),
            addresses: BTreeSet::from([address.parse().unwrap()]),
            ..Node::default()
        }
    }

    fn own() -> Node {
        node(KEY, &["10.161.1.0/24", "10.161.2.7/32"], "192.0.2.1")
    }

    fn mesh(own: Option<Node>, other: Node) -> Cluster {
        let own = own.map(|own| ("a".to_owned(), own));
        Cluster { nodes: own.into_iter().chain([("b".to_owned(), other)]).collect(), ..Cluster::default() }
    }

    #[test]
    fn no_foreign_record_makes_an_encrypting_node_another_one() {
        let other = node(OTHER, &["10.161.2.0/24"], "192.0.2.2");
        let plain = Node { encrypt: false, ..own() };
        let foreign = node(OTHER, &["10.161.9.0/24"], "192.0.2.9");
        for shown in [None, Some(Node::default()), Some(plain), Some(foreign), Some(own())] {
            let expected = mesh(Some(own()), other.clone());
            let mut given = mesh(shown.clone(), other.clone());
            assert_own(&mut given, "a", Some(&own()), Some(&own()));
            assert_eq!(given, expected, "{shown:?}");
            // An agent that has just started knows what it was.
            let mut given = mesh(shown, other.clone());
            assert_own(&mut given, "a", None, Some(&own()));
            assert_eq!(given, expected);
        }
    }

    #[test]
    fn what_another_node_has_by_the_rules_of_the_store_stays_its() {
        let other = node(KEY, &["10.161.0.0/16"], "192.0.2.1");
        let mut mesh = mesh(Some(Node { public_key: None, ..Node::default() }), other);
        assert_own(&mut mesh, "a", Some(&own()), Some(&own()));
        let borrowed: IpNet = "10.161.2.7/32".parse().unwrap();
        let expected = Node { public_key: None, workloads: BTreeSet::from([borrowed]), ..Node::default() };
        assert_eq!(mesh.nodes["a"], expected);
    }

    #[test]
    fn who_does_not_encrypt_yet_waits_for_the_store() {
        let direct = Node { encrypt: false, ..own() };
        for before in [None, Some(Node { public_key: None, ..own() }), Some(direct)] {
            let mut given = mesh(None, node(OTHER, &[], "192.0.2.2"));
            let expected = given.clone();
            assert_own(&mut given, "a", Some(&own()), before.as_ref());
            assert_eq!(given, expected);
        }
    }
}
