//! Handshake messages with a valid MAC1, each from another source: whoever knows a device's public key can make them.

use std::{
    io,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use blake2::{
    Blake2s256, Blake2sMac,
    digest::{Digest as _, FixedOutput as _, KeyInit as _, Update as _, consts::U16},
};
use socket2::{Domain, Protocol, Socket, Type};
use wireloom_lab::{Noise, Space};

/// How often a sender that keeps to a rate looks at the clock and sends what is due, as a burst.
const TICK: Duration = Duration::from_micros(200);
/// The longest burst. A sender that falls further behind does not offer the load that it should.
const BURST: u64 = 1000;
/// How many datagrams are sent between two looks whether it is over.
const LOOK: u64 = 64;
/// `IPPROTO_RAW`: the sender writes the IP header (raw(7)).
const RAW: i32 = 255;
/// Of an IPv4 header and a UDP header.
const HEADERS: usize = 20 + 8;
/// An initiation: type, sender, ephemeral key, encrypted key, encrypted timestamp, MAC1, MAC2 (paper, section 5.4.2).
const INITIATION: usize = 148;
const MAC1_AT: usize = INITIATION - 32;
/// Initiations to choose from. The device that gets them cannot tell that they are not new.
const KINDS: usize = 1024;

/// A sender of initiations that nobody can answer.
pub(crate) struct Flood {
    socket: Socket,
    to: SocketAddr,
    packets: Vec<[u8; HEADERS + INITIATION]>,
    noise: Noise,
}

impl Flood {
    /// Prepares a flood from a machine to an IPv4 address and port, for the device with this public key.
    pub(crate) fn new(from: &Space, to: SocketAddr, key: &[u8; 32]) -> anyhow::Result<Self> {
        let SocketAddr::V4(address) = to else { anyhow::bail!("the flood is IPv4") };
        let open = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW)));
        let socket = from.inside(open)?.context("cannot open a raw socket")?;
        let mut noise = Noise::new(1);
        let mac1_key = Blake2s256::new().chain_update(b"mac1----").chain_update(key).finalize();
        let packet = |_| {
            let mut packet = [0; HEADERS + INITIATION];
            // Version and length, time to live, UDP. The kernel fills in length, identification and checksum (raw(7)).
            (packet[0], packet[8], packet[9]) = (0x45, 64, 17);
            packet[16..20].copy_from_slice(&address.ip().octets());
            packet[22..24].copy_from_slice(&address.port().to_be_bytes());
            // A UDP checksum of zero is none (RFC 768).
            packet[24..26].copy_from_slice(&((8 + INITIATION) as u16).to_be_bytes());
            let message = &mut packet[HEADERS..];
            message[4..MAC1_AT].copy_from_slice(&noise.bytes(MAC1_AT - 4));
            message[0] = 1;
            let mut mac = Blake2sMac::<U16>::new_from_slice(&mac1_key).expect("the key has 32 bytes");
            mac.update(&message[..MAC1_AT]);
            message[MAC1_AT..][..16].copy_from_slice(&mac.finalize_fixed());
            packet
        };
        let packets = (0..KINDS).map(packet).collect();
        Ok(Self { socket, to, packets, noise })
    }

    /// Sends until it is over, at a rate or as fast as it can. Returns how many it sent each second.
    pub(crate) fn run(mut self, rate: Option<f64>, over: impl Fn() -> bool) -> anyhow::Result<f64> {
        let start = Instant::now();
        let mut sent = 0;
        while !over() {
            let due = match rate {
                Some(rate) => {
                    thread::sleep(TICK);
                    ((start.elapsed().as_secs_f64() * rate) as u64).saturating_sub(sent).min(BURST)
                }
                None => LOOK,
            };
            for _ in 0..due {
                match self.send() {
                    // The queue of the interface is full: a sender on a real cable would wait.
                    Err(error)
                        if error.kind() != io::ErrorKind::WouldBlock && error.raw_os_error() != Some(105) =>
                    {
                        return Err(error).context("cannot send the flood");
                    }
                    Ok(()) | Err(_) => sent += 1,
                }
            }
        }
        Ok(sent as f64 / start.elapsed().as_secs_f64())
    }

    /// Sends one datagram from 172.16.0.0/12 and any port.
    fn send(&mut self) -> io::Result<()> {
        let random = self.noise.number().to_le_bytes();
        let kind = usize::from(u16::from_le_bytes([random[0], random[1]])) % KINDS;
        let packet = &mut self.packets[kind];
        packet[12..16].copy_from_slice(&[172, 16 | random[2] & 0xf, random[3], random[4]]);
        packet[20..22].copy_from_slice(&[random[5] | 0x80, random[6]]);
        self.socket.send_to(packet, &self.to.into()).map(drop)
    }
}
