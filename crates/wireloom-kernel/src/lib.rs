//! The kernel shell: observes Linux for the planner and carries out the planner's operations.
//!
//! [`Linux`] is the entry. Beneath it, each of the kernel's interfaces has a module of its own: `rtnetlink`,
//! `nft` (nftables), `wireguard` (the device, with its two back ends), `sysctl` and `echo`. [`state`] is what outlives
//! the process.

mod echo;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod linux;
mod local_socket;
mod nft;
mod random_key;
mod rtnetlink;
pub mod state;
mod sysctl;
mod wireguard;
pub mod wording;

use std::{collections::BTreeSet, net::IpAddr};

use wireloom_plan::{observed::Observed, op::Op};

pub use self::{
    echo::Echoes,
    error::{Cause, Error},
    linux::{
        Linux, Took,
        backend::{BackendChoice, BackendSetting},
        poll::Poll,
    },
    local_socket::connect_at_once,
    nft::{GuardCounters, Refusals, restore_guard},
    random_key::{random_key, random_preshared_key},
    rtnetlink::monitor::{Interest, Monitor},
    wireguard::{
        Backend, DeviceState, PeerState, Silence, supervisor,
        userspace::{Adoption, SILENCE_MAX, Serving, serving},
    },
};

/// What the reconcile loop needs of a kernel. Its twin in memory is [`Observed`].
pub trait Kernel {
    /// Reads everything that a plan depends on. `own` are the addresses of this node, which identify its
    /// underlay interfaces. The device is as it was read last while it does not answer ([`Self::silence`]).
    ///
    /// # Errors
    /// The first thing that cannot be read.
    fn observe(&mut self, own: &BTreeSet<IpAddr>) -> Result<Observed, Error>;

    /// The silence of a device that has not answered yet what it was asked last.
    fn silence(&self) -> Option<Silence>;

    /// Carries out operations in their order. It stops after the first step (see
    /// [`steps`](wireloom_plan::op::steps)) that fails, so that no rule, which would come last, leads to a
    /// half-built table. An implementation may go on where no retry can help.
    ///
    /// # Errors
    /// Everything that failed.
    fn apply(&mut self, ops: &[Op]) -> Result<(), Vec<Error>>;
}
