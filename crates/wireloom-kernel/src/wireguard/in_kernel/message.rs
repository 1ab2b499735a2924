//! The family's messages: packs changes into them, and reads dumps.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use netlink_packet_core::{
    DecodeError, Emitable as _, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
};
use netlink_packet_generic::GenlMessage;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAllowedIpFlags,
    WireguardAttribute, WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
    WireguardTimeSpec,
};
use wireloom_types::{PresharedKey, PublicKey};
use zeroize::Zeroize;

use super::transaction::{SetPeer, Step, Transaction};
use crate::wireguard::{DeviceState, shown};

/// Bytes of peers in one message: all of them are in one attribute, whose length has 16 bits.
const PEERS: usize = 32 << 10;

/// Allowed-IPs of a peer in one message, of at most 48 bytes each; the others go into the next messages.
const ALLOWED_IPS: usize = 400;

/// The most attributes of a message: private key, port, mark, peers and the interface's name. Room for all is made at
/// once, because a vector that grows leaves copies of keys behind, unwiped.
const ATTRIBUTES: usize = 5;

/// The most attributes of a peer: public key, flags, endpoint, keepalive, preshared key and allowed-IPs. As above.
const PEER_ATTRIBUTES: usize = 6;

/// One message. It may hold the private key: it is wiped on drop, and its `Debug` shows nothing.
#[derive(Clone)]
pub(super) struct Message(pub(super) GenlMessage<WireguardMessage>);

