//! The claims of nodes to names and addresses, checked against each other: no two nodes may claim the same.

use std::{collections::BTreeMap, net::IpAddr, ops::Range};

use ipnet::IpNet;

use super::{Located, Mesh, MeshNode};
use crate::config_file::{Mistake, TomlFile};

/// A node's claim to a CIDR, and its place in the file.
struct Claim<'a> {
    cidr: IpNet,
    node: &'a str,
    span: &'a Range<usize>,
}

pub(super) fn check(file: &TomlFile, mesh: &Mesh) -> Result<(), Mistake> {
    names_are_distinct(file, &mesh.nodes)?;
    pools_are_distinct(file, &mesh.pools)?;
    addresses_are_distinct(file, &mesh.nodes, |node| &node.addresses)?;
    addresses_are_distinct(file, &mesh.nodes, |node| &node.link_addresses)?;
    addresses_are_distinct(file, &mesh.nodes, |node| &node.tunnel_addresses)?;
    workloads_do_not_overlap(file, &mesh.nodes)?;
    tunnel_addresses_are_workloads(file, &mesh.nodes)
}

fn names_are_distinct(file: &TomlFile, nodes: &[MeshNode]) -> Result<(), Mistake> {
    let mut seen = BTreeMap::new();
    for name in nodes.iter().map(|node| &node.name) {
        if let Some(first) = seen.insert(&name.value, name.span.start) {
            let what = format!(
                "the name {:?} is taken by the node at line {}; give each node a name of its own",
                name.value,
                file.line(first)
            );
            return Err(file.mistake(&name.span, what));
        }
    }
    Ok(())
}

fn pools_are_distinct(file: &TomlFile, pools: &[Located<IpNet>]) -> Result<(), Mistake> {
    let mut seen = BTreeMap::new();
    for pool in pools {
        if let Some(first) = seen.insert(pool.value, pool.span.start) {
            let what = format!(
                "the pool {} is already declared at line {}; remove one of the two",
                pool.value,
                file.line(first)
            );
            return Err(file.mistake(&pool.span, what));
        }
    }
    Ok(())
}

fn addresses_are_distinct(
    file: &TomlFile,
    nodes: &[MeshNode],
    addresses: fn(&MeshNode) -> &[Located<IpAddr>],
) -> Result<(), Mistake> {
    let mut seen = BTreeMap::new();
    for node in nodes {
        for address in addresses(node) {
            if let Some((other, first)) = seen.insert(address.value, (&node.name.value, address.span.start)) {
                let what = format!(
                    "{:?} claims the address {}, as {other:?} does at line {}; remove one of the two",
                    node.name.value,
                    address.value,
                    file.line(first)
                );
                return Err(file.mistake(&address.span, what));
            }
        }
    }
    Ok(())
}

/// Checks that no CIDR is claimed twice or lies inside another one. Only a single address may lie inside another
/// node's block: it is borrowed, and longest-prefix routing sends it to the node that has it.
fn workloads_do_not_overlap(file: &TomlFile, nodes: &[MeshNode]) -> Result<(), Mistake> {
    let mut claims: Vec<Claim<'_>> = nodes
        .iter()
        .flat_map(|node| {
            let name = &node.name.value;
            node.workloads.iter().map(move |cidr| Claim { cidr: cidr.value, node: name, span: &cidr.span })
        })
        .collect();
    // A block sorts directly before everything that lies in it, so comparing with the last block is enough.
    claims.sort_by_key(|claim| (claim.cidr.network(), claim.cidr.prefix_len(), claim.span.start));
    let mut block: Option<&Claim<'_>> = None;
    let mut previous: Option<&Claim<'_>> = None;
    for claim in &claims {
        if let Some(same) = previous.filter(|previous| previous.cidr == claim.cidr) {
            return Err(overlap(file, same, claim));
        }
        let single = claim.cidr.prefix_len() == claim.cidr.max_prefix_len();
        if !single {
            if let Some(outer) = block.filter(|block| block.cidr.contains(&claim.cidr)) {
                return Err(overlap(file, outer, claim));
            }
            block = Some(claim);
        }
        previous = Some(claim);
    }
    Ok(())
}

/// Checks that each tunnel address is one of its node's own workload addresses: the far end accepts no other.
fn tunnel_addresses_are_workloads(file: &TomlFile, nodes: &[MeshNode]) -> Result<(), Mistake> {
    for node in nodes {
        let foreign = node
            .tunnel_addresses
            .iter()
            .find(|address| !node.workloads.iter().any(|block| block.value.contains(&address.value)));
        if let Some(address) = foreign {
            let what = format!(
                "the tunnel address {} lies in no workload CIDR of {:?}; choose one of its workload addresses that no \
                 workload has, or add {} to its workloads",
                address.value,
                node.name.value,
                IpNet::from(address.value)
            );
            return Err(file.mistake(&address.span, what));
        }
    }
    Ok(())
}

/// The mistake of two claims that overlap. It is reported at the later one.
fn overlap(file: &TomlFile, one: &Claim<'_>, other: &Claim<'_>) -> Mistake {
    let (first, second) = if one.span.start < other.span.start { (one, other) } else { (other, one) };
    let relation = if first.cidr == second.cidr {
        "which".to_owned()
    } else if first.cidr.contains(&second.cidr) {
        format!("which lies inside {} that", first.cidr)
    } else {
        format!("which holds {} that", first.cidr)
    };
    let what = format!(
        "{:?} claims {}, {relation} {:?} claims at line {}; give each block to one node (only a single address may \
         lie inside another's block)",
        second.node,
        second.cidr,
        first.node,
        file.line(first.span.start)
    );
    file.mistake(second.span, what)
}
