//! The kernel shell: observes Linux into the planner's words and carries out its operations.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use wireloom_plan::{kernel::Observed, op::Op};
use wireloom_types::{PrivateKey, PublicKey, interface::AGENT_ALIAS};

pub use self::{
    backend::{BackendSetting, Choice},
    error::{Cause, Error},
    monitor::{Interest, Monitor},
    nft::Refusals,
    random_key::random_key,
    wireguard::{DeviceState, Implementation, PeerState},
};
use self::{
    error::Attempt,
    greeting::Greeting,
    netlink::Netlink,
    nft::Nftables,
    wireguard::{kernel::InKernel, userspace::Userspace},
};
use crate::state::StateDir;

mod address;
mod apply;
mod backend;
mod error;
mod family;
mod greeting;
mod link;
mod monitor;
mod neighbour;
mod netlink;
mod nft;
mod observe;
mod random_key;
mod route;
mod rule;
pub mod state;
mod sysctl;
mod wireguard;
pub mod wording;

/// What the reconcile loop needs of a kernel. Its twin in memory is [`Observed`] itself.
pub trait Kernel {
    /// Everything that a plan depends on. `own` are the addresses of this node, by which its
    /// underlay interfaces are known.
    ///
    /// # Errors
    /// The first thing that cannot be read.
    fn observe(&mut self, own: &BTreeSet<IpAddr>) -> Result<Observed, Error>;

    /// Carries out operations in their order, and stops after the first group of them that failed:
    /// rules come last, so that none leads to a table that is half built. (What no retry can mend is
    /// another matter: see the implementation.)
    ///
    /// # Errors
    /// What failed.
    fn apply(&mut self, ops: &[Op]) -> Result<(), Vec<Error>>;
}

/// The kernel that runs this process, in its network namespace.
pub struct Linux {
    interface: String,
    table: u32,
    state: StateDir,
    netlink: Netlink,
    nftables: Nftables,
    in_kernel: InKernel,
    userspace: Userspace,
    /// Who shall carry the packets; absent: whoever does.
    wanted: Option<Implementation>,
    greeting: Greeting,
    private_key: Option<PrivateKey>,
    /// The endpoints that we configured, to tell them from those learnt by roaming.
    configured_endpoints: BTreeMap<PublicKey, SocketAddr>,
}

impl Linux {
    /// Opens the way to the kernel; changes nothing.
    ///
    /// # Errors
    /// No netlink socket can be had.
    pub fn open(interface: &str, table: u32, state: StateDir) -> Result<Self, Error> {
        Ok(Self {
            interface: interface.to_owned(),
            table,
            state,
            netlink: Netlink::open().attempt(|| "open a netlink socket".into())?,
            nftables: Nftables::new(interface),
            in_kernel: InKernel::new(interface),
            userspace: Userspace::new(interface),
            wanted: None,
            greeting: Greeting::default(),
            private_key: None,
            configured_endpoints: BTreeMap::new(),
        })
    }

    /// The key that [`Op::ConfigureDevice`] gives to the device.
    pub fn set_private_key(&mut self, key: PrivateKey) {
        self.private_key = Some(key);
    }

    /// The endpoints that were configured, by public key.
    #[must_use]
    pub fn configured_endpoints(&self) -> BTreeMap<String, SocketAddr> {
        self.configured_endpoints.iter().map(|(key, endpoint)| (key.to_string(), *endpoint)).collect()
    }

    /// Remembers what another process configured; what is no key is passed over.
    pub fn remember_endpoints(&mut self, configured: &BTreeMap<String, SocketAddr>) {
        let known = configured.iter().filter_map(|(key, endpoint)| Some((key.parse().ok()?, *endpoint)));
        self.configured_endpoints.extend(known);
    }

    /// The port of our netlink socket: notifications of our own doing carry it.
    #[must_use]
    pub fn netlink_port(&self) -> u32 {
        self.netlink.port()
    }

    /// Calls `changed` whenever somebody else changes our nftables table.
    ///
    /// # Errors
    /// The kernel's notifications cannot be had.
    pub fn watch_nftables(&self, changed: impl Fn() + Send + 'static) -> Result<(), Error> {
        self.nftables.watch(changed).map_err(Cause::from).attempt(|| "listen to nftables".into())
    }

    /// What the firewall refused, as of the last look at the kernel; `None` when it judges nobody.
    #[must_use]
    pub fn refusals(&self) -> Option<&Refusals> {
        self.nftables.refusals()
    }

    /// The device with its counters; `None` when it is not there or not ours.
    ///
    /// # Errors
    /// It does not answer as it should.
    pub fn device(&mut self) -> Result<Option<DeviceState>, Error> {
        match self.link()?.filter(|found| found.link.alias.as_deref() == Some(AGENT_ALIAS)) {
            Some(found) => self.read_device(found.implementation),
            None => Ok(None),
        }
    }

    /// # Errors
    /// An interface of our name is there that we did not make.
    pub fn refuse_foreign_link(&mut self) -> Result<(), Error> {
        match self.link()? {
            Some(found) if found.link.alias.as_deref() != Some(AGENT_ALIAS) => {
                let interface = &self.interface;
                Err(Cause::Told(format!(
                    "an interface of that name exists and is not Wireloom's (its alias is not `{AGENT_ALIAS}`); remove it \
                     with `ip link delete {interface}`, or choose another name in agent.toml"
                )))
                .attempt(|| format!("use interface {interface}"))
            }
            _ => Ok(()),
        }
    }

    fn link(&mut self) -> Result<Option<link::Indexed>, Error> {
        link::by_name(&mut self.netlink, &self.interface)
            .attempt(|| format!("look up interface {}", self.interface))
    }

    fn read_device(&mut self, of: Implementation) -> Result<Option<DeviceState>, Error> {
        let interface = self.interface.clone();
        self.backend(of).read().attempt(|| format!("read the WireGuard device of {interface}"))
    }
}

impl Kernel for Linux {
    fn observe(&mut self, own: &BTreeSet<IpAddr>) -> Result<Observed, Error> {
        self.observe_all(own)
    }

    fn apply(&mut self, ops: &[Op]) -> Result<(), Vec<Error>> {
        self.apply_all(ops)
    }
}
