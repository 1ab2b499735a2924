//! The four messages on the wire (paper, section 5.4), their lengths and layouts.
//!
//! All numbers are little endian. Encoding and parsing never panic, whatever the bytes.

use crate::drop_reason::DropReason;
use crate::handshake::timestamp::Tai64N;

/// Length of an authentication tag of ChaCha20-Poly1305, in bytes.
pub const TAG_LEN: usize = 16;
/// Length of MAC1, of MAC2 and of a cookie, in bytes.
pub const MAC_LEN: usize = 16;
/// Length of an initiation, in bytes.
pub const INITIATION_LEN: usize = 148;
/// Length of a response, in bytes.
pub const RESPONSE_LEN: usize = 92;
/// Length of a cookie reply, in bytes.
pub const COOKIE_REPLY_LEN: usize = 64;
/// Length of a data message's header, in bytes: type, receiver index, counter.
pub const DATA_HEADER_LEN: usize = 16;
/// What a data message adds to its padded payload, in bytes.
pub const DATA_OVERHEAD: usize = DATA_HEADER_LEN + TAG_LEN;
/// Payloads are padded to a multiple of this, in bytes.
pub const PADDING: usize = 16;

/// Length of the nonce of a cookie reply, in bytes (XChaCha20).
pub(crate) const COOKIE_NONCE_LEN: usize = 24;
const KEY_LEN: usize = 32;

/// The type of a message: its first byte; the three that follow are reserved and zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// First message of a handshake.
    Initiation = 1,
    /// Second message of a handshake.
    Response = 2,
    /// The answer of a responder under load.
    CookieReply = 3,
    /// An encrypted packet, or a keepalive.
    Data = 4,
}

impl MessageKind {
    /// Tells a datagram's type, and whether its length fits that.
    ///
    /// # Errors
    /// [`DropReason::BadType`] or [`DropReason::BadLength`].
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

/// The length of a payload after padding: the next multiple of 16, but never over the MTU, so that
/// padding alone never makes a datagram too big. As the kernel's `calculate_skb_padding`, a payload
/// longer than the MTU (a segmentation super-packet) is padded in its last MTU only. An `mtu` of 0
/// means no limit.
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

/// The length of the data message for a payload of this length, in bytes.
#[must_use]
pub const fn data_len(payload: usize, mtu: usize) -> usize {
    DATA_OVERHEAD + padded_len(payload, mtu)
}

/// Cuts from `buffer` the room of one data message whose payload of `payload` bytes stands at
/// [`DATA_HEADER_LEN`], and zeroes its padding: what [`PeerPath::seal`](crate::PeerPath::seal) takes.
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
    /// The index that the receiver chose for the session.
    pub receiver: u32,
    /// The nonce, also what the replay window checks.
    pub counter: u64,
}

impl DataHeader {
    /// Reads the header of a data message.
    ///
    /// # Errors
    /// What [`MessageKind::classify`] finds, or [`DropReason::BadType`] for another type.
    pub fn parse(datagram: &[u8]) -> Result<Self, DropReason> {
        if MessageKind::classify(datagram)? != MessageKind::Data {
            return Err(DropReason::BadType);
        }
        let mut reader = Reader::new(datagram, MessageKind::Data)?;
        Ok(Self { receiver: u32::from_le_bytes(reader.take()?), counter: u64::from_le_bytes(reader.take()?) })
    }

    /// Writes the header at the start of a message.
    pub(crate) fn write(self, message: &mut [u8]) {
        message[..4].copy_from_slice(&MessageKind::Data.header());
        message[4..8].copy_from_slice(&self.receiver.to_le_bytes());
        message[8..DATA_HEADER_LEN].copy_from_slice(&self.counter.to_le_bytes());
    }
}

/// The two authentication codes at the end of initiations and responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Macs {
    /// Proves knowledge of the receiver's public key.
    pub mac1: [u8; MAC_LEN],
    /// Proves a fresh cookie, that is: ownership of the source address. Zero without one.
    pub mac2: [u8; MAC_LEN],
}

impl Macs {
    /// What they take at the end of a message, in bytes.
    pub const LEN: usize = 2 * MAC_LEN;
}

/// First message of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initiation {
    /// The index that the sender chose.
    pub sender: u32,
    /// The Noise message: ephemeral key, encrypted static key, encrypted timestamp.
    pub noise: [u8; Self::NOISE_LEN],
    /// Authentication codes.
    pub macs: Macs,
}

impl Initiation {
    pub(crate) const NOISE_LEN: usize = KEY_LEN + KEY_LEN + TAG_LEN + Tai64N::LEN + TAG_LEN;

    /// Reads an initiation.
    ///
    /// # Errors
    /// [`DropReason::BadLength`] or [`DropReason::BadType`].
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

/// Second message of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The index that the sender chose.
    pub sender: u32,
    /// The index that the initiator chose.
    pub receiver: u32,
    /// The Noise message: ephemeral key, encrypted nothing.
    pub noise: [u8; Self::NOISE_LEN],
    /// Authentication codes.
    pub macs: Macs,
}

impl Response {
    pub(crate) const NOISE_LEN: usize = KEY_LEN + TAG_LEN;

    /// Reads a response.
    ///
    /// # Errors
    /// [`DropReason::BadLength`] or [`DropReason::BadType`].
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

/// The answer of a responder under load: a cookie, encrypted for whoever sent that message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookieReply {
    /// The sender index of the message that is answered.
    pub receiver: u32,
    /// The nonce of XChaCha20-Poly1305.
    pub nonce: [u8; COOKIE_NONCE_LEN],
    /// The cookie and its tag.
    pub encrypted_cookie: [u8; MAC_LEN + TAG_LEN],
}

impl CookieReply {
    /// Reads a cookie reply.
    ///
    /// # Errors
    /// [`DropReason::BadLength`] or [`DropReason::BadType`].
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

/// Takes fields from the front of a datagram whose type and length were checked.
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
    fn padding_follows_the_kernel() {
        for (payload, mtu, padded) in [
            (0, 1420, 0),
            (1, 1420, 16),
            (16, 1420, 16),
            (17, 1420, 32),
            (1408, 1420, 1408),
            (1409, 1420, 1420),
            (1420, 1420, 1420),
            (1409, 0, 1424),
            // Longer than the MTU: only the part beyond its last multiple is padded.
            (1421, 1420, 1436),
            (2840, 1420, 2840),
        ] {
            assert_eq!(padded_len(payload, mtu), padded, "{payload} {mtu}");
        }
    }

    #[test]
    fn frames_have_zero_padding() {
        let mut buffer = [0xff; 100];
        let message = frame(&mut buffer, 20, 1420);
        assert_eq!(message.len(), 16 + 32 + 16);
        assert_eq!(message[16..36], [0xff; 20]);
        assert_eq!(message[36..48], [0; 12]);
        assert_eq!(buffer[64..], [0xff; 36]);
    }

    #[test]
    fn reserved_bytes_are_zero() {
        for place in 1..4 {
            let mut bytes = [0; INITIATION_LEN];
            bytes[0] = 1;
            assert_eq!(MessageKind::classify(&bytes), Ok(MessageKind::Initiation));
            bytes[place] = 1;
            assert_eq!(MessageKind::classify(&bytes), Err(DropReason::BadType));
        }
    }
}
