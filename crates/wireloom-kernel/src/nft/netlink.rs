//! Netlink queries of the kernel's nftables (include/uapi/linux/netfilter/nf_tables.h): cheaper than
//! starting `nft`.

use std::{io, iter};

use netlink_packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use nix::errno::Errno;
use wireloom_netlink::{Client, Protocol};

use super::TABLE;
use crate::error::Cause;

/// The number of the last transaction of any table (`NFT_MSG_GETGEN`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Generation([u8; 4]);

/// `NFNL_SUBSYS_NFTABLES` of include/uapi/linux/netfilter/nfnetlink.h.
pub(super) const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET` of include/uapi/linux/netfilter.h.
pub(super) const INET: u8 = 1;
/// `struct nfgenmsg`, bytes.
const HEADER_LEN: usize = 4;

/// `None` on a kernel without nftables.
pub(super) fn generation() -> Result<Option<Generation>, Cause> {
    const GET_GENERATION: u16 = 16;
    let Some(answer) = ask(&Message::new(GET_GENERATION, 0, &[]))? else { return Ok(None) };
    let generation = first_attribute(&answer.payload).and_then(|value| value.try_into().ok());
    let missing = || Cause::Permanent("the kernel's answer lacks the generation of nftables".into());
    generation.map(Generation).map(Some).ok_or_else(missing)
}

/// Whether our table exists.
pub(super) fn table_exists() -> Result<bool, Cause> {
    const GET_TABLE: u16 = 1;
    let name: Vec<u8> = TABLE.bytes().chain([0]).collect();
    Ok(ask(&Message::new(GET_TABLE, INET, &name))?.is_some())
}

/// Whether Felix has chains here: their names hold `cali-`, in the tables `filter`, `nat`, `mangle` and `raw` that
/// iptables-nft makes, and in Felix's own.
pub(super) fn has_felix() -> Result<bool, Cause> {
    const GET_CHAIN: u16 = 4;
    /// `NFTA_CHAIN_NAME`
    const NAME: u16 = 3;
    Ok(dump(GET_CHAIN)?
        .iter()
        .any(|chain| attribute(chain, NAME).is_some_and(|name| name.windows(5).any(|part| part == b"cali-"))))
}

/// The payloads of all objects of a kind, in the tables of all families; none on a kernel without nftables. `request`
/// is `NFT_MSG_GET…`.
pub(super) fn dump(request: u16) -> Result<Vec<Vec<u8>>, Cause> {
    let mut client = match Client::open(Protocol::Netfilter) {
        Err(error) if is_without_netfilter(&error) => return Ok(Vec::new()),
        client => client?,
    };
    // NFPROTO_UNSPEC
    match client.dump(&Message::new(request, 0, &[])) {
        Ok(objects) => Ok(objects.into_iter().map(|object| object.payload).collect()),
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// The first attribute in a payload. In every object of a table it is the table's name
/// (`NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE` and so on are all 1); in a generation it is its number.
pub(super) fn first_attribute(payload: &[u8]) -> Option<&[u8]> {
    let (kind, value) = attributes(payload).next()?;
    (kind == 1).then_some(value)
}

/// The attribute of a type.
pub(super) fn attribute(payload: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(payload).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// The text in an attribute, without the zero that ends it.
pub(super) fn text(value: &[u8]) -> &[u8] {
    value.strip_suffix(b"\0").unwrap_or(value)
}

/// The attributes in a payload, by type, up to the first that does not fit.
fn attributes(payload: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    nested(payload.get(HEADER_LEN..).unwrap_or_default())
}

/// The attributes in an attribute, by type, up to the first that does not fit.
pub(super) fn nested(attribute: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = attribute;
    iter::from_fn(move || {
        let [l0, l1, k0, k1] = *rest.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        // NLA_TYPE_MASK of include/uapi/linux/netlink.h
        let kind = u16::from_ne_bytes([k0, k1]) & 0x3fff;
        let value = rest.get(4..length)?;
        // NLA_ALIGNTO
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The object that a request asks for; `None` when there is none.
fn ask(request: &Message) -> Result<Option<Message>, Cause> {
    let mut client = match Client::open(Protocol::Netfilter) {
        Err(error) if is_without_netfilter(&error) => return Ok(None),
        client => client?,
    };
    match client.get(request) {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether there is no such object. A kernel without nftables does not know the request.
fn is_absent(error: &wireloom_netlink::Error) -> bool {
    matches!(error.errno(), Some(Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP))
}

/// Whether a socket cannot be opened because the kernel has no netfilter.
pub(super) fn is_without_netfilter(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EPROTONOSUPPORT as i32)
}

/// A message of nftables.
#[derive(Debug, Clone)]
struct Message {
    /// `NFT_MSG_…`.
    kind: u16,
    payload: Vec<u8>,
}

impl Message {
    /// A message with an attribute of type 1, unless that is empty.
    fn new(kind: u16, family: u8, attribute: &[u8]) -> Self {
        let mut payload = vec![family, 0, 0, 0];
        if !attribute.is_empty() {
            payload.extend((4 + attribute.len() as u16).to_ne_bytes());
            payload.extend(1_u16.to_ne_bytes());
            payload.extend(attribute);
            payload.resize(payload.len().next_multiple_of(4), 0);
        }
        Self { kind, payload }
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        SUBSYSTEM << 8 | self.kind
    }

    fn buffer_len(&self) -> usize {
        self.payload.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.payload);
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self { kind: header.message_type & 0xff, payload: payload.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attribute_is_read_or_absent() {
        let payload = Message::new(1, INET, b"wireloom\0").payload;
        assert_eq!(first_attribute(&payload), Some(&b"wireloom\0"[..]));
        assert_eq!(first_attribute(&Message::new(16, 0, &[]).payload), None);
        for cut in 0..payload.len() {
            let _ = first_attribute(&payload[..cut]);
            assert_eq!(attribute(&payload[..cut], 3), None);
        }
        let mut lying = payload.clone();
        lying[HEADER_LEN] = 2;
        assert_eq!(first_attribute(&lying), None);
        lying[HEADER_LEN] = 200;
        assert_eq!(first_attribute(&lying), None);
    }

    #[test]
    fn a_later_attribute_is_found_behind_padding() {
        let mut payload = Message::new(4, 0, b"filter\0").payload;
        let name = Message::new(4, 0, b"cali-FORWARD\0").payload;
        let start = payload.len();
        payload.extend(&name[HEADER_LEN..]);
        payload[start + 2..start + 4].copy_from_slice(&3_u16.to_ne_bytes());
        assert_eq!(attribute(&payload, 3), Some(&b"cali-FORWARD\0"[..]));
        assert_eq!(attribute(&payload, 2), None);
    }
}
