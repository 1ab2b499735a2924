//! Two questions to the kernel's nftables (include/uapi/linux/netfilter/nf_tables.h), in netlink.

use netlink_packet_core::{NLM_F_REQUEST, NLMSG_ERROR};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;

use super::{super::error::Cause, super::netlink::for_each_message, TABLE};

/// The number of the last transaction, of whatever table (`NFT_MSG_GETGEN`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Generation([u8; 4]);

/// `NFNL_SUBSYS_NFTABLES` of include/uapi/linux/netfilter/nfnetlink.h.
pub(super) const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET` of include/uapi/linux/netfilter.h.
pub(super) const INET: u8 = 1;
/// `nlmsghdr` and `nfgenmsg`, bytes.
const HEADERS: usize = 16 + 4;

/// `None` on a kernel without nftables.
pub(super) fn generation() -> Result<Option<Generation>, Cause> {
    const GET_GENERATION: u16 = 16;
    let Some(reply) = ask(GET_GENERATION, 0, &[])? else { return Ok(None) };
    let generation = first_attribute(&reply).and_then(|value| value.try_into().ok());
    generation.map(Generation).map(Some).ok_or_else(|| Cause::Told("nftables tells no generation".into()))
}

/// Whether our table is there.
pub(super) fn table_exists() -> Result<bool, Cause> {
    const GET_TABLE: u16 = 1;
    let name: Vec<u8> = TABLE.bytes().chain([0]).collect();
    Ok(ask(GET_TABLE, INET, &name)?.is_some())
}

/// The first attribute of a message: the table's name of all objects in a table
/// (`NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE` and so on are all 1), the number of a generation.
pub(super) fn first_attribute(message: &[u8]) -> Option<&[u8]> {
    let [l0, l1, k0, k1] = *message.get(HEADERS..)?.first_chunk()?;
    let length = usize::from(u16::from_ne_bytes([l0, l1]));
    // NLA_TYPE_MASK of include/uapi/linux/netlink.h
    let kind = u16::from_ne_bytes([k0, k1]) & 0x3fff;
    message.get(HEADERS + 4..HEADERS + length).filter(|_| kind == 1)
}

/// Asks for one object, by the attribute of type 1 if it is not empty; `None` when there is none.
fn ask(message: u16, family: u8, attribute: &[u8]) -> Result<Option<Vec<u8>>, Cause> {
    let mut socket = match Socket::new(NETLINK_NETFILTER) {
        // A kernel without netfilter has nothing of it.
        Err(error) if error.raw_os_error() == Some(Errno::EPROTONOSUPPORT as i32) => return Ok(None),
        socket => socket?,
    };
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(message, family, attribute), 0)?;
    let mut reply = Vec::with_capacity(8 << 10);
    socket.recv(&mut reply, 0)?;
    let mut answer = Err(Cause::Told("nftables gives no answer".into()));
    for_each_message(&reply, |header, bytes| {
        answer = match (header.message_type, bytes.get(16..20).and_then(|code| code.try_into().ok())) {
            (NLMSG_ERROR, Some(code)) => match Errno::from_raw(i32::from_ne_bytes(code).saturating_neg()) {
                // A kernel without nftables does not know what is asked.
                Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP => Ok(None),
                errno => Err(errno.into()),
            },
            _ => Ok(Some(bytes.to_vec())),
        };
    })?;
    answer
}

fn request(message: u16, family: u8, attribute: &[u8]) -> Vec<u8> {
    let attribute_length = if attribute.is_empty() { 0 } else { 4 + attribute.len() };
    let length = (HEADERS + attribute_length).next_multiple_of(4);
    let mut request = Vec::with_capacity(length);
    request.extend((length as u32).to_ne_bytes());
    request.extend((SUBSYSTEM << 8 | message).to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 8]); // sequence and port
    request.extend([family, 0, 0, 0]);
    if !attribute.is_empty() {
        request.extend((attribute_length as u16).to_ne_bytes());
        request.extend(1_u16.to_ne_bytes());
        request.extend(attribute);
    }
    request.resize(length, 0);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attribute_is_read_or_there_is_none() {
        let message = request(1, INET, b"wireloom\0");
        assert_eq!(first_attribute(&message), Some(&b"wireloom\0"[..]));
        assert_eq!(first_attribute(&request(16, 0, &[])), None);
        for cut in 0..message.len() {
            let _ = first_attribute(&message[..cut]);
        }
        let mut lying = message.clone();
        lying[20] = 2;
        assert_eq!(first_attribute(&lying), None);
        lying[20] = 200;
        assert_eq!(first_attribute(&lying), None);
    }
}
