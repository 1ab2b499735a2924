//! The kernel's own WireGuard, over generic netlink (include/uapi/linux/wireguard.h).
//!
//! [`programmer`] turns changes into differences ([`transaction`]), packs these into as few messages as
//! possible ([`message`]), and sends them to the kernel's netlink family ([`family`]).

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};
use nix::errno::Errno;
use wireloom_types::{PeerLookup, SourceCheck};

use wireloom_netlink::{Client, Protocol};

use self::{
    family::{Commands, Family},
    programmer::Programmer,
};
use super::{Change, DeviceState, WireguardDevice};
use crate::{
    error::Cause,
    random_key::random_key,
    rtnetlink::{Request, Rtnetlink, interface},
};

mod family;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod message;
mod programmer;
mod transaction;
#[cfg(test)]
mod twin;

/// The device of one interface.
pub(crate) struct KernelDevice {
    interface: String,
    programmer: Programmer,
}

impl KernelDevice {
    pub(crate) fn new(interface: &str) -> Self {
        Self { interface: interface.to_owned(), programmer: Programmer::default() }
    }

    /// Creates a device with another name and removes it again. Nothing else tells for sure whether the kernel
    /// has WireGuard and whether this process may use it.
    ///
    /// Both requests are in one send, which the kernel completes before it handles a signal
    /// (`netlink_rcv_skb` in net/netlink/af_netlink.c): nothing is left behind even if this process is killed.
    pub(crate) fn probe() -> Result<(), Cause> {
        // A random name: the removal is tried even if the creation failed, and must not hit another interface.
        let [a, b, c, d, ..] = *random_key()?.public_key().as_bytes();
        let name = format!("wlprobe{:08x}", u32::from_be_bytes([a, b, c, d]));
        let requests = [addition(&name), interface::remove_by_name(&name)];
        let refusals = rtnetlink()?.change_all(&requests)?;
        match refusals.into_iter().next() {
            None => Ok(()),
            Some((_, refusal)) => Err(explain(refusal.into())),
        }
    }
}

impl WireguardDevice for KernelDevice {
    fn read(&mut self) -> Result<Option<DeviceState>, Cause> {
        let device = match Family::open(&self.interface)? {
            Some(mut family) => family.get()?,
            None => None,
        };
        self.programmer.observe(device.as_ref());
        Ok(device)
    }

    fn create(&mut self, _: PeerLookup, _: SourceCheck) -> Result<(), Cause> {
        self.programmer.observe(None);
        rtnetlink()?.change(&addition(&self.interface)).map_err(|error| explain(error.into()))
    }

    fn change(&mut self, changes: &[Change<'_>]) -> Result<(), Cause> {
        let mut family = Family::open(&self.interface)?.ok_or_else(|| {
            Cause::Transient("the kernel's WireGuard is gone (was the module `wireguard` unloaded?)".into())
        })?;
        self.programmer.change(&mut family, changes)
    }

    fn end(&mut self) -> Result<(), Cause> {
        self.programmer.observe(None);
        Ok(())
    }
}

/// `ip link add NAME type wireguard`
fn addition(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]));
    Request { message: RouteNetlinkMessage::NewLink(message), flags: NLM_F_CREATE | NLM_F_EXCL }
}

fn rtnetlink() -> Result<Rtnetlink, Cause> {
    Ok(Client::open(Protocol::Route)?)
}

/// Says what is missing.
fn explain(cause: Cause) -> Cause {
    match cause.errno() {
        // "Unknown device type" of rtnl_newlink in net/core/rtnetlink.c.
        Some(Errno::EOPNOTSUPP) => {
            Cause::Permanent("this kernel has no WireGuard (the module `wireguard`)".into())
        }
        _ => cause,
    }
}
