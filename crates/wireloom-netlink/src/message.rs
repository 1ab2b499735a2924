//! Messages on the wire: a datagram holds one or more.

use std::{fmt, mem};

use netlink_packet_core::{
    DecodeError, NLM_F_ACK_TLVS, NLMSG_ALIGNTO, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, Parseable,
};
use nix::errno::Errno;
use zeroize::Zeroize as _;

use crate::{Error, Refusal};

/// `struct nlmsghdr`, bytes.
const HEADER_LEN: usize = 16;

/// `NLMSGERR_ATTR_MSG` of include/uapi/linux/netlink.h.
const REASON: u16 = 1;

/// The payload of a message, sent and received.
pub trait Message: NetlinkSerializable + NetlinkDeserializable + Clone + fmt::Debug {}

impl<M: NetlinkSerializable + NetlinkDeserializable + Clone + fmt::Debug> Message for M {}

/// The messages of a datagram. After an error there are no more.
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    rest: &'a [u8],
    namespace: Option<i32>,
}

/// One message whose payload is not parsed yet.
#[derive(Debug, Clone)]
pub struct RawMessage<'a> {
    /// Its header.
    pub header: NetlinkHeader,
    bytes: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(crate) fn of(datagram: &'a [u8]) -> Self {
        Self { rest: datagram, namespace: None }
    }

    pub(crate) fn of_namespace(self, namespace: Option<i32>) -> Self {
        Self { namespace, ..self }
    }

    /// The number that our network namespace has for the one that they came from; `None` is our own.
    #[must_use]
    pub fn namespace(&self) -> Option<i32> {
        self.namespace
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<RawMessage<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = mem::take(&mut self.rest);
        if bytes.len() < HEADER_LEN {
            return None;
        }
        Some(match NetlinkBuffer::new_checked(bytes).and_then(|buffer| NetlinkHeader::parse(&buffer)) {
            Ok(header) => {
                let (bytes, rest) = bytes.split_at(header.length as usize);
                self.rest = rest.get(padding(bytes.len())..).unwrap_or_default();
                Ok(RawMessage { header, bytes })
            }
            Err(error) => Err(Error::Unreadable(error.to_string())),
        })
    }
}

/// Messages are aligned to 4 bytes.
fn padding(length: usize) -> usize {
    length.next_multiple_of(NLMSG_ALIGNTO as usize) - length
}

impl<'a> RawMessage<'a> {
    /// What follows the header.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[HEADER_LEN..]
    }

    /// Parses the payload.
    ///
    /// # Errors
    /// The payload is no `M`.
    pub fn parse<M: Message>(&self) -> Result<NetlinkPayload<M>, DecodeError> {
        NetlinkMessage::deserialize(self.bytes).map(|message| message.payload)
    }

    /// The refusal that this message is, given its error code.
    pub(crate) fn refusal(&self, code: i32) -> Refusal {
        Refusal { errno: Errno::from_raw(code.saturating_abs()), reason: self.reason() }
    }

    /// The kernel's own words: attributes after the error code and the header of our request
    /// (`netlink_ack` in net/netlink/af_netlink.c; the rest of the request is left out).
    fn reason(&self) -> Option<String> {
        const BEFORE: usize = mem::size_of::<i32>() + HEADER_LEN;
        if self.header.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let mut rest = self.payload().get(BEFORE..)?;
        while let Some((head, _)) = rest.split_first_chunk::<4>() {
            let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
            let value = rest.get(4..length)?;
            if u16::from_ne_bytes([head[2], head[3]]) == REASON {
                let text = value.strip_suffix(b"\0").unwrap_or(value);
                return Some(String::from_utf8_lossy(text).into_owned());
            }
            rest = rest.get(length.next_multiple_of(4)..)?;
        }
        None
    }
}

/// Appends a request to a datagram, aligned. Where the datagram has to move to a larger piece of memory, the one before
/// is wiped: it may hold keys.
pub(crate) fn append<M: Message>(datagram: &mut Vec<u8>, message: M, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let (start, length) = (datagram.len(), message.buffer_len());
    let end = start + length + padding(length);
    if end > datagram.capacity() {
        let mut larger = Vec::with_capacity(end.next_power_of_two());
        larger.extend_from_slice(datagram);
        mem::replace(datagram, larger).zeroize();
    }
    datagram.resize(end, 0);
    message.serialize(&mut datagram[start..]);
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NLMSG_ERROR;

    use super::*;

    /// The kernel's answer to a rule for a table that does not exist: an error with a reason.
    fn refusal() -> Vec<u8> {
        let words = b"ipv4: FIB table does not exist\0";
        let attribute = 4 + words.len();
        let length = HEADER_LEN + 4 + HEADER_LEN + attribute;
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(length).unwrap().to_ne_bytes());
        bytes.extend(NLMSG_ERROR.to_ne_bytes());
        bytes.extend((0x100 | NLM_F_ACK_TLVS).to_ne_bytes());
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend(1234u32.to_ne_bytes());
        bytes.extend((-(Errno::ENOENT as i32)).to_ne_bytes());
        bytes.extend([0; HEADER_LEN]);
        bytes.extend(u16::try_from(attribute).unwrap().to_ne_bytes());
        bytes.extend(REASON.to_ne_bytes());
        bytes.extend(words);
        bytes
    }

    #[test]
    fn the_kernels_reason_is_kept() {
        let bytes = refusal();
        let messages: Vec<_> = Messages::of(&bytes).map(Result::unwrap).collect();
        let [message] = messages.as_slice() else { panic!("{messages:?}") };
        assert_eq!((message.header.sequence_number, message.header.port_number), (7, 1234));
        let refusal = message.refusal(-(Errno::ENOENT as i32));
        assert_eq!(refusal.to_string(), "ipv4: FIB table does not exist (No such file or directory)");
    }

    #[test]
    fn messages_are_aligned() {
        let mut bytes = refusal();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(refusal());
        assert_eq!(Messages::of(&bytes).filter(Result::is_ok).count(), 2);
    }

    #[test]
    fn a_truncated_message_is_an_error_and_not_a_panic() {
        let bytes = refusal();
        for cut in 0..bytes.len() {
            let messages: Vec<_> = Messages::of(&bytes[..cut]).collect();
            assert!(messages.iter().all(Result::is_err), "{cut}");
            assert_eq!(messages.len(), usize::from(cut >= HEADER_LEN), "{cut}");
        }
        let mut short = bytes;
        short[0] = 3;
        assert!(Messages::of(&short).next().unwrap().is_err());
    }

    #[test]
    fn attributes_with_wrong_lengths_do_not_panic() {
        let mut bytes = refusal();
        for length in 0..=u16::MAX {
            bytes[36..38].copy_from_slice(&length.to_ne_bytes());
            for message in Messages::of(&bytes) {
                let _ = message.unwrap().reason();
            }
        }
    }
}
