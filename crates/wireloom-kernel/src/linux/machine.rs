//! What people should know of this machine besides what a plan depends on. It is read with a few netlink requests,
//! however many peers there are.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;
use netlink_packet_route::link::InfoKind;
use wireloom_plan::{
    health::{Action, EndpointRoute, Forwarding, Machine, MarkUser, PeerFacts, PolicyRule, Prefixes},
    settings::Settings,
};
use wireloom_types::PublicKey;

use super::Linux;
use crate::{
    error::{Attempt, Error},
    nft::Others,
    rtnetlink::{interface, link, route, rule, way},
    wireguard::{Backend, DeviceState, PeerState},
};

/// How many endpoints the kernel is asked about. Each question costs about ten microseconds; where many peers are, one
/// route usually leads to all of them.
const ASKED_ENDPOINTS: usize = 64;

/// How many tables of foreign rules are read. A policy router has a few.
const READ_TABLES: usize = 16;

/// How long what routing tables lead to is taken for so. A table with 100,000 routes takes the kernel a tenth of a
/// second.
const TABLES_LAST: Duration = Duration::from_secs(30);

/// What was read of routing tables last.
#[derive(Debug)]
pub(super) struct ReadTables {
    read: Instant,
    /// The prefixes that were asked about.
    workloads: BTreeSet<IpNet>,
    tables: BTreeMap<u32, BTreeSet<IpNet>>,
}

impl Linux {
    /// Reads the machine: of its routing tables, what has addresses in common with `workloads`. `endpoints` are those
    /// of peers; only some of many are looked at. Of what cannot be read, nothing wrong is known, and the errors say
    /// why.
    pub fn machine(
        &mut self,
        settings: &Settings,
        workloads: BTreeSet<IpNet>,
        endpoints: impl IntoIterator<Item = IpAddr>,
    ) -> (Machine, Vec<Error>) {
        let mut errors = Vec::new();
        let rules = rule::observe_all(&mut self.rtnetlink).attempt(|| "list the rules".into());
        let rules = read_or_note(&mut errors, rules).unwrap_or_default();
        let others = Others::observe().attempt(|| "list the chains of nftables".into());
        let Others { droppers, mut mark_users } = read_or_note(&mut errors, others).unwrap_or_default();
        let links = link::observe(&mut self.rtnetlink).attempt(|| "list the interfaces".into());
        let links = read_or_note(&mut errors, links).unwrap_or_default();
        // Cilium's agent makes it in all of its modes (pkg/defaults/node.go).
        if links.iter().any(|link| link.name == "cilium_host" && link.kind == Some(InfoKind::Veth)) {
            mark_users.insert(MarkUser::Cilium);
        }
        let forwarding = read_or_note(&mut errors, self.preconditions(false));
        let forwarding = forwarding.map(|found| (found.forwarding_v4, found.forwarding_v6));
        let (v4, v6) = forwarding.unwrap_or((true, true));
        let machine = Machine {
            forwarding: Forwarding { v4, v6 },
            tables: self.read_tables(&rules, settings, workloads, &mut errors),
            rules,
            droppers,
            mark_users,
            networkd: networkd_removes_rules(Path::new("/")),
            endpoint_routes: read_or_note(&mut errors, self.read_endpoint_routes(settings, endpoints))
                .unwrap_or_default(),
        };
        (machine, errors)
    }

    /// The packets that the device of our interface dropped since its start, by the reason's name; `None` when it does
    /// not count them, as the kernel's WireGuard does not.
    ///
    /// # Errors
    /// The device does not answer.
    pub fn drops(&mut self) -> Result<Option<BTreeMap<String, u64>>, Error> {
        match self.present_backend()? {
            Some(Backend::Userspace) => {
                let read = self.userspace_device.drops();
                read.attempt(|| format!("read what the WireGuard device of {} dropped", self.interface))
            }
            _ => Ok(None),
        }
    }

    /// Those that cannot be read are left out.
    fn read_tables(
        &mut self,
        rules: &[PolicyRule],
        settings: &Settings,
        workloads: BTreeSet<IpNet>,
        errors: &mut Vec<Error>,
    ) -> BTreeMap<u32, BTreeSet<IpNet>> {
        let earlier = rules.iter().filter(|PolicyRule { rule, action }| {
            *action == Action::Lookup && rule.priority <= settings.rule_priority
        });
        let mut tables: BTreeSet<u32> = earlier.map(|rule| rule.rule.table).collect();
        tables.retain(|table| ![0, self.table, route::LOCAL, route::MAIN].contains(table));
        let tables: BTreeSet<u32> =
            [route::MAIN].into_iter().chain(tables.into_iter().take(READ_TABLES)).collect();
        let last = self.read_tables.take().filter(|last| {
            last.read.elapsed() < TABLES_LAST && last.tables.keys().eq(&tables) && last.workloads == workloads
        });
        let read = last.unwrap_or_else(|| {
            let overlapping = Prefixes::new(&workloads);
            let read = tables.into_iter().filter_map(|table| {
                let destinations = route::observe_destinations(&mut self.rtnetlink, table, &overlapping);
                let destinations = destinations.attempt(|| format!("list the routes of table {table}"));
                Some((table, read_or_note(errors, destinations)?))
            });
            ReadTables { read: Instant::now(), tables: read.collect(), workloads }
        });
        self.read_tables.insert(read).tables.clone()
    }

