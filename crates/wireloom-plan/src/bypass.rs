//! What may pass by the guard: ways for packets on which the kernel asks no firewall, or chooses a route without the
//! workload's address.
//!
//! The shell reads what there is ([`Machine`]); [`find`] judges it. Each finding names one piece of evidence, the
//! steadiest that there is: interfaces of pods come and go, and the same finding should not be reported anew.

use std::{collections::BTreeSet, fmt};

use serde::Serialize;

use crate::{routing::Family, settings::Settings};

/// What a machine has that the guard may not see through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// All interfaces, the oldest first.
    pub links: Vec<Link>,
    /// All flowtables of nftables, whoever made them.
    pub flow_tables: Vec<FlowTable>,
    /// The virtual services of IPVS, in words.
    pub virtual_services: BTreeSet<String>,
    /// The families whose bridged packets the firewall sees on every bridge (`br_netfilter`).
    pub filtered: BTreeSet<Family>,
}

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Where its packets come from and go to.
    pub leads: Leads,
    /// The name of the bridge of which it is a port.
    pub bridge: Option<String>,
    /// The programs on it. Of interfaces that lead to pods, some may be left out if others have any.
    pub programs: BTreeSet<Program>,
    /// The families whose packets the firewall sees on this bridge; empty for anything else.
    pub filtered: BTreeSet<Family>,
}

/// Where an interface leads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Leads {
    /// Nowhere that matters: `lo`, or an interface without another end.
    #[default]
    Nowhere,
    /// It is the WireGuard interface.
    Ours,
    /// To other machines.
    Out,
    /// To containers on this machine.
    ToPods,
}

/// A flowtable (`nft list flowtables`).
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowTable {
    /// `ip`, `ip6` or `inet`.
    pub family: String,
    /// The table that it is in.
    pub table: String,
    /// Its name.
    pub name: String,
    /// The interfaces that it takes packets from.
    pub devices: BTreeSet<Device>,
}

/// A device of a flowtable, as it is written there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Device {
    /// The interface with this name.
    Name(String),
    /// All interfaces whose names begin so (Linux 6.16 and later).
    Prefix(String),
}

/// An eBPF program on an interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Program {
    /// Where it is called.
    pub hook: Hook,
    /// What its owner calls it, if the kernel tells.
    pub name: Option<String>,
}

/// Where an eBPF program is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// In the driver, or right after it.
    Xdp,
    /// By traffic control, as a filter (`clsact`).
    Classifier,
}

/// A data plane that is known by an interface of its own. It may attach its programs with `tcx`, or with links that
/// netlink does not list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DataPlane {
    /// Cilium.
    Cilium,
    /// Calico, with its eBPF data plane.
    Calico,
}

/// Something that may pass by the guard.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case", tag = "way")]
pub enum Bypass {
    /// A flowtable: the packets of a connection that it has taken over go from one interface to the next at once.
    FlowTable {
        /// `ip`, `ip6` or `inet`.
        family: String,
        /// The table that it is in.
        table: String,
        /// Its name.
        name: String,
        /// One of the interfaces that it takes packets from.
        interface: String,
    },
    /// An eBPF program, which may redirect packets.
    Program {
        /// The program.
        program: Program,
        /// The interface that it is on: the first one, if it leads to pods.
        interface: String,
        /// Whether the interface leads to pods.
        to_pods: bool,
    },
    /// A data plane of eBPF programs.
    DataPlane {
        /// Whose.
        owner: DataPlane,
        /// The interface by which it is known.
        interface: String,
    },
    /// IPVS translates connections.
    VirtualServices {
        /// One of its virtual services, in words.
        service: String,
    },
    /// A bridge between pods and other machines, whose packets the firewall does not see.
    Bridge {
        /// Its name.
        bridge: String,
        /// One of its ports that lead to other machines.
        port: String,
        /// The families that the firewall does not see.
        families: BTreeSet<Family>,
    },
}

/// Everything on a machine that may pass by the guard.
pub fn find(machine: &Machine) -> BTreeSet<Bypass> {
    let service = machine.virtual_services.first();
    let services = service.map(|service| Bypass::VirtualServices { service: service.clone() });
    let flow_tables = machine.flow_tables.iter().filter_map(|table| taken_over(machine, table));
    let data_planes = machine.links.iter().filter_map(data_plane);
    let bridges = machine.links.iter().filter_map(|link| unfiltered(machine, link));
    flow_tables.chain(programs(machine)).chain(data_planes).chain(services).chain(bridges).collect()
}

fn taken_over(machine: &Machine, table: &FlowTable) -> Option<Bypass> {
    let takes = |link: &&Link| table.devices.iter().any(|device| device.is(&link.name));
    let of = |leads: Leads| machine.links.iter().filter(move |link| link.leads == leads).find(takes);
    let link = of(Leads::Ours).or_else(|| of(Leads::Out)).or_else(|| of(Leads::ToPods))?;
    Some(Bypass::FlowTable {
        family: table.family.clone(),
        table: table.table.clone(),
        name: table.name.clone(),
        interface: link.name.clone(),
    })
}

