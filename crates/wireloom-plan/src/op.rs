//! The operations that lead from the observed kernel to the desired one.
//!
//! They are nested by target, so that code that serves one target takes that target's operations and no
//! others. [`steps`] groups a list of them into what is carried out together.

use std::{
    collections::BTreeSet,
    mem::discriminant,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::Serialize;
use wireloom_types::{LinkAddress, PeerLookup, PresharedKeyHash, PublicKey, SourceCheck};

use crate::{
    firewall::{Firewall, Guarded, Source},
    routing::{Route, Rule},
    sysctl::UnderlaySysctl,
};

/// One change of the kernel. The order of a list of operations is part of its meaning.
///
/// The JSON form is flat: `op` names the operation, and the target does not appear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Op {
    /// Our interface comes or goes, or the WireGuard device behind it starts.
    Interface(InterfaceOp),
    /// The configuration of the WireGuard device.
    Device(DeviceOp),
    /// The interface's MTU and state, addresses, neighbours, routes and rules.
    Rtnetlink(RtnetlinkOp),
    /// The nftables table `inet wireloom`.
    Firewall(FirewallOp),
    /// The sysctls of underlay interfaces.
    Sysctl(SysctlOp),
}

/// A change that the interface's back end carries out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum InterfaceOp {
    /// Creates the interface, with our alias, and the WireGuard device behind it.
    #[serde(rename = "create_link")]
    Create {
        /// Bytes.
        mtu: u32,
        /// Decides the kind of interface.
        peer_lookup: PeerLookup,
        /// Who checks the sources of received packets.
        source_check: SourceCheck,
    },
    /// Starts a device behind an interface that outlived its device: its addresses, routes and
    /// neighbours are still there.
    StartDevice {
        /// Who checks the sources of received packets.
        source_check: SourceCheck,
    },
    /// Removes the interface and the WireGuard device behind it. The kernel removes its addresses and the
    /// routes through it.
    #[serde(rename = "remove_link")]
    Remove,
}

/// A change of the WireGuard device. Consecutive ones are one transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum DeviceOp {
    /// Sets the device's private key (which only the shell holds), port, mark and source check. A new key
    /// changes the link address of an interface in link mode, which then loses its neighbours.
    #[serde(rename = "configure_device")]
    Configure {
        /// The public half of the private key.
        public_key: PublicKey,
        /// UDP port.
        listen_port: u16,
        /// 0 is none.
        fwmark: u32,
        /// Who checks the sources of received packets.
        source_check: SourceCheck,
    },
    /// Adds a peer, or replaces its whole configuration.
    SetPeer(SetPeer),
    /// Removes a peer.
    RemovePeer {
        /// The peer's key.
        public_key: PublicKey,
    },
}

/// The whole configuration of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SetPeer {
    /// The peer's key.
    pub public_key: PublicKey,
    /// Absent: the device keeps the endpoint that it knows (roaming).
    pub endpoint: Option<SocketAddr>,
    /// All of the peer's allowed-IPs. A prefix that another peer has moves from there.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// The hash of the preshared key, which only the shell holds. Absent: the peer has none from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<PresharedKeyHash>,
}

/// A change that is one rtnetlink request. Consecutive ones of a kind are sent together; the kernel tries all of
/// them, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum RtnetlinkOp {
    /// Changes the interface's MTU.
    SetMtu {
        /// Bytes.
        mtu: u32,
    },
    /// Changes the hardware address of the interface, which then loses its neighbours.
    SetLinkAddress {
        /// That of our own key.
        link_address: LinkAddress,
    },
    /// Brings the interface up.
    SetUp,
    /// Adds an address to our interface.
    AddAddress {
        /// With its prefix length.
        address: IpNet,
    },
    /// Removes an address from our interface.
    RemoveAddress {
        /// With its prefix length.
        address: IpNet,
    },
    /// Adds a permanent neighbour to our interface, replacing any entry for the address.
    SetNeighbour {
        /// The peer's IP address on the link.
        address: IpAddr,
        /// The peer's link address.
        link_address: LinkAddress,
    },
    /// Removes one of our permanent neighbours.
    RemoveNeighbour {
        /// The IP address.
        address: IpAddr,
    },
    /// Adds a host route to the table `main`, out of our interface.
    AddLinkRoute {
        /// The peer's IP address on the link.
        address: IpAddr,
    },
    /// Removes such a route.
    RemoveLinkRoute {
        /// The IP address.
        address: IpAddr,
    },
    /// Adds a route to our table, replacing the one with the same destination and metric if there is one
    /// (`NLM_F_CREATE | NLM_F_REPLACE`): every packet meets the old route or the new one.
    SetRoute(Route),
    /// Removes one of our routes.
    RemoveRoute(Route),
    /// Adds a rule after those of its priority (`NLM_F_CREATE` without `NLM_F_EXCL`: `rule_exists` in
    /// `net/core/fib_rules.c` ignores the invert flag and takes "from all" for any source, so it would
    /// find rules other than this one).
    AddRule(Rule),
    /// Removes the first rule that matches as `rule_find` in `net/core/fib_rules.c` matches: a field that
    /// is zero or absent in the request matches anything, and the invert flag is ignored. The request
    /// carries everything that the [`Rule`] has, its protocol included. The plan relies on exactly this
    /// matching.
    RemoveRule(Rule),
}

