//! The kernel that runs this process.

mod adopting;
mod apply;
mod asking;
pub(crate) mod backend;
mod borrowed;
mod bypass;
mod connections;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod greeting;
mod host;
mod machine;
mod observe;
mod outward;
mod paths;
pub(crate) mod poll;
mod renamed;
mod silence;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use wireloom_netlink::{Client, Protocol};
use wireloom_plan::{
    observed::{Device, Observed},
    op::Op,
};
use wireloom_types::{PresharedKey, PrivateKey, PublicKey, interface::AGENT_ALIAS};

use self::{bypass::Bypasses, greeting::Greeting, machine::ReadTables, paths::PathMemory};
use crate::{
    Kernel,
    error::{Attempt, Cause, Error},
    nft::{GuardCounters, Nftables, Refusals},
    rtnetlink::{Rtnetlink, interface},
    state::StateDir,
    wireguard::{Backend, DeviceState, Silence, in_kernel::KernelDevice, userspace::UserspaceDevice},
};

/// The kernel that runs this process, in its network namespace.
pub struct Linux {
    /// The name of our interface.
    interface: String,
    table: u32,
    /// The index that our interface had when it was observed last, and its back end.
    last_interface: Option<(u32, Backend)>,
    state: StateDir,
    rtnetlink: Rtnetlink,
    nftables: Nftables,
    bypasses: Bypasses,
    /// Whether the hosts' own traffic is encrypted too.
    host_mode: bool,
    kernel_device: KernelDevice,
    userspace_device: UserspaceDevice,
    /// The device as it was observed last.
    last_device: Option<Device>,
    /// The back end that should carry the packets; absent when any will do.
    wanted: Option<Backend>,
    greeting: Greeting,
    paths: PathMemory,
    read_tables: Option<ReadTables>,
    private_key: Option<PrivateKey>,
    preshared_key: Option<PresharedKey>,
    /// The endpoints that we configured, to tell them from those learnt by roaming.
    configured_endpoints: BTreeMap<PublicKey, SocketAddr>,
    took: Took,
}

/// How long the kernel took for what was asked of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Took {
    /// [`Kernel::observe`].
    pub observe: Duration,
    /// [`Kernel::apply`].
    pub apply: Duration,
}

impl Linux {
    /// Opens the sockets to the kernel; changes nothing. `interface` and `table` are ours.
    ///
    /// # Errors
    /// The netlink socket cannot be opened.
    pub fn open(interface: &str, table: u32, state: StateDir) -> Result<Self, Error> {
        Ok(Self {
            interface: interface.to_owned(),
            table,
            last_interface: None,
            nftables: Nftables::new(interface, state.clone()),
            bypasses: Bypasses::default(),
            host_mode: false,
            state,
            rtnetlink: Client::open(Protocol::Route).attempt(|| "open a netlink socket".into())?,
            kernel_device: KernelDevice::new(interface),
            userspace_device: UserspaceDevice::new(interface),
            last_device: None,
            wanted: None,
            greeting: Greeting::default(),
            paths: PathMemory::default(),
            read_tables: None,
            private_key: None,
            preshared_key: None,
            configured_endpoints: BTreeMap::new(),
            took: Took::default(),
        })
    }

    /// How long observing and applying took since this was asked last.
    pub fn take_took(&mut self) -> Took {
        std::mem::take(&mut self.took)
    }

    /// Changes the number of our table. What is in the one before stays there.
    pub fn set_table(&mut self, table: u32) {
        self.table = table;
    }

    /// Whether to look for the connections that host mode leads into the tunnel.
    pub fn set_host_mode(&mut self, host_mode: bool) {
        self.host_mode = host_mode;
    }

    /// Sets the key that [`DeviceOp::Configure`](wireloom_plan::op::DeviceOp::Configure) gives to the device.
    pub fn set_private_key(&mut self, key: PrivateKey) {
        self.private_key = Some(key);
    }

    /// Sets the key that [`DeviceOp::SetPeer`](wireloom_plan::op::DeviceOp::SetPeer) gives to the peers; `None` when
    /// the mesh has none.
    pub fn set_preshared_key(&mut self, key: Option<PresharedKey>) {
        self.preshared_key = key;
    }

    /// Forgets which endpoint of a peer was configured: if the peer does not answer, the next pass sets the declared
    /// one again, in the place of one that the device learnt.
    pub fn forget_endpoint(&mut self, peer: PublicKey) {
        self.configured_endpoints.remove(&peer);
    }

