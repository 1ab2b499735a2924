//! Generic netlink, and the other protocols of netlink: whatever the kernel's WireGuard, nftables and the list of
//! sockets answer, it is read or left out; and the messages that make the peers of a device make the same ones.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_generic::{GenlMessage, ctrl::GenlCtrl};
use wireloom_kernel::fuzzing::{in_kernel, linux, nft};
use wireloom_netlink::{RawMessage, fuzzing::messages};

/// The attributes of a message, or within an attribute, by type.
fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut attributes = Vec::new();
    while let [l0, l1, k0, k1, ..] = *bytes {
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(value) = bytes.get(4..len) else { break };
        attributes.push((u16::from_ne_bytes([k0, k1]) & 0x3fff, value));
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    attributes
}

/// The values of the attributes of a type within others.
fn within<'a>(outer: &[&'a [u8]], wanted: Option<u16>) -> Vec<&'a [u8]> {
    let all = outer.iter().flat_map(|bytes| attributes(bytes));
    all.filter(|(kind, _)| wanted.is_none_or(|wanted| wanted == *kind)).map(|(_, value)| value).collect()
}

/// `GENL_ID_CTRL`
const CONTROLLER: u16 = 16;

/// Whether a message panics the crates that parse it, as no message of a kernel does: netlink-packet-wireguard 0.5 with
/// an empty prefix length (`WGALLOWEDIP_A_CIDR_MASK`), and netlink-packet-generic 0.5 with nested attributes of the
/// controller that are cut off (`CTRL_ATTR_OPS` and later ones).
fn is_unreadable(message: &RawMessage<'_>) -> bool {
    /// `struct genlmsghdr`, bytes.
    const HEADER: usize = 4;
    let payload = message.payload().get(HEADER..).unwrap_or_default();
    let ips = within(&within(&within(&within(&[payload], Some(8)), None), Some(9)), None);
    let of_controller = message.header.message_type == CONTROLLER;
    within(&ips, Some(3)).iter().any(|length| length.is_empty())
        || of_controller && attributes(payload).iter().any(|(kind, _)| *kind >= 6)
}

fuzz_target!(|datagram: &[u8]| {
    let messages: Vec<_> = messages(datagram).map_while(Result::ok).collect();
    if messages.iter().any(is_unreadable) {
        return;
    }
    for message in &messages {
        let payload = message.payload();
        if let Some(connection) = linux::connection(payload) {
            assert!(payload.len() >= 40 && connection.port != 0);
        }
        if message.header.message_type == CONTROLLER
            && let Ok(NetlinkPayload::InnerMessage(message)) = message.parse::<GenlMessage<GenlCtrl>>()
        {
            assert!(!format!("{message:?}").is_empty());
        }
        let first = nft::first_attribute(payload);
        assert!(first.is_none_or(|value| value.len() + 8 <= payload.len()));
        let _ = (nft::flow_table(payload), nft::others(&[payload.to_vec()]));
    }
    let device = in_kernel::device(&messages);
    let changes = in_kernel::changes(&device);
    let again = in_kernel::device_of(&changes);
    assert_eq!(again.peers.len(), device.peers.len());
    for (key, peer) in &device.peers {
        let again = &again.peers[key];
        assert_eq!(again.allowed_ips, peer.allowed_ips);
        assert_eq!(again.endpoint, peer.endpoint);
        assert_eq!(again.persistent_keepalive, peer.persistent_keepalive);
    }
});
