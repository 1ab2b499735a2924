//! The four messages on the wire (paper, section 5.4): their lengths and their layouts.
//!
//! Integers are little endian. Parsing never panics, whatever the bytes.

use wireloom_types::KEY_LEN;

use crate::drop_reason::DropReason;

/// Length of a ChaCha20-Poly1305 authentication tag, in bytes.
pub const TAG_LEN: usize = 16;
/// Length of MAC1, MAC2 and a cookie, in bytes.
pub const MAC_LEN: usize = 16;
/// Length of an initiation, in bytes.
pub const INITIATION_LEN: usize = 148;
/// Length of a response, in bytes.
pub const RESPONSE_LEN: usize = 92;
/// Length of a cookie reply, in bytes.
pub const COOKIE_REPLY_LEN: usize = 64;
/// Length of a data message's header, in bytes: type, receiver index, counter.
pub const DATA_HEADER_LEN: usize = 16;
/// Length of a data message without its payload, in bytes: a keepalive has this length.
pub const DATA_OVERHEAD: usize = DATA_HEADER_LEN + TAG_LEN;
/// Payloads are padded to a multiple of this many bytes.
pub const PADDING: usize = 16;

/// Length of the nonce of a cookie reply, in bytes (XChaCha20-Poly1305).
pub const COOKIE_NONCE_LEN: usize = 24;
/// Length of the timestamp of an initiation before encryption, in bytes (TAI64N).
pub const TIMESTAMP_LEN: usize = 12;

/// The type of a message, which its first byte tells. The next three bytes are reserved and zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// The first message of a handshake.
    Initiation = 1,
    /// The second message of a handshake.
    Response = 2,
    /// The answer of a receiver under load.
    CookieReply = 3,
    /// An encrypted packet, or a keepalive.
    Data = 4,
}

impl MessageKind {
    /// Reads a datagram's type and checks its length.
    ///
    /// # Errors
    /// [`DropReason::BadType`] when the first four bytes name no type; [`DropReason::BadLength`] when there are fewer
    /// than four bytes, or too few or too many for the type.
    pub fn classify(datagram: &[u8]) -> Result<Self, DropReason> {
        let Some(header) = datagram.first_chunk::<4>() else {
            return Err(DropReason::BadLength);
        };
        let (kind, fits) = match u32::from_le_bytes(*header) {
            1 => (Self::Initiation, datagram.len() == INITIATION_LEN),
            2 => (Self::Response, datagram.len() == RESPONSE_LEN),
            3 => (Self::CookieReply, datagram.len() == COOKIE_REPLY_LEN),
            4 => (Self::Data, datagram.len() >= DATA_OVERHEAD),
            _ => return Err(DropReason::BadType),
        };
        if fits { Ok(kind) } else { Err(DropReason::BadLength) }
    }

    const fn header(self) -> [u8; 4] {
        (self as u32).to_le_bytes()
    }
}

/// The length of a payload after padding, in bytes: the next multiple of [`PADDING`], but not more than the MTU, so
/// that padding never makes a datagram too big.
///
/// Of a payload longer than the MTU, only the part behind the last whole MTU is padded, as in the kernel's
/// `calculate_skb_padding`. An `mtu` of 0 means no limit.
#[must_use]
pub const fn padded_len(payload: usize, mtu: usize) -> usize {
    if mtu == 0 {
        return payload.next_multiple_of(PADDING);
    }
    let last = if payload > mtu { payload % mtu } else { payload };
    let padded = last.next_multiple_of(PADDING);
    let padded = if padded > mtu { mtu } else { padded };
    payload - last + padded
}

/// The length of the data message for a payload of `payload` bytes, in bytes.
#[must_use]
pub const fn data_len(payload: usize, mtu: usize) -> usize {
    DATA_OVERHEAD + padded_len(payload, mtu)
}

/// Lays out a data message at the start of `buffer`, for [`PeerPath::seal`](crate::PeerPath::seal): the payload, of
/// `payload` bytes, is already at offset [`DATA_HEADER_LEN`], and this zeroes its padding. Returns the message, of
/// [`data_len`] bytes.
///
/// # Panics
/// When the buffer is shorter than [`data_len`].
pub fn frame(buffer: &mut [u8], payload: usize, mtu: usize) -> &mut [u8] {
    let message = &mut buffer[..data_len(payload, mtu)];
    let end = message.len() - TAG_LEN;
    message[DATA_HEADER_LEN + payload..end].fill(0);
    message
}