impl Drop for Message {
    fn drop(&mut self) {
        for attribute in &mut self.0.payload.attributes {
            match attribute {
                WireguardAttribute::PrivateKey(key) => key.zeroize(),
                WireguardAttribute::Peers(peers) => {
                    for attribute in peers.iter_mut().flat_map(|peer| &mut peer.0) {
                        if let WireguardPeerAttribute::PresharedKey(key) = attribute {
                            key.zeroize();
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message").finish_non_exhaustive()
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.0.message_type()
    }

    fn buffer_len(&self) -> usize {
        NetlinkSerializable::buffer_len(&self.0)
    }

    fn serialize(&self, buffer: &mut [u8]) {
        self.0.serialize(buffer);
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        GenlMessage::deserialize(header, payload).map(Self)
    }
}

/// How a single allowed-IP is removed from its peer.
pub(super) enum Removal {
    /// `WGALLOWEDIP_F_REMOVE_ME`, since Linux 6.16.
    Flag,
    /// A temporary peer gets it, which takes it from its owner, and is removed with it.
    Handover {
        /// A key that no peer has.
        temporary: PublicKey,
    },
}

/// The messages for a transaction, except for the allowed-IPs that nobody gets.
pub(super) fn changes(transaction: &Transaction<'_>) -> Vec<Vec<WireguardAttribute>> {
    let mut head = Vec::with_capacity(ATTRIBUTES);
    if let Some(configure) = &transaction.configure {
        head.push(WireguardAttribute::PrivateKey(*configure.key.expose_bytes()));
        head.push(WireguardAttribute::ListenPort(configure.listen_port));
        head.push(WireguardAttribute::Fwmark(configure.fwmark));
    }
    pack(head, transaction.steps.iter().flat_map(pieces))
}

/// The messages that remove allowed-IPs.
pub(super) fn removal(lost: &[(PublicKey, IpNet)], how: &Removal) -> Vec<Vec<WireguardAttribute>> {
    match how {
        Removal::Flag => {
            let of_one_peer = lost.chunk_by(|(one, _), (next, _)| one == next);
            pack(
                Vec::new(),
                of_one_peer.flat_map(|lost| lost.chunks(ALLOWED_IPS)).map(|lost| {
                    let remove = WireguardAllowedIpAttr::Flags(WireguardAllowedIpFlags::RemoveMe);
                    let removed = lost.iter().map(|(_, ip)| {
                        let mut ip = allowed_ip(*ip);
                        ip.0.push(remove.clone());
                        ip
                    });
                    let mut peer = peer(lost[0].0, WireguardPeerFlags::UpdateOnly);
                    peer.0.push(WireguardPeerAttribute::AllowedIps(removed.collect()));
                    peer
                }),
            )
        }
        Removal::Handover { temporary } => {
            let gained = lost.iter().map(|(_, ip)| *ip).collect();
            let set = Step::Set(SetPeer { gained, ..SetPeer::new(*temporary, 0) });
            pack(Vec::new(), [set, Step::Remove(*temporary)].iter().flat_map(pieces))
        }
    }
}

/// Packs a head and peers into as few messages as possible.
fn pack(
    head: Vec<WireguardAttribute>,
    pieces: impl Iterator<Item = WireguardPeer>,
) -> Vec<Vec<WireguardAttribute>> {
    let mut messages = Vec::new();
    let mut attributes = head;
    let mut peers = Vec::new();
    let mut size = 0;
    for piece in pieces {
        let length = piece.buffer_len();
        if size + length > PEERS && !peers.is_empty() {
            attributes.push(WireguardAttribute::Peers(std::mem::take(&mut peers)));
            messages.push(std::mem::take(&mut attributes));
            size = 0;
        }
        size += length;
        peers.push(piece);
    }
    if !peers.is_empty() {
        attributes.push(WireguardAttribute::Peers(peers));
    }
    if !attributes.is_empty() {
        messages.push(attributes);
    }
    messages
}

/// A change of a peer, in as many pieces as its allowed-IPs need.
fn pieces(step: &Step) -> Vec<WireguardPeer> {
    match step {
        Step::Remove(key) => vec![peer(*key, WireguardPeerFlags::RemoveMe)],
        Step::Set(set) => {
            let mut flags = WireguardPeerFlags::empty();
            flags.set(WireguardPeerFlags::UpdateOnly, set.update_only);
            flags.set(WireguardPeerFlags::ReplaceAllowedIps, set.replace);
            let mut first = peer(set.public_key, flags);
            first.0.extend(set.endpoint.map(WireguardPeerAttribute::Endpoint));
            first.0.push(WireguardPeerAttribute::PersistentKeepalive(set.persistent_keepalive));
            let key = set.preshared_key.as_ref();
            first.0.extend(key.map(|key| WireguardPeerAttribute::PresharedKey(*key.expose_bytes())));
            let mut pieces = vec![first];
            let more = set.gained.len().div_ceil(ALLOWED_IPS).saturating_sub(1);
            pieces.extend((0..more).map(|_| peer(set.public_key, WireguardPeerFlags::UpdateOnly)));
            for (piece, ips) in pieces.iter_mut().zip(set.gained.chunks(ALLOWED_IPS)) {
                let ips = ips.iter().map(|ip| allowed_ip(*ip)).collect();
                piece.0.push(WireguardPeerAttribute::AllowedIps(ips));
            }
            pieces
        }
    }
}

fn peer(key: PublicKey, flags: WireguardPeerFlags) -> WireguardPeer {
    let mut attributes = Vec::with_capacity(PEER_ATTRIBUTES);
    attributes.push(WireguardPeerAttribute::PublicKey(*key.as_bytes()));
    attributes.push(WireguardPeerAttribute::Flags(flags));
    WireguardPeer(attributes)
}

fn allowed_ip(ip: IpNet) -> WireguardAllowedIp {
    let family = match ip {
        IpNet::V4(_) => WireguardAddressFamily::Ipv4,
        IpNet::V6(_) => WireguardAddressFamily::Ipv6,
    };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(ip.addr()),
        WireguardAllowedIpAttr::Cidr(ip.prefix_len()),
    ])
}

/// Reads a dump. A peer with many allowed-IPs continues in the next message
/// (`wg_get_device_dump` in drivers/net/wireguard/netlink.c).
pub(super) fn device<'a>(attributes: impl IntoIterator<Item = &'a WireguardAttribute>) -> DeviceState {
    let mut device = DeviceState::default();
    for attribute in attributes {
        match attribute {
            // Absent when there is no private key. The private key itself is ignored.
            WireguardAttribute::PublicKey(key) => device.public_key = Some(PublicKey::from_bytes(*key)),
            WireguardAttribute::ListenPort(port) => device.listen_port = *port,
            WireguardAttribute::Fwmark(mark) => device.fwmark = *mark,
            WireguardAttribute::Peers(peers) => {
                for peer in peers {
                    add_peer(&mut device, peer);
                }
            }
            _ => {}
        }
    }
    device
}

fn add_peer(device: &mut DeviceState, described: &WireguardPeer) {
    let key = described.0.iter().find_map(|attribute| match attribute {
        WireguardPeerAttribute::PublicKey(key) => Some(PublicKey::from_bytes(*key)),
        _ => None,
    });
    let Some(key) = key else { return };
    let peer = device.peers.entry(key).or_default();
    for attribute in &described.0 {
        match attribute {
            WireguardPeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(*endpoint),
            WireguardPeerAttribute::PersistentKeepalive(seconds) => peer.persistent_keepalive = *seconds,
            WireguardPeerAttribute::PresharedKey(key) => {
                peer.preshared_key = shown(&PresharedKey::from_bytes(*key));
            }
            WireguardPeerAttribute::LastHandshake(time) => peer.last_handshake = since_epoch(*time),
            WireguardPeerAttribute::RxBytes(bytes) => peer.received = *bytes,
            WireguardPeerAttribute::TxBytes(bytes) => peer.sent = *bytes,
            WireguardPeerAttribute::AllowedIps(ips) => peer.allowed_ips.extend(ips.iter().filter_map(prefix)),
            _ => {}
        }
    }
}

fn prefix(described: &WireguardAllowedIp) -> Option<IpNet> {
    let address = described.0.iter().find_map(|attribute| match attribute {
        WireguardAllowedIpAttr::IpAddr(address) => Some(*address),
        _ => None,
    })?;
    let length = described.0.iter().find_map(|attribute| match attribute {
        WireguardAllowedIpAttr::Cidr(length) => Some(*length),
        _ => None,
    })?;
    IpNet::new(address, length).ok()
}

/// Zero means never.
fn since_epoch(time: WireguardTimeSpec) -> Option<SystemTime> {
    let seconds = u64::try_from(time.seconds).ok()?;
    let since = Duration::new(seconds, u32::try_from(time.nano_seconds).ok()?);
    if since.is_zero() { None } else { SystemTime::UNIX_EPOCH.checked_add(since) }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
    use netlink_packet_wireguard::WireguardCmd;
    use wireloom_types::PrivateKey;

    use super::*;
    use crate::wireguard::{PeerState, in_kernel::transaction::Configure};

    const KEY: PublicKey = PublicKey::from_bytes([1; 32]);

    fn ips(text: &str) -> Vec<WireguardAllowedIp> {
        text.split_whitespace().map(|ip| allowed_ip(ip.parse().unwrap())).collect()
    }

    #[test]
    fn a_peer_may_continue_in_the_next_message() {
        let first = WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(*KEY.as_bytes()),
            WireguardPeerAttribute::Endpoint("[2001:db8::1]:51820".parse().unwrap()),
            WireguardPeerAttribute::PersistentKeepalive(25),
            WireguardPeerAttribute::LastHandshake(WireguardTimeSpec {
                seconds: 1_700_000_000,
                nano_seconds: 5,
            }),
            WireguardPeerAttribute::PresharedKey([9; 32]),
            WireguardPeerAttribute::RxBytes(10),
            WireguardPeerAttribute::TxBytes(20),
            WireguardPeerAttribute::AllowedIps(ips("10.161.1.0/24 fd00::/64")),
        ]);
        let second = WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(*KEY.as_bytes()),
            WireguardPeerAttribute::AllowedIps(ips("10.161.2.7/32")),
        ]);
        let other = WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey([2; 32]),
            WireguardPeerAttribute::PresharedKey([0; 32]),
            WireguardPeerAttribute::LastHandshake(WireguardTimeSpec { seconds: 0, nano_seconds: 0 }),
        ]);
        let attributes = [
            WireguardAttribute::PrivateKey([7; 32]),
            WireguardAttribute::PublicKey([3; 32]),
            WireguardAttribute::ListenPort(51820),
            WireguardAttribute::Fwmark(10),
            WireguardAttribute::Peers(vec![first]),
            WireguardAttribute::Peers(vec![second, other]),
        ];
        let peer = PeerState {
            endpoint: Some("[2001:db8::1]:51820".parse().unwrap()),
            allowed_ips: ["10.161.1.0/24", "fd00::/64", "10.161.2.7/32"].map(|ip| ip.parse().unwrap()).into(),
            persistent_keepalive: 25,
            preshared_key: shown(&PresharedKey::from_bytes([9; 32])),
            last_handshake: Some(SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5)),
            received: 10,
            sent: 20,
        };
        let expected = DeviceState {
            public_key: Some(PublicKey::from_bytes([3; 32])),
            listen_port: 51820,
            fwmark: 10,
            peers: [(KEY, peer), (PublicKey::from_bytes([2; 32]), PeerState::default())].into(),
            ..DeviceState::default()
        };
        assert_eq!(device(&attributes), expected);
        assert_eq!(device(&[]), DeviceState::default());
    }

    #[test]
    fn there_is_room_for_everything_beside_a_key() {
        let private = PrivateKey::from_bytes([7; 32]);
        let configure = Configure { key: &private, listen_port: 51820, fwmark: 10 };
        let full = SetPeer {
            endpoint: Some("192.0.2.1:51820".parse().unwrap()),
            preshared_key: Some(PresharedKey::from_bytes([9; 32])),
            gained: (0..=u8::MAX).map(|byte| IpNet::from(IpAddr::from([10, 0, 0, byte]))).collect(),
            ..SetPeer::new(KEY, 25)
        };
        let steps = vec![Step::Set(full), Step::Remove(PublicKey::from_bytes([2; 32]))];
        let transaction = Transaction { configure: Some(configure), steps, lost: Vec::new() };
        let messages = changes(&transaction);
        let [message] = messages.as_slice() else { panic!("{} messages", messages.len()) };
        // The name of the interface comes last.
        assert_eq!((message.len() + 1, message.capacity()), (ATTRIBUTES, ATTRIBUTES));
        let Some(WireguardAttribute::Peers(peers)) = message.last() else { panic!("no peers") };
        assert_eq!(peers[0].0.len(), PEER_ATTRIBUTES);
        assert!(peers.iter().all(|peer| peer.0.capacity() == PEER_ATTRIBUTES));
    }

    #[test]
    fn a_message_is_read_back_as_written_and_shows_no_key() {
        let attributes = vec![
            WireguardAttribute::IfName("wg0".into()),
            WireguardAttribute::PrivateKey([7; 32]),
            WireguardAttribute::Peers(vec![peer(KEY, WireguardPeerFlags::RemoveMe)]),
        ];
        let mut generic =
            GenlMessage::from_payload(WireguardMessage { cmd: WireguardCmd::SetDevice, attributes });
        generic.set_resolved_family_id(30);
        let sent = Message(generic);
        assert_eq!(format!("{sent:?}"), "Message { .. }");
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(sent));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let read = NetlinkMessage::<Message>::deserialize(&bytes).unwrap();
        let (NetlinkPayload::InnerMessage(read), NetlinkPayload::InnerMessage(sent)) =
            (&read.payload, &message.payload)
        else {
            panic!("not a message of the family")
        };
        assert_eq!(read.0.payload.attributes, sent.0.payload.attributes);
    }
}
