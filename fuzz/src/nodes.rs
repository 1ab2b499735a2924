//! Two devices without sockets, which exchange packets while an input damages, truncates, repeats and forges their
//! datagrams. A device may drop whatever arrives, but it must not panic, and only packets that were sent come out.

use std::{
    array,
    net::SocketAddr,
    sync::{Arc, LazyLock},
};

use blake2::{
    Blake2s256, Blake2sMac,
    digest::{Digest, KeyInit, Mac, consts::U16},
};
use wireloom_proto::{Device, Endpoint, MessageKind, Now, PeerPath, inner, message};

use crate::{
    input::Input,
    tunnel::{MTU, address, at, key, public_key},
};

const PACKET_LEN: usize = 48;

/// How much later a step may be that begins another handshake, in milliseconds: an initiation is unanswered, or the
/// session is due for renewal.
const JUMPS: [u64; 2] = [5_400, 121_000];

struct Node {
    device: Device,
    number: u8,
    path: Arc<PeerPath>,
    /// Data messages that wait to be passed on.
    sealed: Vec<Vec<u8>>,
}

/// Alice and Bob, with a session.
pub struct Nodes {
    nodes: [Node; 2],
    /// The time of the last step, in milliseconds.
    millis: u64,
}

impl Node {
    fn new(number: u8, peer: u8) -> Self {
        let mut device = Device::new(&[number; 32]);
        device.configure(at(0), |configuration| {
            configuration.set_private_key(Some(key(number)));
            let mut them = configuration.add_peer(public_key(peer)).expect("not our own key");
            them.set_endpoint(address(peer)).add_allowed_ip("10.0.0.0/8".parse().expect("a network"));
        });
        device.handle_up();
        let path = Arc::clone(device.peer(&public_key(peer)).expect("it was added").path);
        Self { device, number, path, sealed: Vec::new() }
    }

    /// Seals a packet for the peer, or keeps it until there is a session.
    fn send(&mut self, now: Now, fill: u8) {
        let mut message = vec![0; message::data_len(PACKET_LEN, MTU)];
        message[message::DATA_HEADER_LEN..][..PACKET_LEN].copy_from_slice(&packet(fill));
        let (transport, len) = (self.device.transport(), message.len());
        let signal = match transport.reserve_or_stage(now.monotonic, &self.path, [&*message].into_iter(), len)
        {
            Ok(reserved) => {
                let signal = reserved.signal;
                reserved.seal([&mut *message].into_iter());
                self.sealed.push(message);
                signal
            }
            Err(staged) => staged.signal,
        };
        if let Some(signal) = signal {
            self.device.handle_signal(now, signal);
        }
    }

    fn receive(&mut self, now: Now, from: SocketAddr, mut datagram: Vec<u8>) {
        let from = Endpoint::from(from);
        match MessageKind::classify(&datagram) {
            Ok(MessageKind::Data) => {
                let transport = self.device.transport().clone();
                if let Ok(opened) = transport.open(now.monotonic, from, &mut datagram) {
                    if let Ok(inside) = inner::Packet::parse(opened.payload) {
                        let bytes = &opened.payload[..inside.len];
                        assert_eq!(
                            bytes,
                            packet(bytes[PACKET_LEN - 1]),
                            "a packet came out that nobody sent"
                        );
                    }
                    if let Some(signal) = opened.signal {
                        self.device.handle_signal(now, signal);
                    }
                }
            }
            Ok(_) => {
                let _ = self.device.handle_handshake(now, from, &datagram);
            }
            Err(_) => {}
        }
    }