/// The header of a data message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHeader {
    /// The receiver's index of the session.
    pub receiver: u32,
    /// The nonce, which the replay window checks as well.
    pub counter: u64,
}

impl DataHeader {
    /// Reads the header of a data message.
    ///
    /// # Errors
    /// [`DropReason::BadType`] when it is not a data message, [`DropReason::BadLength`] when it is too short.
    pub fn parse(datagram: &[u8]) -> Result<Self, DropReason> {
        if MessageKind::classify(datagram)? != MessageKind::Data {
            return Err(DropReason::BadType);
        }
        let mut reader = Reader::new(datagram, MessageKind::Data)?;
        Ok(Self { receiver: u32::from_le_bytes(reader.take()?), counter: u64::from_le_bytes(reader.take()?) })
    }

    /// Writes the header to the start of a message.
    pub(crate) fn write(self, message: &mut [u8]) {
        message[..4].copy_from_slice(&MessageKind::Data.header());
        message[4..8].copy_from_slice(&self.receiver.to_le_bytes());
        message[8..DATA_HEADER_LEN].copy_from_slice(&self.counter.to_le_bytes());
    }
}

/// The two message authentication codes at the end of an initiation or a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Macs {
    /// Proves that the sender knows the receiver's public key.
    pub mac1: [u8; MAC_LEN],
    /// Proves that the sender has a fresh cookie, and so receives at its source address. Zero without a cookie.
    pub mac2: [u8; MAC_LEN],
}

impl Macs {
    /// Length of both, in bytes.
    pub const LEN: usize = 2 * MAC_LEN;
}

/// An initiation: the first message of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initiation {
    /// The sender's index of the handshake, and then of the session.
    pub sender: u32,
    /// The Noise message: ephemeral key, encrypted static key and encrypted timestamp.
    pub noise: [u8; Self::NOISE_LEN],
    /// The message authentication codes.
    pub macs: Macs,
}

impl Initiation {
    /// Length of the Noise message, in bytes.
    pub const NOISE_LEN: usize = KEY_LEN + KEY_LEN + TAG_LEN + TIMESTAMP_LEN + TAG_LEN;

    /// Reads an initiation.
    ///
    /// # Errors
    /// [`DropReason::BadType`] when it is not an initiation, [`DropReason::BadLength`] when its length is wrong.
    pub fn parse(datagram: &[u8]) -> Result<Self, DropReason> {
        let mut reader = Reader::new(datagram, MessageKind::Initiation)?;
        Ok(Self { sender: u32::from_le_bytes(reader.take()?), noise: reader.take()?, macs: reader.macs()? })
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; INITIATION_LEN] {
        let mut bytes = [0; INITIATION_LEN];
        bytes[..4].copy_from_slice(&MessageKind::Initiation.header());
        bytes[4..8].copy_from_slice(&self.sender.to_le_bytes());
        bytes[8..116].copy_from_slice(&self.noise);
        bytes[116..132].copy_from_slice(&self.macs.mac1);
        bytes[132..].copy_from_slice(&self.macs.mac2);
        bytes
    }
}

/// A response: the second message of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The sender's index of the handshake, and then of the session.
    pub sender: u32,
    /// The sender index of the initiation.
    pub receiver: u32,
    /// The Noise message: ephemeral key and the tag of an empty payload.
    pub noise: [u8; Self::NOISE_LEN],
    /// The message authentication codes.
    pub macs: Macs,
}

impl Response {
    /// Length of the Noise message, in bytes.
    pub const NOISE_LEN: usize = KEY_LEN + TAG_LEN;

