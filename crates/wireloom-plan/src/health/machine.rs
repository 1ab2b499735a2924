//! What matters of a machine besides what a plan depends on.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::Serialize;

use crate::routing::{Family, Rule};

/// This machine, as far as only people need to know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Whether it forwards packets.
    pub forwarding: Forwarding,
    /// Every policy rule, ours included, in the kernel's order, IPv4 first.
    pub rules: Vec<PolicyRule>,
    /// The destinations of the routes in the table `main`, and in the tables of foreign rules that come before ours, as
    /// far as they overlap workload CIDRs.
    pub tables: BTreeMap<u32, BTreeSet<IpNet>>,
    /// The base chains of nftables that drop what they do not accept and are not ours.
    pub droppers: BTreeSet<DroppingChain>,
    /// The programs that use marks of their own.
    pub mark_users: BTreeSet<MarkUser>,
    /// systemd-networkd runs and removes rules that it does not know.
    pub networkd: bool,
    /// The ways of encrypted packets to endpoints of peers, as the kernel answers, `None` where there is none; not of
    /// all peers if there are many.
    pub endpoint_routes: BTreeMap<IpAddr, Option<EndpointRoute>>,
}

/// Whether a machine forwards packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Forwarding {
    /// `net.ipv4.ip_forward`.
    pub v4: bool,
    /// `net.ipv6.conf.all.forwarding`.
    pub v6: bool,
}

/// A policy rule with any action.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PolicyRule {
    /// What it matches. Its table means nothing unless it looks one up.
    pub rule: Rule,
    /// What it does.
    pub action: Action,
}

/// What a rule does with a packet that it matches (`FR_ACT_…` of include/uapi/linux/fib_rules.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Looks up its table.
    Lookup,
    /// Goes on with the rule of this priority.
    Goto(u32),
    /// Goes on with the next rule.
    Nop,
    /// Drops it silently.
    Blackhole,
    /// Drops it, with an ICMP error.
    Unreachable,
    /// Drops it, with an ICMP error that says that it is prohibited.
    Prohibit,
}

/// A base chain of nftables whose policy is to drop.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct DroppingChain {
    /// `ip`, `ip6` or `inet`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Where it is called.
    pub hook: Hook,
}

/// A hook of netfilter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// Packets to this machine: the encrypted ones.
    Input,
    /// Packets between others: those of workloads.
    Forward,
}

/// A program with marks of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MarkUser {
    /// kube-proxy.
    KubeProxy,
    /// Calico.
    Calico,
    /// Cilium.
    Cilium,
}

/// The way of encrypted packets to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndpointRoute {
    /// The name of the interface that they leave by.
    pub interface: String,
    /// Its MTU, or that of the route if it is smaller. Bytes.
    pub mtu: u32,
}

impl Forwarding {
    /// Whether packets of the family are forwarded.
    pub fn forwards(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

impl MarkUser {
    /// The bits of its marks: kube-proxy's `--iptables-masquerade-bit` and `KubeMarkDropBit` (defaults), Felix's
    /// `IptablesMarkMask` (default), and Cilium's identity and cluster ID, of which the latter is the low byte
    /// (pkg/datapath/linux/linux_defaults/mark.go).
    pub fn bits(self) -> u32 {
        match self {
            Self::KubeProxy => 0xc000,
            Self::Calico => 0xffff_0000,
            Self::Cilium => 0xffff_0fff,
        }
    }
}