    /// Passes on what is to be sent, as `change` leaves it; a second time if that says so.
    fn transmit(&mut self, now: Now, to: &mut Self, mut change: impl FnMut(&mut Vec<u8>) -> bool) {
        let from = address(self.number);
        let mut pass = |mut datagram: Vec<u8>| {
            if change(&mut datagram) {
                to.receive(now, from, datagram.clone());
            }
            to.receive(now, from, datagram);
        };
        self.sealed.drain(..).for_each(&mut pass);
        self.device.handle_timeout(now);
        loop {
            while let Some(transmit) = self.device.poll_transmit(now) {
                pass(transmit.datagram.to_vec());
            }
            if !self.device.note_transmitted(now) {
                break;
            }
        }
    }
}

impl Default for Nodes {
    fn default() -> Self {
        let mut nodes = Self { nodes: [Node::new(1, 2), Node::new(2, 1)], millis: 0 };
        nodes.nodes[0].send(at(0), 0);
        for _ in 0..2 {
            nodes.exchange(at(0), |_, _| false);
        }
        nodes
    }
}

impl Nodes {
    /// Brings all datagrams to their receivers. `change` gets each with its receiver, and says whether it also arrives
    /// a second time.
    fn exchange(&mut self, now: Now, mut change: impl FnMut(&mut Vec<u8>, u8) -> bool) {
        let [alice, bob] = &mut self.nodes;
        alice.transmit(now, bob, |datagram| change(datagram, 2));
        bob.transmit(now, alice, |datagram| change(datagram, 1));
    }

    /// Sends a packet, and does to the datagrams what the next bytes of the input say. With `jumps`, these may also
    /// make it so much later that another handshake begins. It takes a hundred times as long as anything else.
    pub fn step(&mut self, input: &mut Input<'_>, jumps: bool) {
        let [what, who, place, damage] = input.array();
        let jump = JUMPS.get(usize::from(what >> 4)).filter(|_| jumps);
        self.millis += jump.copied().unwrap_or(1);
        let now = at(self.millis);
        self.nodes[usize::from(who & 1)].send(now, damage);
        let forged = if what % 8 == 4 { input.piece().unwrap_or_default() } else { &[] };
        // Which of the step's datagrams is changed.
        let mut left = who >> 6;
        self.exchange(now, |datagram, receiver| {
            let is_meant = left == 0;
            left = left.wrapping_sub(1);
            if !is_meant {
                return false;
            }
            let place = usize::from(place) % datagram.len();
            match what % 8 {
                0 => datagram[place] ^= damage,
                1 => datagram.truncate(place),
                2 => datagram.extend_from_slice(&[damage; 16]),
                4 => *datagram = forged.to_vec(),
                5 => datagram.clear(),
                _ => {}
            }
            if what & 8 != 0 {
                sign(datagram, receiver);
            }
            what % 8 == 3
        });
    }
}

/// An IPv4 packet whose payload repeats one byte.
fn packet(fill: u8) -> [u8; PACKET_LEN] {
    let mut packet = [fill; PACKET_LEN];
    packet[..20].copy_from_slice(&[
        0x45,
        0,
        0,
        PACKET_LEN as u8,
        0,
        0,
        0,
        0,
        64,
        17,
        0,
        0,
        10,
        0,
        0,
        1,
        10,
        0,
        0,
        2,
    ]);
    packet
}

/// Makes MAC1 right (paper, section 5.4.4), which everybody can who knows the receiver's public key: what follows it is
/// reached.
fn sign(datagram: &mut [u8], receiver: u8) {
    static KEYS: LazyLock<[[u8; 32]; 3]> = LazyLock::new(|| {
        array::from_fn(|number| {
            let hash = Blake2s256::new().chain_update(b"mac1----");
            hash.chain_update(public_key(number as u8).as_bytes()).finalize().into()
        })
    });
    if let Ok(MessageKind::Initiation | MessageKind::Response) = MessageKind::classify(datagram) {
        let (signed, macs) = datagram.split_at_mut(datagram.len() - 32);
        let mac = Blake2sMac::<U16>::new_from_slice(&KEYS[usize::from(receiver)]).expect("a key");
        macs[..16].copy_from_slice(&mac.chain_update(signed).finalize().into_bytes());
    }
}
