//! The kernel's own WireGuard, over generic netlink (include/uapi/linux/wireguard.h).
//!
//! The kernel is told differences alone ([`transaction`]), in as few messages as hold them
//! ([`message`]), by way of its family ([`family`]), all of which [`programmer`] sees to.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};
use nix::errno::Errno;
use wireloom_types::{PeerLookup, SourceCheck};

use self::{
    family::{Device, Family},
    programmer::Programmer,
};
use super::{Backend, Change, DeviceState};
use crate::random_key;
use crate::{
    error::Cause,
    link,
    netlink::{Netlink, Request},
};

mod family;
mod message;
mod programmer;
mod transaction;
#[cfg(test)]
mod twin;

/// The device of one interface.
pub(crate) struct InKernel {
    interface: String,
    programmer: Programmer,
}

impl InKernel {
    pub(crate) fn new(interface: &str) -> Self {
        Self { interface: interface.to_owned(), programmer: Programmer::default() }
    }

    /// Makes a device of another name and takes it away again: what a kernel has, and what this
    /// process may do with it, nothing else tells for sure.
    ///
    /// Both requests are in one send, which the kernel carries out before it heeds a signal
    /// (`netlink_rcv_skb` in net/netlink/af_netlink.c): whatever becomes of this process, nothing is left.
    pub(crate) fn try_out() -> Result<(), Cause> {
        // A name that nobody else has: should nothing be made, the removal is tried all the same.
        let [a, b, c, d, ..] = *random_key()?.public_key().as_bytes();
        let name = format!("wlprobe{:08x}", u32::from_be_bytes([a, b, c, d]));
        let refusals = Netlink::open()?.change(&[addition(&name), link::remove_by_name(&name)])?;
        match refusals.into_iter().next() {
            None => Ok(()),
            Some((_, cause)) => Err(name_what_is_missing(cause)),
        }
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
        match Netlink::open()?.change(&[addition(&self.interface)])?.pop() {
            None => Ok(()),
            Some((_, cause)) => Err(name_what_is_missing(cause)),
        }
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
fn addition(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]));
    Request { message: RouteNetlinkMessage::NewLink(message), flags: NLM_F_CREATE | NLM_F_EXCL }
}

fn name_what_is_missing(refusal: Cause) -> Cause {
    match refusal {
        // "Unknown device type" of rtnl_newlink in net/core/rtnetlink.c.
        Cause::Refused { errno: Errno::EOPNOTSUPP, .. } => {
            Cause::Told("this kernel has no WireGuard (the module `wireguard`)".into())
        }
        other => other,
    }
}
