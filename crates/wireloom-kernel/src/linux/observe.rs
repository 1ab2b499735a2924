//! Reads the kernel for the planner.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    thread,
    time::{Duration, Instant, SystemTime},
};

use wireloom_plan::{
    observed::{Device, Observed, Peer, Underlay},
    ownership::{PROPOSALS, is_contested},
    paths::Paths,
    routing::Rule,
    sysctl::{ALL, UnderlaySysctl},
};

use super::{Linux, connections};
use crate::{
    error::{Attempt, Error},
    rtnetlink::{address, interface, link, neighbour, route, rule},
    sysctl,
    wireguard::Backend,
};

/// A killed process has closed everything within milliseconds; one that has not after this long hangs.
const PROCESS_END: Duration = Duration::from_secs(1);

/// How often an awaited state is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

impl Linux {
    pub(super) fn observe_all(&mut self, own: &BTreeSet<IpAddr>) -> Result<Observed, Error> {
        // Before the interface, which changes when its device ends.
        let device = self.observe_device()?;
        let mut observed = self.observe_without_device(own)?;
        observed.device = device.filter(|_| observed.interface.is_some());
        observed.paths = self.observe_paths(observed.device.as_ref())?;
        Ok(observed)
    }

    /// Reads what is there to be removed: everything except the device, which may be unable to answer.
    ///
    /// # Errors
    /// The first thing that cannot be read.
    pub fn observe_for_removal(&mut self) -> Result<Observed, Error> {
        self.observe_without_device(&BTreeSet::new())
    }

    fn observe_without_device(&mut self, own: &BTreeSet<IpAddr>) -> Result<Observed, Error> {
        let mut found = self.find_interface()?;
        if let Some(found) = found.as_ref().filter(|found| found.interface.is_ours()) {
            self.last_interface = Some((found.index, found.backend));
            if found.backend == Backend::Userspace && !found.interface.left {
                self.userspace_device.note_socket();
            }
        }
        if let Some(found) = &mut found {
            // An interface of another back end must be recreated.
            found.interface.left &= self.wanted.is_none_or(|wanted| wanted == found.backend);
        }
        let index = found.as_ref().map(|found| found.index);
        let mut interface = found.as_ref().map(|found| found.interface.clone());
        if let Some(interface) = &mut interface {
            // Absent when it was removed this moment.
            interface.rp_filter = sysctl::read(&self.interface, UnderlaySysctl::RpFilter)?.unwrap_or(0);
        }
        // Only an interface of the userspace engine outlives its device.
        let outlives =
            |found: &&interface::Found| found.backend == Backend::Userspace && found.interface.is_ours();
        let linkdown_ignored = match found.as_ref().filter(outlives) {
            Some(_) => sysctl::linkdown_ignored(&self.interface)?,
            None => BTreeSet::new(),
        };
        let assigned = address::observe(&mut self.rtnetlink).attempt(|| "list the addresses".into())?;
        let table = self.nftables.observe().attempt(|| "read the nftables table `inet wireloom`".into())?;
        let (on_ours, elsewhere): (Vec<&address::Assigned>, Vec<&address::Assigned>) =
            assigned.iter().partition(|each| Some(each.interface) == index);
        let with_own = elsewhere.iter().filter(|each| own.contains(&each.address.addr()));
        let with_own = with_own.map(|each| each.interface).collect();
        let (mut neighbours, mut link_routes) = (BTreeMap::new(), BTreeSet::new());
        if let Some(found) = found.as_ref().filter(|found| found.interface.is_ours()) {
            neighbours = neighbour::observe(&mut self.rtnetlink, found.index)
                .attempt(|| "list the neighbours".into())?;
            link_routes = route::observe_link_routes(&mut self.rtnetlink, found.index)
                .attempt(|| "list the routes to neighbours".into())?;
        }
        let rules = rule::observe(&mut self.rtnetlink).attempt(|| "list the rules".into())?;
        let links = link::observe(&mut self.rtnetlink).attempt(|| "list the interfaces".into())?;
        let to_others: BTreeSet<u32> =
            links.iter().filter(|link| link.leads_out).map(|link| link.index).collect();
        let here_outward = elsewhere.iter().filter(|each| to_others.contains(&each.interface));
        let outward = self.observe_outward(&rules, &with_own, links.clone())?;
        let mut observed = Observed {
            neighbours,
            link_routes,
            send_redirects: sysctl::read(ALL, UnderlaySysctl::SendRedirects)? != Some(0),
            rp_filter_all: sysctl::read(ALL, UnderlaySysctl::RpFilter)?.unwrap_or(0),
            addresses: on_ours.iter().map(|each| each.address).collect(),
            here: elsewhere.iter().map(|each| each.address).collect(),
            here_outward: here_outward.map(|each| each.address.addr()).collect(),
            bypasses: self.observe_bypasses(&links, &outward),
            connections: if self.host_mode { connections::observe() } else { BTreeSet::new() },
            outward,
            linkdown_ignored,
            device: None,
            paths: Paths::default(),
            interface,
            rules: rules.iter().filter(|rule| rule.table == self.table).cloned().collect(),
            routes: route::observe(&mut self.rtnetlink, self.table, index)
                .attempt(|| format!("list the routes of table {}", self.table))?,
            felix: self.nftables.has_felix().attempt(|| "list the chains of nftables".into())?,
            free_table: None,
            underlays: self.observe_underlays(&assigned, own)?,
            saved_sysctls: self
                .state
                .saved_sysctls()
                .attempt(|| format!("read the saved sysctls in {}", self.state.path().display()))?,
            firewall: table.firewall,
            judged_peers: table.judged_peers,
            sources: table.sources,
            guarded: table.guarded,
        };
        if is_contested(&observed, self.table) {
            observed.free_table = self.find_free_table(&rules)?;
        }
        Ok(observed)
    }

