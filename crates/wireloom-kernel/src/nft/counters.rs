//! What the rules count.

use std::collections::BTreeMap;

use wireloom_plan::address_range::AddressRange;
use wireloom_types::LinkAddress;

/// Counters of packets that the firewall refused because of their source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals {
    /// By peer; every peer is listed.
    pub peers: BTreeMap<LinkAddress, u64>,
    /// Packets of senders that are not peers.
    pub strangers: u64,
}

/// Counters of packets that the guard refused, from 0 on since the table was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuardCounters {
    /// From here to workloads of proven peers, by the addresses that they were sent to. Every element of
    /// [`GuardSet::RefusedOut`](wireloom_plan::firewall::GuardSet::RefusedOut) is listed.
    pub outgoing: BTreeMap<AddressRange, u64>,
    /// From workloads of proven peers to here, by the addresses that they came from. Every element of
    /// [`GuardSet::RefusedIn`](wireloom_plan::firewall::GuardSet::RefusedIn) is listed.
    pub incoming: BTreeMap<AddressRange, u64>,
    /// From a local workload to addresses of a pool whose node has proved nothing.
    pub unproven_out: u64,
    /// From such addresses to a local workload.
    pub unproven_in: u64,
    /// To an address that is elsewhere than the mesh says: out of the tunnel, or between two local workloads, and would
    /// have left in plaintext.
    pub returned: u64,
    /// What came in from other machines with a local workload's address as its source.
    pub forged: u64,
    /// ICMP errors about packets between workloads that would have left in plaintext.
    pub errors: u64,
}
