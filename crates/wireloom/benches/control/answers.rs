//! Thousands of peers that answer handshakes, at addresses of their own on the stranger's machine.

use std::{
    fmt::Write as _,
    io::{IoSlice, IoSliceMut},
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt,
};
use wireloom_lab::control;
use wireloom_proto::{Device, Now, UnixTime};
use wireloom_types::{PrivateKey, PublicKey};

use crate::ground::Ground;

/// Where all of them receive.
const PORT: u16 = 777;
/// The address of the first one, in the stranger's part of the world.
const FIRST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
/// The receive buffer: no response may be missing because this thread was late.
const BUFFER: usize = 16 << 20;
/// How often it looks whether it is over.
const LOOK: Duration = Duration::from_millis(10);
const INITIATION: u8 = 1;

/// Peers of the measured device. One thread has the keys of all.
pub(crate) struct Answering {
    socket: UdpSocket,
    keys: Vec<PrivateKey>,
    measured: PublicKey,
}

impl Answering {
    /// Prepares this many peers, of which the measured device does not know yet.
    pub(crate) fn new(ground: &Ground, count: u32) -> anyhow::Result<Self> {
        ground.stranger.run("ip route add local 172.16.0.0/12 dev lo")?;
        let socket = ground.stranger.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))??;
        socket.set_read_timeout(Some(LOOK))?;
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &BUFFER))?;
        let key = |number: u32| {
            let mut key = [0x77; 32];
            // The lowest bits of a private key do not count.
            key[1..5].copy_from_slice(&number.to_le_bytes());
            PrivateKey::from_bytes(key)
        };
        let measured = PublicKey::from_bytes(ground.key);
        Ok(Self { socket, keys: (0..count).map(key).collect(), measured })
    }

    /// Has the measured device begin a handshake with all of them, by one request.
    pub(crate) fn introduce(&self, ground: &Ground) -> anyhow::Result<()> {
        let mut request = "set=1\n".to_owned();
        for (key, place) in self.keys.iter().zip(0..) {
            let endpoint = Ipv4Addr::from_bits(FIRST.to_bits() + place);
            let _ = write!(
                request,
                "public_key={}\nendpoint={endpoint}:{PORT}\npersistent_keepalive_interval=25\n",
                key.public_key().to_hex()
            );
        }
        request += "\n";
        let answer = control::request(&ground.measured, "wg0", request.as_bytes())?;
        anyhow::ensure!(answer == "errno=0\n\n", "the control socket answered {answer:?}");
        Ok(())
    }

    /// How many of them, in percent, the measured device has had a session with.
    pub(crate) fn connected(&self, ground: &Ground) -> anyhow::Result<f64> {
        let all = ground.measured.run("wg show wg0 latest-handshakes")?;
        let connected = all.lines().filter(|line| !line.ends_with("\t0")).count();
        // The peer that pings is one of those.
        Ok((connected.saturating_sub(1)) as f64 / self.keys.len() as f64 * 100.0)
    }

    /// Answers until it is over.
    pub(crate) fn answer(&self, over: &AtomicBool) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut buffer = [0; 2048];
        while !over.load(Ordering::Relaxed) {
            let mut control = nix::cmsg_space!(nix::libc::in_pktinfo);
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let flags = MsgFlags::empty();
            // Nothing has come, mostly.
            let Ok(message) =
                recvmsg::<SockaddrIn>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags)
            else {
                continue;
            };
            let reached = message.cmsgs()?.find_map(|part| match part {
                ControlMessageOwned::Ipv4PacketInfo(info) => Some(info.ipi_addr),
                _ => None,
            });
            let (Some(from), Some(reached), len) = (message.address, reached, message.bytes) else {
                continue;
            };
            let place = u32::from_be(reached.s_addr).wrapping_sub(FIRST.to_bits());
            let Some(key) = self.keys.get(place as usize).filter(|_| buffer[0] == INITIATION) else {
                continue;
            };
            let elapsed = Duration::from_secs(1000) + start.elapsed();
            let now = Now {
                monotonic: wireloom_proto::Instant::from_origin(elapsed),
                unix: UnixTime::from_epoch(elapsed),
            };
            let response = self.respond(key, now, from.into(), &buffer[..len])?;
            let source = nix::libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: reached, ipi_addr: reached };
            let parts = [IoSlice::new(&response)];
            let control = [ControlMessage::Ipv4PacketInfo(&source)];
            sendmsg(self.socket.as_raw_fd(), &parts, &control, flags, Some(&from))?;
        }
        Ok(())
    }

    /// The response of the peer with this key. It is a device of its own, which knows of no load.
    fn respond(
        &self,
        key: &PrivateKey,
        now: Now,
        from: std::net::SocketAddr,
        initiation: &[u8],
    ) -> anyhow::Result<Vec<u8>> {
        let mut device = Device::new(&[0x77; 32]);
        device.configure(now, |configuration| {
            configuration.set_private_key(Some(key.clone()));
            configuration.add_peer(self.measured).map(drop)
        })?;
        device.handle_handshake(now, from.into(), initiation)?;
        let response = device.poll_transmit(now).context("an initiation was not answered")?;
        Ok(response.datagram.to_vec())
    }
}
