//! The generic netlink family `wireguard`: reads and writes a device by its interface's name.

use netlink_packet_generic::{
    GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_packet_wireguard::{WireguardAttribute, WireguardCmd, WireguardMessage};
use nix::errno::Errno;
use wireloom_netlink::{Client, Protocol, Request};

use super::message::{self, Message};
use crate::{error::Cause, wireguard::DeviceState};

/// The commands of drivers/net/wireguard/netlink.c for one device. Their twin in memory is
/// `twin::Twin`.
pub(super) trait Commands {
    /// `WG_CMD_GET_DEVICE`; `None` when the interface is gone or of another kind.
    fn get(&mut self) -> Result<Option<DeviceState>, Cause>;

    /// `WG_CMD_SET_DEVICE`. The kernel processes the attributes in order and stops at the first that it
    /// refuses; those before it take effect.
    fn set(&mut self, attributes: Vec<WireguardAttribute>) -> Result<(), Cause>;
}

/// The kernel's family. Kept no longer than an exchange, because its buffers may hold the private key.
pub(super) struct Family {
    client: Client<Message>,
    id: u16,
    interface: String,
}

impl Family {
    /// `None` when the kernel has no WireGuard.
    pub(super) fn open(interface: &str) -> Result<Option<Self>, Cause> {
        let mut controller = Client::<GenlMessage<GenlCtrl>>::open(Protocol::Generic)?;
        let name = GenlCtrlAttrs::FamilyName("wireguard".into());
        let request = GenlMessage::from_payload(GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![name] });
        let answer = match controller.get(&request) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(None),
            answer => answer?,
        };
        let id = answer.payload.nlas.into_iter().find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(id),
            _ => None,
        });
        let Some(id) = id else { return Ok(None) };
        let client = Client::open(Protocol::Generic)?;
        Ok(Some(Self { client, id, interface: interface.to_owned() }))
    }

    fn message(&self, cmd: WireguardCmd, mut attributes: Vec<WireguardAttribute>) -> Message {
        attributes.push(WireguardAttribute::IfName(self.interface.clone()));
        let mut message = GenlMessage::from_payload(WireguardMessage { cmd, attributes });
        message.set_resolved_family_id(self.id);
        Message(message)
    }
}

impl Commands for Family {
    fn get(&mut self) -> Result<Option<DeviceState>, Cause> {
        let request = self.message(WireguardCmd::GetDevice, Vec::new());
        match self.client.dump(&request) {
            Ok(messages) => {
                Ok(Some(message::device(messages.iter().flat_map(|message| &message.0.payload.attributes))))
            }
            Err(error) if matches!(error.errno(), Some(Errno::ENODEV | Errno::EOPNOTSUPP)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn set(&mut self, attributes: Vec<WireguardAttribute>) -> Result<(), Cause> {
        let message = self.message(WireguardCmd::SetDevice, attributes);
        Ok(self.client.change(&Request { message, flags: 0 })?)
    }
}
