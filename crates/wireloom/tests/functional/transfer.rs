//! Random bytes from one machine to another, compared at the far end with what was sent.

use std::{
    io::{self, Read, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use wireloom_lab::{PATIENCE, Space};

/// Bytes that follow from a seed (SplitMix64, <https://doi.org/10.1145/2714064.2660195>), so that whoever
/// receives them knows them.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// The next `len` bytes.
    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
        bytes
    }
}

/// Bytes compared at a time.
const CHUNK: usize = 1 << 16;

/// Sends this many chunks over each of this many TCP streams at a time.
#[track_caller]
pub(crate) fn streams(from: &Space, to: &Space, target: IpAddr, count: u64, chunks: usize) {
    thread::scope(|scope| {
        for seed in 0..count {
            let listener = to.inside(|| TcpListener::bind((target, 0)).unwrap()).unwrap();
            let address = listener.local_addr().unwrap();
            let mut client = from.inside(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            scope.spawn(move || {
                let mut noise = Noise::new(seed);
                for _ in 0..chunks {
                    client.write_all(&noise.bytes(CHUNK)).unwrap();
                }
            });
            scope.spawn(move || {
                server.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut noise = Noise::new(seed);
                let mut chunk = vec![0; CHUNK];
                for number in 0..chunks {
                    server.read_exact(&mut chunk).unwrap();
                    assert!(
                        chunk == noise.bytes(CHUNK),
                        "chunk {number} of stream {seed} to {target} differs"
                    );
                }
                assert_eq!(server.read(&mut chunk).unwrap(), 0, "more came than was sent");
            });
        }
    });
}

/// Two sockets: who sends, and who receives, with room for what may come at a time.
pub(crate) fn sockets(from: &Space, to: &Space, target: IpAddr) -> (UdpSocket, UdpSocket) {
    const ROOM: usize = 8 << 20;
    let receiver = to.inside(|| UdpSocket::bind((target, 0)).unwrap()).unwrap();
    setsockopt(&receiver, sockopt::RcvBufForce, &ROOM)
        .or_else(|_| setsockopt(&receiver, sockopt::RcvBuf, &ROOM))
        .unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let sender = from.inside(|| UdpSocket::bind((any, 0)).unwrap()).unwrap();
    let target: SocketAddr = receiver.local_addr().unwrap();
    from.inside(|| sender.connect(target).unwrap()).unwrap();
    (sender, receiver)
}

/// Sends bursts, each of 40 datagrams in one piece, as QUIC does, and then of one datagram as long as
/// UDP has them, which travels in fragments. `joined`: the receiver takes several datagrams at a time.
#[track_caller]
pub(crate) fn bursts(from: &Space, to: &Space, target: IpAddr, count: u64, joined: bool) {
    const DATAGRAMS: usize = 40;
    let (sender, receiver) = sockets(from, to, target);
    setsockopt(&receiver, sockopt::UdpGroSegment, &joined).unwrap();
    let mut buffer = vec![0; 1 << 16];
    for seed in 0..count {
        // Odd lengths among them, and a last datagram that is shorter.
        let length = 1_000 + seed as usize;
        let burst = Noise::new(seed).bytes(DATAGRAMS * length - 7);
        setsockopt(&sender, sockopt::UdpGsoSegment, &(length as i32)).unwrap();
        sender.send(&burst).unwrap();
        let mut received = Vec::new();
        while received.len() < burst.len() {
            let length_received = receiver.recv(&mut buffer).unwrap_or_else(|error| {
                panic!(
                    "after {} of {} bytes of burst {seed} to {target}: {error}",
                    received.len(),
                    burst.len()
                )
            });
            assert!(joined || length_received <= length, "{length_received} bytes in one datagram");
            received.extend_from_slice(&buffer[..length_received]);
        }
        assert!(received == burst, "burst {seed} to {target} differs");
        setsockopt(&sender, sockopt::UdpGsoSegment, &0).unwrap();
        let long = Noise::new(seed).bytes(60_001);
        // The first one may be what tells the stack of the path MTU, and is lost to that, on any path.
        let length_received = (0..2)
            .find_map(|_| {
                sender.send(&long).unwrap();
                receiver.recv(&mut buffer).ok()
            })
            .unwrap_or_else(|| panic!("the long datagram {seed} to {target} did not come"));
        assert!(buffer[..length_received] == long, "the long datagram {seed} to {target} differs");
    }
}

/// Sends numbered datagrams, and counts those that arrive. None of them may arrive twice or changed.
#[track_caller]
pub(crate) fn datagrams(from: &Space, to: &Space, target: IpAddr, count: u64) -> u64 {
    const LENGTH: usize = 600;
    /// On their way at a time, so that no queue overflows however slow the machine is.
    const WINDOW: u64 = 64;
    /// Those that have not come when nothing has come for so long are lost.
    const SILENCE: Duration = Duration::from_secs(1);
    let (sender, receiver) = sockets(from, to, target);
    receiver.set_read_timeout(Some(SILENCE)).unwrap();
    let (more, room) = mpsc::channel();
    thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let mut on_their_way = 0_u64;
            for number in 0..count {
                let mut datagram = number.to_le_bytes().to_vec();
                datagram.extend(Noise::new(number).bytes(LENGTH));
                sender.send(&datagram).unwrap();
                on_their_way = (on_their_way + 1).saturating_sub(room.try_iter().count() as u64);
                while on_their_way >= WINDOW {
                    on_their_way = room.recv_timeout(SILENCE).map_or(0, |()| on_their_way - 1);
                }
            }
        });
        let mut arrived = vec![false; count as usize];
        let mut buffer = [0; 2048];
        loop {
            let all_are_sent = sending.is_finished();
            let datagram = match receiver.recv(&mut buffer) {
                Ok(length) => &buffer[..length],
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => panic!("{error}"),
                Err(_) if all_are_sent => break,
                Err(_) => continue,
            };
            // Its sender may be done.
            let _ = more.send(());
            let (number, rest) = datagram.split_first_chunk().unwrap();
            let number = u64::from_le_bytes(*number);
            assert!(rest == Noise::new(number).bytes(LENGTH), "datagram {number} to {target} differs");
            assert!(!std::mem::replace(&mut arrived[number as usize], true), "datagram {number} came twice");
        }
        arrived.into_iter().filter(|arrived| *arrived).count() as u64
    })
}
