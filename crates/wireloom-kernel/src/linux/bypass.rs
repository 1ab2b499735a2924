//! Reads what may pass by the guard.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use netlink_packet_route::link::InfoKind;
use wireloom_plan::{
    bypass::{self, Bypass, Hook, Leads, Machine, Program},
    routing::Family,
};

use super::Linux;
use crate::{
    error::{Attempt, Error},
    nft::FlowTables,
    rtnetlink::{classifier, link::Link},
};

/// How many interfaces of pods are asked for their programs. A data plane puts its programs on all of them, and each
/// question costs two system calls.
const ASKED_PODS: usize = 16;

/// What was read before.
#[derive(Default)]
pub(super) struct Bypasses {
    flow_tables: FlowTables,
    found: BTreeSet<Bypass>,
}

impl Linux {
    /// What may pass by the guard. It only informs: when it cannot be read, the last answer stands.
    pub(super) fn observe_bypasses(
        &mut self,
        links: &[Link],
        outward: &BTreeMap<String, u8>,
    ) -> BTreeSet<Bypass> {
        match self.read_machine(links, outward) {
            Ok(machine) => self.bypasses.found = bypass::find(&machine),
            Err(error) => tracing::warn!("cannot look for what passes by the guard: {error}"),
        }
        self.bypasses.found.clone()
    }

    fn read_machine(&mut self, links: &[Link], outward: &BTreeMap<String, u8>) -> Result<Machine, Error> {
        let names: BTreeMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
        let places = classifier::places(&mut self.rtnetlink).attempt(|| "list the qdiscs".into())?;
        let filtered = filtered_everywhere();
        let mut to_ask = ASKED_PODS;
        let mut read = Vec::new();
        for link in names.values() {
            let leads = self.leads(link, outward);
            let mut programs = BTreeSet::new();
            if link.xdp {
                programs.insert(Program { hook: Hook::Xdp, name: None });
            }
            if places.contains(&link.index)
                && leads != Leads::Nowhere
                && (leads != Leads::ToPods || to_ask > 0)
            {
                to_ask -= usize::from(leads == Leads::ToPods);
                let found = classifier::observe(&mut self.rtnetlink, link.index);
                programs.extend(found.attempt(|| format!("list the filters of {}", link.name))?);
            }
            let controller = link.port_of.and_then(|index| names.get(&index));
            let bridge = controller.filter(|controller| controller.kind == Some(InfoKind::Bridge));
            read.push(bypass::Link {
                name: link.name.clone(),
                leads,
                bridge: bridge.map(|bridge| bridge.name.clone()),
                programs,
                filtered: if filtered.is_some() { link.filtered.clone() } else { BTreeSet::new() },
            });
        }
        let flow_tables = self.bypasses.flow_tables.observe();
        Ok(Machine {
            links: read,
            flow_tables: flow_tables.attempt(|| "list the flowtables of nftables".into())?,
            virtual_services: read_virtual_services()?,
            filtered: filtered.unwrap_or_default(),
        })
    }

    fn leads(&self, link: &Link, outward: &BTreeMap<String, u8>) -> Leads {
        if link.name == self.interface {
            Leads::Ours
        } else if link.leads_out || outward.contains_key(&link.name) {
            Leads::Out
        } else if matches!(link.kind, Some(InfoKind::Veth | InfoKind::Netkit | InfoKind::Bridge)) {
            Leads::ToPods
        } else {
            Leads::Nowhere
        }
    }
}

/// The families whose packets br_netfilter shows to the firewall on every bridge; `None` when it is not loaded, and
/// then no bridge's own setting counts.
fn filtered_everywhere() -> Option<BTreeSet<Family>> {
    let directory = Path::new("/proc/sys/net/bridge");
    let is_on = |name: &str| fs::read_to_string(directory.join(name)).is_ok_and(|text| text.trim() != "0");
    let sysctl = |family: &Family| match family {
        Family::V4 => "bridge-nf-call-iptables",
        Family::V6 => "bridge-nf-call-ip6tables",
    };
    directory.exists().then(|| Family::ALL.into_iter().filter(|family| is_on(sysctl(family))).collect())
}

/// The virtual services of IPVS; none on a kernel without it.
fn read_virtual_services() -> Result<BTreeSet<String>, Error> {
    const PATH: &str = "/proc/net/ip_vs";
    match fs::read_to_string(PATH) {
        Ok(text) => Ok(text.lines().filter_map(virtual_service).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error).attempt(|| format!("read {PATH}")),
    }
}

/// A line of `ip_vs_info_seq_show` (net/netfilter/ipvs/ip_vs_ctl.c); `None` for headings and for the servers behind a
/// service.
fn virtual_service(line: &str) -> Option<String> {
    let mut words = line.split_ascii_whitespace();
    let (protocol, address) = (words.next()?, words.next()?);
    match protocol {
        "FWM" => {
            let mark = u32::from_str_radix(address, 16).ok()?;
            Some(format!("packets with the mark {mark:#x}"))
        }
        "TCP" | "UDP" | "SCTP" => {
            let (address, port) = address.rsplit_once(':')?;
            let port = u16::from_str_radix(port, 16).ok()?;
            let v6 = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
            let address = match v6 {
                Some(address) => address.parse::<Ipv6Addr>().ok()?.into(),
                None => Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?).into(),
            };
            Some(format!("{protocol} {}", SocketAddr::new(address, port)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_services_are_read_from_what_ipvs_lists() {
        let listed = "IP Virtual Server version 1.2.1 (size=4096)\n\
                      Prot LocalAddress:Port Scheduler Flags\n  \
                        -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
                      TCP  0A600001:01BB rr  \n  \
                        -> C0A80101:192B      Masq    1      0          0         \n\
                      UDP  [fd96:0000:0000:0000:0000:0000:0000:000a]:0035 rr \n  \
                        -> [fd61:0000:0000:0001:0000:0000:0000:0005]:0035      Masq    1      0          0         \n\
                      FWM  00000010 wlc \n";
        let services: Vec<String> = listed.lines().filter_map(virtual_service).collect();
        assert_eq!(services, ["TCP 10.96.0.1:443", "UDP [fd96::a]:53", "packets with the mark 0x10"]);
        let empty: Vec<&str> = listed.lines().take(3).collect();
        assert!(empty.iter().all(|line| virtual_service(line).is_none()));
        for line in ["", "TCP", "TCP  0A600001", "TCP  []:0035 rr", "UDP  0A60000101:0035 rr", "FWM  mark"] {
            assert_eq!(virtual_service(line), None, "{line}");
        }
    }
}