    fn read_endpoint_routes(
        &mut self,
        settings: &Settings,
        endpoints: impl IntoIterator<Item = IpAddr>,
    ) -> Result<BTreeMap<IpAddr, Option<EndpointRoute>>, Error> {
        let asked: BTreeSet<IpAddr> = endpoints.into_iter().take(ASKED_ENDPOINTS).collect();
        let mut interfaces = BTreeMap::new();
        let mut routes = BTreeMap::new();
        for endpoint in asked {
            let operation = || format!("ask for the route to {endpoint}");
            let way = way::to(&mut self.rtnetlink, endpoint, settings.fwmark).attempt(operation)?;
            let Some(way) = way else {
                routes.insert(endpoint, None);
                continue;
            };
            if let Entry::Vacant(vacant) = interfaces.entry(way.interface) {
                let found = interface::by_index(&mut self.rtnetlink, way.interface).attempt(operation)?;
                vacant.insert(found.map(|found| (found.name, found.interface.mtu)));
            }
            // Absent when the interface was removed this moment.
            let Some(Some((name, mtu))) = interfaces.get(&way.interface) else { continue };
            let mtu = way.mtu.map_or(*mtu, |of_route| of_route.min(*mtu));
            routes.insert(endpoint, Some(EndpointRoute { interface: name.clone(), mtu }));
        }
        Ok(routes)
    }
}

/// What was read, or notes the error.
fn read_or_note<T>(errors: &mut Vec<Error>, read: Result<T, Error>) -> Option<T> {
    read.map_err(|error| errors.push(error)).ok()
}

impl DeviceState {
    /// Its peers as they are judged.
    #[must_use]
    pub fn facts(&self) -> BTreeMap<PublicKey, PeerFacts> {
        let since_1970 = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let facts = |peer: &PeerState| PeerFacts {
            endpoint: peer.endpoint,
            last_handshake: peer.last_handshake.map(since_1970),
            received: peer.received,
            sent: peer.sent,
            persistent_keepalive: peer.persistent_keepalive,
        };
        self.peers.iter().map(|(key, peer)| (*key, facts(peer))).collect()
    }
}

/// Whether systemd-networkd runs here and removes rules that no `.network` file has, as it does by default when it
/// starts (networkd.conf(5)). `root` is `/`.
fn networkd_removes_rules(root: &Path) -> bool {
    if !root.join("run/systemd/netif/state").exists() {
        return false;
    }
    const DIRECTORIES: [&str; 4] = ["etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd"];
    let directories = || DIRECTORIES.iter().map(|directory| root.join(directory));
    let main = directories().map(|directory| directory.join("networkd.conf")).find(|path| path.exists());
    // Of two with one name, the one in the first directory counts.
    let mut drop_ins: BTreeMap<_, PathBuf> = BTreeMap::new();
    for directory in directories() {
        let files = fs::read_dir(directory.join("networkd.conf.d")).into_iter().flatten().flatten();
        for file in files.filter(|file| file.path().extension().is_some_and(|extension| extension == "conf"))
        {
            drop_ins.entry(file.file_name()).or_insert(file.path());
        }
    }
    let files = main.into_iter().chain(drop_ins.into_values());
    files.rev().find_map(|file| manages_foreign_rules(&fs::read_to_string(file).ok()?)).unwrap_or(true)
}

/// What a file says of `ManageForeignRoutingPolicyRules`; `None` when it says nothing of it. The words are those of
/// `parse_boolean` (src/basic/parse-util.c).
fn manages_foreign_rules(text: &str) -> Option<bool> {
    let mut in_network = false;
    let mut says = None;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            in_network = line == "[Network]";
        }
        if let Some((name, value)) = line.split_once('=').filter(|_| in_network)
            && name.trim() == "ManageForeignRoutingPolicyRules"
        {
            let value = value.trim().to_ascii_lowercase();
            says = match value.as_str() {
                "1" | "yes" | "y" | "true" | "t" | "on" => Some(true),
                "0" | "no" | "n" | "false" | "f" | "off" => Some(false),
                _ => says,
            };
        }
    }
    says
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_networkd_does_follows_from_its_files() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let write = |path: &str, text: &str| {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), text).unwrap();
        };
        assert!(!networkd_removes_rules(root), "it does not run");
        write("run/systemd/netif/state", "");
        assert!(networkd_removes_rules(root), "by default");
        write("usr/lib/systemd/networkd.conf", "[Network]\nManageForeignRoutingPolicyRules = no\n");
        assert!(!networkd_removes_rules(root));
        write("etc/systemd/networkd.conf", "[Network]\n#ManageForeignRoutingPolicyRules=no\n");
        assert!(networkd_removes_rules(root), "one main file counts");
        write(
            "usr/lib/systemd/networkd.conf.d/50-a.conf",
            "[Network]\nManageForeignRoutingPolicyRules=off\n",
        );
        assert!(!networkd_removes_rules(root));
        write("etc/systemd/networkd.conf.d/50-a.conf", "[DHCP]\nManageForeignRoutingPolicyRules=off\n");
        assert!(networkd_removes_rules(root), "one of two with a name counts");
    }
}
