//! The kernel's own WireGuard, over generic netlink (include/uapi/linux/wireguard.h).
//!
//! The kernel is told differences alone ([`transaction`]), in as few messages as hold them
//! ([`message`]), by way of its family ([`family`]).

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};
use nix::errno::Errno;
use wireloom_plan::settings::{PeerLookup, SourceCheck};

use self::{
    family::{Device, Family},
    transaction::Programmer,
};
use super::{Backend, Change, DeviceState};
use crate::kernel::{
    error::Cause,
    link,
    netlink::{Netlink, Request},
};

mod family;
mod message;
mod transaction;
#[cfg(test)]
mod twin;

/// The device of one interface.
pub(in crate::kernel) struct InKernel {
    interface: String,
    programmer: Programmer,
}

impl InKernel {
    pub(in crate::kernel) fn new(interface: &str) -> Self {
        Self { interface: interface.to_owned(), programmer: Programmer::default() }
    }

    /// Makes a device of another name and takes it away again: what a kernel has, and what this
    /// process may do with it, nothing else tells for sure.
    pub(in crate::kernel) fn try_out() -> Result<(), Cause> {
        let name = format!("wlprobe{}", std::process::id());
        let mut netlink = Netlink::open()?;
        create(&mut netlink, &name)?;
        if let Some(found) = link::by_name(&mut netlink, &name)?
            && let Some((_, cause)) = netlink.change(&[link::remove(found.index)])?.pop()
        {
            return Err(cause);
        }
        Ok(())
    }
}

impl Backend for InKernel {
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
        create(&mut Netlink::open()?, &self.interface)
    }

    fn change(&mut self, changes: &[Change<'_>]) -> Result<(), Cause> {
        let mut family = Family::open(&self.interface)?.ok_or_else(|| {
            Cause::Passing("the kernel's WireGuard is gone (was its module unloaded?)".into())
        })?;
        self.programmer.change(&mut family, changes)
    }

    fn end(&mut self) -> Result<(), Cause> {
        self.programmer.observe(None);
        Ok(())
    }
}

/// `ip link add NAME type wireguard`
fn create(netlink: &mut Netlink, name: &str) -> Result<(), Cause> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]));
    let request =
        Request { message: RouteNetlinkMessage::NewLink(message), flags: NLM_F_CREATE | NLM_F_EXCL };
    match netlink.change(&[request])?.pop() {
        None => Ok(()),
        // "Unknown device type" of rtnl_newlink in net/core/rtnetlink.c.
        Some((_, Cause::Refused { errno: Errno::EOPNOTSUPP, .. })) => {
            Err(Cause::Told("this kernel has no WireGuard (the module `wireguard`)".into()))
        }
        Some((_, cause)) => Err(cause),
    }
}
