//! Doors for `fuzz/`.

use netlink_packet_core::NetlinkPayload;
use netlink_packet_wireguard::WireguardAttribute;
use wireloom_netlink::RawMessage;

use super::{
    message::{self, Message},
    transaction::{SetPeer, Step, Transaction},
};
use crate::wireguard::DeviceState;

/// The device that the messages of a dump describe. Other messages are left out.
#[must_use]
pub fn device(messages: &[RawMessage<'_>]) -> DeviceState {
    let parsed: Vec<Message> = messages.iter().filter_map(message).collect();
    message::device(parsed.iter().flat_map(|message| &message.0.payload.attributes))
}

fn message(message: &RawMessage<'_>) -> Option<Message> {
    match message.parse::<Message>() {
        Ok(NetlinkPayload::InnerMessage(message)) => Some(message),
        _ => None,
    }
}

/// The attributes of the messages that make these peers.
#[must_use]
pub fn changes(device: &DeviceState) -> Vec<Vec<WireguardAttribute>> {
    let steps = device.peers.iter().map(|(key, peer)| {
        Step::Set(SetPeer {
            endpoint: peer.endpoint,
            gained: peer.allowed_ips.iter().copied().collect(),
            ..SetPeer::new(*key, peer.persistent_keepalive)
        })
    });
    message::changes(&Transaction { configure: None, steps: steps.collect(), lost: Vec::new() })
}

/// The device that these attributes describe.
#[must_use]
pub fn device_of(attributes: &[Vec<WireguardAttribute>]) -> DeviceState {
    message::device(attributes.iter().flatten())
}