    /// The first table of [`PROPOSALS`] that nobody uses; `None` when all are used.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn free_table(&mut self) -> Result<Option<u32>, Error> {
        let rules = rule::observe(&mut self.rtnetlink).attempt(|| "list the rules".into())?;
        self.find_free_table(&rules)
    }

    /// Whether no rule looks the table up and it has no routes.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn is_free_table(&mut self, table: u32) -> Result<bool, Error> {
        let rules = rule::observe(&mut self.rtnetlink).attempt(|| "list the rules".into())?;
        let is_empty = route::is_empty(&mut self.rtnetlink, table)
            .attempt(|| format!("list the routes of table {table}"))?;
        Ok(is_empty && rules.iter().all(|rule| rule.table != table))
    }

    /// The first proposal that no rule looks up and that has no routes.
    fn find_free_table(&mut self, rules: &[Rule]) -> Result<Option<u32>, Error> {
        let mut unused = PROPOSALS.filter(|table| rules.iter().all(|rule| rule.table != *table));
        unused
            .find_map(|table| match route::is_empty(&mut self.rtnetlink, table) {
                Ok(false) => None,
                Ok(true) => Some(Ok(table)),
                Err(cause) => Some(Err(cause)),
            })
            .transpose()
            .attempt(|| "look for a free table".into())
    }

    fn observe_device(&mut self) -> Result<Option<Device>, Error> {
        let Some(found) = self.find_interface()? else { return Ok(None) };
        let state = match self.read_device(found.backend) {
            // What is known of it must do: everything else is to be repaired all the same.
            Err(error) if error.silence().is_some() => {
                return Ok(Some(self.last_device.clone().unwrap_or_default()));
            }
            state => state?,
        };
        let Some(state) = state else {
            self.await_end_of_process()?;
            return Ok(None);
        };
        let now = SystemTime::now();
        self.remember_sessions(&state, now);
        // A device of another back end must be recreated.
        if self.wanted.is_some_and(|wanted| wanted != found.backend) {
            return Ok(None);
        }
        self.configured_endpoints.retain(|key, _| state.peers.contains_key(key));
        let peers = state.peers.into_iter().map(|(key, peer)| {
            let observed = Peer {
                handshake_age: peer.handshake_age(now),
                endpoint: peer.endpoint,
                configured_endpoint: self.configured_endpoints.get(&key).copied(),
                allowed_ips: peer.allowed_ips,
                persistent_keepalive: peer.persistent_keepalive,
                preshared_key: peer.preshared_key,
            };
            (key, observed)
        });
        self.last_device = Some(Device {
            peers: peers.collect(),
            public_key: state.public_key,
            listen_port: state.listen_port,
            fwmark: state.fwmark,
            source_check: state.source_check,
        });
        Ok(self.last_device.clone())
    }

    /// A process that is killed may close its control socket before the interface: waits until nobody holds our
    /// interface. Otherwise it would look like one whose process hangs, which must be recreated.
    pub(super) fn await_end_of_process(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + PROCESS_END;
        let held = |found: &interface::Found| {
            found.backend == Backend::Userspace && found.interface.is_ours() && !found.interface.left
        };
        while self.find_interface()?.as_ref().is_some_and(held) && Instant::now() < deadline {
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    fn observe_underlays(
        &mut self,
        assigned: &[address::Assigned],
        own: &BTreeSet<IpAddr>,
    ) -> Result<BTreeMap<String, Underlay>, Error> {
        let mut by_index: BTreeMap<u32, BTreeSet<IpAddr>> = BTreeMap::new();
        let usable = assigned.iter().filter(|each| each.usable);
        for each in usable.filter(|each| own.contains(&each.address.addr())) {
            by_index.entry(each.interface).or_default().insert(each.address.addr());
        }
        let mut underlays = BTreeMap::new();
        for (index, addresses) in by_index {
            let found = interface::by_index(&mut self.rtnetlink, index)
                .attempt(|| format!("look up interface {index}"))?;
            let Some(found) = found.filter(|found| found.name != self.interface) else { continue };
            // Absent when the interface was removed this moment.
            let rp_filter = sysctl::read(&found.name, UnderlaySysctl::RpFilter)?.unwrap_or(0);
            let src_valid_mark = sysctl::read(&found.name, UnderlaySysctl::SrcValidMark)?.unwrap_or(0) != 0;
            underlays.insert(
                found.name,
                Underlay { mtu: found.interface.mtu, addresses, rp_filter, src_valid_mark },
            );
        }
        Ok(underlays)
    }
}
