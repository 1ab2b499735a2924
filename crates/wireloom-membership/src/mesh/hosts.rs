//! The claims to addresses of hosts against those to workload CIDRs of other nodes, decided.
//!
//! An address of a host goes direct, and its node gets what is sent to it: so it must not be another node's workload.
//! And who claims a CIDR of workloads gets what is sent there: so it must not hold other nodes' hosts.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use wireloom_plan::cluster::Node;

use super::claimant::{Claimant, Rules, Standing};

/// How many nodes without an established address must have one in a new CIDR for that to be lost: a single one could
/// take away any block.
const WITNESSES: usize = 2;

/// The new CIDRs that hold addresses of the store's own machines outside of pools: each with its claimant, and the
/// reason in a sentence. A store in a pod has an address of a pool, and a node may rightly have the block around it.
pub(super) fn cidrs_around_the_store<'a>(
    claimants: &[Claimant<'a>],
    rules: &Rules<'_>,
) -> Vec<(IpNet, Claimant<'a>, String)> {
    let is_in_pool = |address: &IpAddr| rules.pools.iter().any(|pool| pool.contains(address));
    let outside: Vec<&IpAddr> = rules.protected.iter().filter(|address| !is_in_pool(address)).collect();
    let held = |claimant: &Claimant<'a>| {
        let claimant = *claimant;
        let before = rules.before.nodes.get(claimant.name);
        let outside = &outside;
        claimant.node.workloads.iter().filter_map(move |cidr| {
            if before.is_some_and(|node| node.workloads.contains(cidr)) {
                return None;
            }
            let address = outside.iter().find(|address| cidr.contains(**address))?;
            let what = format!(
                "it claims {cidr}, which holds {address} that is an address of the store; claim what only workloads \
                 have"
            );
            Some((*cidr, claimant, what))
        })
    };
    if outside.is_empty() { Vec::new() } else { claimants.iter().flat_map(held).collect() }
}

/// The CIDRs that hold addresses of other nodes' hosts and are lost for that: each with its claimant, and the reason in
/// a sentence. In a pool of workloads there are no hosts, so CIDRs there are not lost.
pub(super) fn cidrs_around<'a>(
    claimants: &[Claimant<'a>],
    rules: &Rules<'_>,
) -> Vec<(IpNet, Claimant<'a>, String)> {
    let hosts: BTreeSet<(IpAddr, usize)> = claimants
        .iter()
        .enumerate()
        .flat_map(|(place, claimant)| outside_own(claimant.node).map(move |address| (address, place)))
        .collect();
    let pools: Vec<&IpNet> =
        rules.pools.iter().filter(|pool| is_of_workloads(pool, &hosts, claimants, rules)).collect();
    let mut lost = Vec::new();
    for claimant in claimants {
        let before = rules.before.nodes.get(claimant.name);
        for cidr in &claimant.node.workloads {
            let is_established = before.is_some_and(|node| node.workloads.contains(cidr));
            if is_established || pools.iter().any(|pool| pool.contains(cidr)) {
                continue;
            }
            let mut witnesses = BTreeSet::new();
            for (address, place) in hosts.range((cidr.network(), 0)..=(cidr.broadcast(), usize::MAX)) {
                let other = &claimants[*place];
                if other.name == claimant.name || other.standing > claimant.standing {
                    continue;
                }
                witnesses.insert(place);
                let had = rules.before.nodes.get(other.name);
                if had.is_some_and(|node| of_host(node).any(|it| it == *address))
                    || witnesses.len() == WITNESSES
                {
                    let what = format!(
                        "it claims {cidr}, which holds {address} that is an address of the host {:?}; claim what only \
                         workloads have",
                        other.name
                    );
                    lost.push((*cidr, *claimant, what));
                    break;
                }
            }
        }
    }
    lost
}

/// Whether a pool holds workloads only, and not also hosts of [`WITNESSES`] nodes: one alone could have what it has
/// from a bridge of pods, or lie. Where addresses are borrowed, hosts have addresses in pools.
fn is_of_workloads(
    pool: &IpNet,
    hosts: &BTreeSet<(IpAddr, usize)>,
    claimants: &[Claimant<'_>],
    rules: &Rules<'_>,
) -> bool {
    let inside = hosts.range((pool.network(), 0)..=(pool.broadcast(), usize::MAX)).map(|(_, place)| *place);
    let mut present = inside.filter(|place| claimants[*place].standing != Standing::Vanished);
    let first = present.next();
    rules.borrowing || present.all(|place| Some(place) == first)
}

/// The addresses of a node's host that are none of its workloads'.
fn outside_own(node: &Node) -> impl Iterator<Item = IpAddr> {
    of_host(node).filter(|address| !node.workloads.iter().any(|cidr| cidr.contains(address)))
}

fn of_host(node: &Node) -> impl Iterator<Item = IpAddr> {
    let endpoints = node.endpoint.iter().chain(&node.other_endpoints).map(SocketAddr::ip);
    node.addresses.iter().copied().chain(endpoints)
}

/// The workload CIDRs that nodes got.
#[derive(Default)]
pub(super) struct Blocks<'a> {
    owners: BTreeMap<IpNet, &'a str>,
    /// Their lengths, the narrowest last.
    lengths: BTreeSet<u8>,
}

impl<'a> Blocks<'a> {
    pub(super) fn new(blocks: impl Iterator<Item = (IpNet, &'a str)>) -> Self {
        let owners: BTreeMap<IpNet, &'a str> = blocks.collect();
        Self { lengths: owners.keys().map(IpNet::prefix_len).collect(), owners }
    }

    /// The CIDR of another node that this node's address is a workload of, and for which it is lost; and that node.
    /// Where addresses are borrowed, one that is established stays, and one in a new CIDR.
    pub(super) fn that_takes(
        &self,
        address: IpAddr,
        claimant: &Claimant<'_>,
        is_established: bool,
        rules: &Rules<'_>,
    ) -> Option<(IpNet, &'a str)> {
        let mut around = self.lengths.iter().rev().filter_map(|length| {
            let cidr = IpNet::new(address, *length).ok()?.trunc();
            Some((cidr, *self.owners.get(&cidr)?))
        });
        let (cidr, owner) = around.next()?;
        if owner == claimant.name {
            return None;
        }
        let may_be_borrowed = rules.borrowing && rules.pools.iter().any(|pool| pool.contains(&address));
        let has_been = || rules.before.nodes.get(owner).is_some_and(|node| node.workloads.contains(&cidr));
        (!may_be_borrowed || (!is_established && has_been())).then_some((cidr, owner))
    }
}