    /// The endpoints that were configured, by public key in base64.
    #[must_use]
    pub fn configured_endpoints(&self) -> BTreeMap<String, SocketAddr> {
        self.configured_endpoints.iter().map(|(key, endpoint)| (key.to_string(), *endpoint)).collect()
    }

    /// Remembers the endpoints that another process configured, by public key in base64. Malformed keys are
    /// skipped.
    pub fn remember_endpoints(&mut self, configured: &BTreeMap<String, SocketAddr>) {
        let known = configured.iter().filter_map(|(key, endpoint)| Some((key.parse().ok()?, *endpoint)));
        self.configured_endpoints.extend(known);
    }

    /// The port of our netlink socket: notifications of our own changes carry it.
    #[must_use]
    pub fn netlink_port(&self) -> u32 {
        self.rtnetlink.port()
    }

    /// From now on the guard is saved in the state directory whenever it changes, and now.
    pub fn keep_guard_saved(&mut self) {
        self.nftables.keep_guard_saved();
    }

    /// Calls `changed`, from another thread, whenever somebody else changes our nftables table. If it is gone, that
    /// thread first restores the guard.
    ///
    /// # Errors
    /// The netlink socket cannot be opened, or the thread not be started.
    pub fn watch_nftables(&self, changed: impl Fn() + Send + 'static) -> Result<(), Error> {
        self.nftables.watch(changed).map_err(Cause::from).attempt(|| "listen to nftables".into())
    }

    /// The packets that the firewall refused, as of the last observation; `None` when it checks no sources.
    #[must_use]
    pub fn refusals(&self) -> Option<&Refusals> {
        self.nftables.refusals()
    }

    /// What the guard refused, as of the last observation; `None` without a guard.
    #[must_use]
    pub fn guard_counters(&self) -> Option<&GuardCounters> {
        self.nftables.guard_counters()
    }

    /// Reads what the guard has refused by now; `None` without a guard. This lists the whole table.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn count_refused(&mut self) -> Result<Option<GuardCounters>, Error> {
        self.nftables.count().attempt(|| "read the counters of the guard".into())
    }

    /// The WireGuard device with its counters; `None` when it does not exist or is not ours.
    ///
    /// # Errors
    /// The device cannot be read. [`Error::silence`] tells of one that does not answer, within a second the first time
    /// and within milliseconds from then on.
    pub fn device(&mut self) -> Result<Option<DeviceState>, Error> {
        match self.find_interface()?.filter(|found| found.interface.is_ours()) {
            Some(found) => self.read_device(found.backend),
            None => Ok(None),
        }
    }

    /// Makes sure that no foreign interface has our name.
    ///
    /// # Errors
    /// There is an interface with our name that Wireloom did not make.
    pub fn refuse_foreign_interface(&mut self) -> Result<(), Error> {
        match self.find_interface()? {
            Some(found) if !found.interface.is_ours() => {
                let interface = &self.interface;
                Err(Cause::Permanent(format!(
                    "an interface with that name exists and is not Wireloom's (its alias is not `{AGENT_ALIAS}`); \
                     write a name that is free into [wireguard] interface of agent.toml, or let the program that made \
                     it remove it (such as `wg-quick down {interface}`)"
                )))
                .attempt(|| format!("use interface {interface}"))
            }
            _ => Ok(()),
        }
    }

    fn find_interface(&mut self) -> Result<Option<interface::Found>, Error> {
        interface::by_name(&mut self.rtnetlink, &self.interface)
            .attempt(|| format!("look up interface {}", self.interface))
    }

    fn read_device(&mut self, backend: Backend) -> Result<Option<DeviceState>, Error> {
        let interface = self.interface.clone();
        self.wireguard(backend).read().attempt(|| format!("read the WireGuard device of {interface}"))
    }
}

impl Kernel for Linux {
    fn observe(&mut self, own: &BTreeSet<IpAddr>) -> Result<Observed, Error> {
        let begun = Instant::now();
        let observed = self.observe_all(own);
        self.took.observe += begun.elapsed();
        observed
    }

    fn silence(&self) -> Option<Silence> {
        self.userspace_device.silence()
    }

    fn apply(&mut self, ops: &[Op]) -> Result<(), Vec<Error>> {
        let begun = Instant::now();
        let applied = self.apply_all(ops);
        self.took.apply += begun.elapsed();
        applied
    }
}