/// Every program on an interface that leads to other machines or is ours; of those that lead to pods the first one, for
/// a data plane puts its programs on all of them.
fn programs(machine: &Machine) -> impl Iterator<Item = Bypass> {
    let with_programs = |link: &&Link| !link.programs.is_empty();
    let outside = machine.links.iter().filter(|link| matches!(link.leads, Leads::Ours | Leads::Out));
    let to_pods = machine.links.iter().filter(|link| link.leads == Leads::ToPods).find(with_programs);
    outside.chain(to_pods).flat_map(|link| {
        link.programs.iter().map(|program| Bypass::Program {
            program: program.clone(),
            interface: link.name.clone(),
            to_pods: link.leads == Leads::ToPods,
        })
    })
}

/// Felix makes `bpfin.cali` for its eBPF data plane alone (felix/dataplane/linux/dataplanedefs), and Cilium's agent
/// `cilium_host` in all of its modes (pkg/defaults/node.go).
fn data_plane(link: &Link) -> Option<Bypass> {
    let owner = match link.name.as_str() {
        "cilium_host" => DataPlane::Cilium,
        "bpfin.cali" => DataPlane::Calico,
        _ => return None,
    };
    Some(Bypass::DataPlane { owner, interface: link.name.clone() })
}

fn unfiltered(machine: &Machine, bridge: &Link) -> Option<Bypass> {
    let port = |leads: Leads| {
        let mut ports = machine.links.iter().filter(|link| link.bridge.as_ref() == Some(&bridge.name));
        ports.find(|link| link.leads == leads)
    };
    port(Leads::ToPods)?;
    let seen = |family: &Family| machine.filtered.contains(family) || bridge.filtered.contains(family);
    let families: BTreeSet<Family> = Family::ALL.into_iter().filter(|family| !seen(family)).collect();
    let port = port(Leads::Out).filter(|_| !families.is_empty())?;
    Some(Bypass::Bridge { bridge: bridge.name.clone(), port: port.name.clone(), families })
}

impl Device {
    fn is(&self, interface: &str) -> bool {
        match self {
            Self::Name(name) => name == interface,
            Self::Prefix(prefix) => interface.starts_with(prefix),
        }
    }
}

impl Bypass {
    /// Whether it matters under these settings: only to a guard, and IPVS only in scoped mode, because the rules of
    /// host mode do not ask for the source.
    pub(crate) fn matters(&self, settings: &Settings) -> bool {
        let by_source = matches!(self, Self::VirtualServices { .. });
        settings.guard && !(by_source && settings.encrypt_host_traffic)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.hook {
            Hook::Xdp => "an XDP program",
            Hook::Classifier => "a BPF program of traffic control",
        })?;
        self.name.as_ref().map_or(Ok(()), |name| write!(f, " (`{name}`)"))
    }
}

impl fmt::Display for Bypass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FlowTable { family, table, name, interface } => write!(
                f,
                "the flowtable `{name}` in the table `{family} {table}` has {interface} among its devices: connections \
                 that it has taken over pass by the guard and by our rules; switch offloading off in the program that \
                 made it, or run `nft delete flowtable {family} {table} {name}`",
            ),
            Self::Program { program, interface, to_pods } => write!(
                f,
                "{program} is on {interface}{}: if it redirects packets of workloads, they pass by the guard; let its \
                 owner forward through the kernel's own stack, or detach it",
                if *to_pods { ", which leads to pods, and perhaps on others like it" } else { "" },
            ),
            Self::DataPlane { owner: DataPlane::Cilium, interface } => write!(
                f,
                "Cilium runs here (there is an interface {interface}): its eBPF programs may forward packets of pods \
                 past the guard; let Cilium forward through the kernel's own stack (in its Helm values, \
                 bpf.hostLegacyRouting=true and routingMode=native)",
            ),
            Self::DataPlane { owner: DataPlane::Calico, interface } => write!(
                f,
                "Calico's eBPF data plane runs here (there is an interface {interface}): it forwards packets of pods \
                 past the guard; choose another data plane (bpfEnabled: false in the FelixConfiguration)",
            ),
            Self::VirtualServices { service } => write!(
                f,
                "IPVS translates connections here (/proc/net/ip_vs has {service}): it chooses their routes without \
                 the pod's address, so our rules miss them, and what should be encrypted is refused; let kube-proxy \
                 use its mode iptables or nftables",
            ),
            Self::Bridge { bridge, port, families } => {
                let words: Vec<String> = families.iter().map(Family::to_string).collect();
                let sysctl = |family: &Family| match family {
                    Family::V4 => "net.bridge.bridge-nf-call-iptables=1",
                    Family::V6 => "net.bridge.bridge-nf-call-ip6tables=1",
                };
                let sysctls: Vec<&str> = families.iter().map(sysctl).collect();
                write!(
                    f,
                    "the bridge {bridge} connects pods with {port}, which leads to other machines, and the guard does \
                     not see the {} packets that it passes on; load br_netfilter and set {}, or take {port} out of the \
                     bridge and route",
                    words.join(" and "),
                    sysctls.join(" and "),
                )
            }
        }
    }
}