impl RtnetlinkOp {
    /// Both are of the same kind, whatever their objects.
    fn is_like(&self, other: &Self) -> bool {
        discriminant(self) == discriminant(other)
    }
}

/// A change of the nftables table `inet wireloom`. Consecutive ones are one transaction: every packet
/// meets the table as it was before all of them or as it is after all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum FirewallOp {
    /// Sets the table's chains.
    #[serde(rename = "set_firewall")]
    Set {
        /// The chains.
        firewall: Firewall,
        /// Whether the table is emptied first. Otherwise its sets stay as they are, counters included.
        anew: bool,
    },
    /// Counts the refused packets of this peer.
    JudgePeer {
        /// The source link address of its packets.
        peer: LinkAddress,
    },
    /// Stops counting them, and discards the counter.
    ForgetPeer {
        /// The source link address of its packets.
        peer: LinkAddress,
    },
    /// Lets a peer send from these addresses.
    AdmitSource(Source),
    /// Stops letting it.
    RefuseSource(Source),
    /// Replaces all admitted sources at once. The kernel does this faster than many single changes:
    /// removing one range from a set of 15,000 takes it half a millisecond.
    ReplaceSources {
        /// Those of one peer do not overlap.
        sources: BTreeSet<Source>,
    },
    /// Adds an element to a set of the guard.
    Guard(Guarded),
    /// Removes an element, and its counter.
    Unguard(Guarded),
    /// Removes the table.
    #[serde(rename = "remove_firewall")]
    Remove,
}

/// A change of a sysctl of an underlay interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "op")]
pub enum SysctlOp {
    /// Sets it; the shell records the value that it had first.
    #[serde(rename = "set_underlay_sysctl")]
    Set {
        /// The interface.
        interface: String,
        /// The sysctl.
        sysctl: UnderlaySysctl,
        /// Its new value.
        value: u8,
    },
    /// Restores the recorded value and deletes the record. If the interface is gone, only deletes the record.
    #[serde(rename = "restore_underlay_sysctl")]
    Restore {
        /// The interface.
        interface: String,
        /// The sysctl.
        sysctl: UnderlaySysctl,
    },
    /// Sets `rp_filter` of our own interface. Nothing is recorded: the interface is ours.
    SetOwnRpFilter {
        /// 0 off, 2 loose.
        value: u8,
    },
}

/// Consecutive operations that are carried out together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<'a> {
    /// One operation by itself.
    Interface(&'a InterfaceOp),
    /// One transaction; never empty.
    Device(Vec<&'a DeviceOp>),
    /// Requests of one kind, sent together; never empty.
    Rtnetlink(Vec<&'a RtnetlinkOp>),
    /// One transaction; never empty.
    Firewall(Vec<&'a FirewallOp>),
    /// One operation by itself.
    Sysctl(&'a SysctlOp),
}

/// Groups operations into steps, in their order.
pub fn steps(ops: &[Op]) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    for op in ops {
        match (op, steps.last_mut()) {
            (Op::Device(op), Some(Step::Device(run))) => run.push(op),
            (Op::Rtnetlink(op), Some(Step::Rtnetlink(run))) if op.is_like(run[0]) => run.push(op),
            (Op::Firewall(op), Some(Step::Firewall(run))) => run.push(op),
            (Op::Interface(op), _) => steps.push(Step::Interface(op)),
            (Op::Device(op), _) => steps.push(Step::Device(vec![op])),
            (Op::Rtnetlink(op), _) => steps.push(Step::Rtnetlink(vec![op])),
            (Op::Firewall(op), _) => steps.push(Step::Firewall(vec![op])),
            (Op::Sysctl(op), _) => steps.push(Step::Sysctl(op)),
        }
    }
    steps
}

impl From<InterfaceOp> for Op {
    fn from(op: InterfaceOp) -> Self {
        Self::Interface(op)
    }
}

impl From<DeviceOp> for Op {
    fn from(op: DeviceOp) -> Self {
        Self::Device(op)
    }
}

impl From<RtnetlinkOp> for Op {
    fn from(op: RtnetlinkOp) -> Self {
        Self::Rtnetlink(op)
    }
}

impl From<FirewallOp> for Op {
    fn from(op: FirewallOp) -> Self {
        Self::Firewall(op)
    }
}

impl From<SysctlOp> for Op {
    fn from(op: SysctlOp) -> Self {
        Self::Sysctl(op)
    }
}