    /// Reads a response.
    ///
    /// # Errors
    /// [`DropReason::BadType`] when it is not a response, [`DropReason::BadLength`] when its length is wrong.
    pub fn parse(datagram: &[u8]) -> Result<Self, DropReason> {
        let mut reader = Reader::new(datagram, MessageKind::Response)?;
        Ok(Self {
            sender: u32::from_le_bytes(reader.take()?),
            receiver: u32::from_le_bytes(reader.take()?),
            noise: reader.take()?,
            macs: reader.macs()?,
        })
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; RESPONSE_LEN] {
        let mut bytes = [0; RESPONSE_LEN];
        bytes[..4].copy_from_slice(&MessageKind::Response.header());
        bytes[4..8].copy_from_slice(&self.sender.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.receiver.to_le_bytes());
        bytes[12..60].copy_from_slice(&self.noise);
        bytes[60..76].copy_from_slice(&self.macs.mac1);
        bytes[76..].copy_from_slice(&self.macs.mac2);
        bytes
    }
}

/// A cookie reply: the answer of a receiver under load, with a cookie that only the sender of the message can decrypt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookieReply {
    /// The sender index of the message that this one answers.
    pub receiver: u32,
    /// The nonce for XChaCha20-Poly1305.
    pub nonce: [u8; COOKIE_NONCE_LEN],
    /// The encrypted cookie and its tag.
    pub encrypted_cookie: [u8; MAC_LEN + TAG_LEN],
}

impl CookieReply {
    /// Reads a cookie reply.
    ///
    /// # Errors
    /// [`DropReason::BadType`] when it is not a cookie reply, [`DropReason::BadLength`] when its length is wrong.
    pub fn parse(datagram: &[u8]) -> Result<Self, DropReason> {
        let mut reader = Reader::new(datagram, MessageKind::CookieReply)?;
        Ok(Self {
            receiver: u32::from_le_bytes(reader.take()?),
            nonce: reader.take()?,
            encrypted_cookie: reader.take()?,
        })
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; COOKIE_REPLY_LEN] {
        let mut bytes = [0; COOKIE_REPLY_LEN];
        bytes[..4].copy_from_slice(&MessageKind::CookieReply.header());
        bytes[4..8].copy_from_slice(&self.receiver.to_le_bytes());
        bytes[8..32].copy_from_slice(&self.nonce);
        bytes[32..].copy_from_slice(&self.encrypted_cookie);
        bytes
    }
}

/// Reads the fields of a datagram, one after the other, once its type and length are checked.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn new(datagram: &'a [u8], expected: MessageKind) -> Result<Self, DropReason> {
        if MessageKind::classify(datagram)? != expected {
            return Err(DropReason::BadType);
        }
        Ok(Self { rest: &datagram[4..] })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], DropReason> {
        let (field, rest) = self.rest.split_first_chunk().ok_or(DropReason::BadLength)?;
        self.rest = rest;
        Ok(*field)
    }

    fn macs(&mut self) -> Result<Macs, DropReason> {
        Ok(Macs { mac1: self.take()?, mac2: self.take()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_padded_as_in_the_kernel() {
        for (payload, mtu, padded) in [
            (0, 1420, 0),
            (1, 1420, 16),
            (16, 1420, 16),
            (17, 1420, 32),
            (1408, 1420, 1408),
            (1409, 1420, 1420),
            (1420, 1420, 1420),
            (1409, 0, 1424),
            // Longer than the MTU: only the part behind the last whole MTU is padded.
            (1421, 1420, 1436),
            (2840, 1420, 2840),
        ] {
            assert_eq!(padded_len(payload, mtu), padded, "{payload} {mtu}");
        }
    }

    #[test]
    fn frame_zeroes_the_padding_and_nothing_else() {
        let mut buffer = [0xff; 100];
        let message = frame(&mut buffer, 20, 1420);
        assert_eq!(message.len(), 16 + 32 + 16);
        assert_eq!(message[16..36], [0xff; 20]);
        assert_eq!(message[36..48], [0; 12]);
        assert_eq!(buffer[64..], [0xff; 36]);
    }

    #[test]
    fn a_datagram_whose_reserved_bytes_are_not_zero_is_refused() {
        for place in 1..4 {
            let mut bytes = [0; INITIATION_LEN];
            bytes[0] = 1;
            assert_eq!(MessageKind::classify(&bytes), Ok(MessageKind::Initiation));
            bytes[place] = 1;
            assert_eq!(MessageKind::classify(&bytes), Err(DropReason::BadType));
        }
    }
}
