//! The generic netlink family `wireguard`: one device is read and written by its interface's name.

use netlink_packet_generic::{
    GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_packet_wireguard::{WireguardAttribute, WireguardCmd, WireguardMessage};
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;

use super::message::{self, Message};
use crate::{
    error::Cause,
    netlink::{Netlink, Request},
    wireguard::DeviceState,
};

/// What drivers/net/wireguard/netlink.c does for one device. Its twin in memory is
/// [`Twin`](super::twin::Twin).
pub(super) trait Device {
    /// `WG_CMD_GET_DEVICE`; `None` when the interface is no WireGuard's, or gone.
    fn get(&mut self) -> Result<Option<DeviceState>, Cause>;

    /// `WG_CMD_SET_DEVICE`. The kernel does one attribute after the other and stops at the first
    /// that it refuses; what is before that is done.
    fn set(&mut self, attributes: Vec<WireguardAttribute>) -> Result<(), Cause>;
}

/// The way to the kernel's. Kept no longer than an exchange: the private key passes its buffers.
pub(super) struct Family {
    netlink: Netlink<Message>,
    id: u16,
    interface: String,
}

impl Family {
    /// `None` when the kernel has no WireGuard.
    pub(super) fn open(interface: &str) -> Result<Option<Self>, Cause> {
        let mut controller = Netlink::<GenlMessage<GenlCtrl>>::open_family(NETLINK_GENERIC)?;
        let name = GenlCtrlAttrs::FamilyName("wireguard".into());
        let request = GenlMessage::from_payload(GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![name] });
        let answer = match controller.get(&request) {
            Err(Cause::Refused { errno: Errno::ENOENT, .. }) => None,
            answer => answer?,
        };
        let id = answer.and_then(|answer| {
            answer.payload.nlas.into_iter().find_map(|attribute| match attribute {
                GenlCtrlAttrs::FamilyId(id) => Some(id),
                _ => None,
            })
        });
        let Some(id) = id else { return Ok(None) };
        let netlink = Netlink::open_family(NETLINK_GENERIC)?;
        Ok(Some(Self { netlink, id, interface: interface.to_owned() }))
    }

    fn message(&self, cmd: WireguardCmd, mut attributes: Vec<WireguardAttribute>) -> Message {
        attributes.push(WireguardAttribute::IfName(self.interface.clone()));
        let mut message = GenlMessage::from_payload(WireguardMessage { cmd, attributes });
        message.set_resolved_family_id(self.id);
        Message(message)
    }
}

impl Device for Family {
    fn get(&mut self) -> Result<Option<DeviceState>, Cause> {
        let request = self.message(WireguardCmd::GetDevice, Vec::new());
        match self.netlink.dump(&request) {
            Ok(messages) => {
                Ok(Some(message::device(messages.iter().flat_map(|message| &message.0.payload.attributes))))
            }
            Err(Cause::Refused { errno: Errno::ENODEV | Errno::EOPNOTSUPP, .. }) => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    fn set(&mut self, attributes: Vec<WireguardAttribute>) -> Result<(), Cause> {
        let message = self.message(WireguardCmd::SetDevice, attributes);
        match self.netlink.change(&[Request { message, flags: 0 }])?.pop() {
            None => Ok(()),
            Some((_, cause)) => Err(cause),
        }
    }
}
