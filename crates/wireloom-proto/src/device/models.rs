//! Model checks of the device beside a thread of the data path. See [`crate::sync::model`].

use std::iter;
use std::net::SocketAddr;

use super::*;
use crate::message::{DATA_OVERHEAD, DataHeader};
use crate::sync::Mutex;
use crate::sync::model::{Bound, check, spawn};
use crate::time::UnixTime;
use crate::transport::Staged;

const NOW: Now = Now {
    monotonic: Instant::from_nanos(1_000_000_000_000),
    unix: UnixTime::from_epoch(Duration::from_secs(1_767_225_600)),
};

/// The device and its peer, by the byte that their keys consist of.
const OURS: u8 = 1;
const THEIRS: u8 = 2;

fn private_key(of: u8) -> PrivateKey {
    PrivateKey::from_bytes([of; 32])
}

fn endpoint(of: u8) -> Endpoint {
    SocketAddr::from(([192, 0, 2, of], 51820)).into()
}

fn device(own: u8, peer: u8) -> Device {
    device_with_seed(own, own, peer)
}

fn device_with_seed(seed: u8, own: u8, peer: u8) -> Device {
    let mut device = Device::new(&[seed; 32]);
    let configured = device.configure(NOW, |configuration| {
        configuration.set_private_key(Some(private_key(own)));
        configuration.add_peer(private_key(peer).public_key())?.set_endpoint(endpoint(peer).remote);
        Ok::<(), ConfigureError>(())
    });
    configured.expect("the peer is the only one");
    device
}

/// What threads of the data path have: the way to the peer, and to the device.
struct DataPath {
    transport: Arc<Transport>,
    path: Arc<PeerPath>,
    signals: Mutex<Vec<Signal>>,
    /// The packets that were sent, in order, and their counters. A packet of number n has n times 16 bytes.
    sent: std::sync::Mutex<Vec<(usize, u64)>>,
}

impl DataPath {
    fn of(device: &Device) -> Arc<Self> {
        let peer = device.peers.values().next().expect("there is one");
        Arc::new(Self {
            transport: Arc::clone(&device.transport),
            path: Arc::clone(&peer.path),
            signals: Mutex::default(),
            sent: std::sync::Mutex::default(),
        })
    }

    /// Sends a packet or stages it, as a worker does.
    fn send(&self, number: usize) {
        let mut message = vec![0; DATA_OVERHEAD + 16 * number];
        let len = message.len();
        let signal =
            match self.transport.reserve_or_stage(NOW.monotonic, &self.path, iter::once(&message[..]), len) {
                Ok(reserved) => {
                    let signal = reserved.signal;
                    reserved.seal(iter::once(&mut message[..]));
                    self.note_sent(&message);
                    signal
                }
                Err(Staged { signal, dropped }) => {
                    assert_eq!(dropped, None);
                    signal
                }
            };
        self.signals.lock().unwrap().extend(signal);
    }

    fn receive(&self, message: &[u8]) {
        let mut message = message.to_vec();
        let opened = self.transport.open(NOW.monotonic, endpoint(THEIRS), &mut message);
        let signal = opened.expect("it is authentic and new").signal;
        self.signals.lock().unwrap().extend(signal);
    }

    fn note_sent(&self, datagram: &[u8]) {
        if let Ok(header) = DataHeader::parse(datagram) {
            let number = (datagram.len() - DATA_OVERHEAD) / 16;
            self.sent.lock().unwrap().push((number, header.counter));
        }
    }

    /// Checks that these packets were sent, each of them once, in this order. Keepalives may be among them.
    fn assert_sent(&self, packets: &[usize]) {
        let sent = self.sent.lock().unwrap();
        assert!(sent.iter().map(|(_, counter)| *counter).eq(0..sent.len() as u64), "{sent:?}");
        let numbers: Vec<usize> =
            sent.iter().map(|(number, _)| *number).filter(|number| *number > 0).collect();
        assert_eq!(numbers, packets, "{sent:?}");
    }
}

/// A turn of the control thread. Returns the handshake messages that it sent.
fn turn(device: &mut Device, data_path: &DataPath) -> Vec<Vec<u8>> {
    let signals = std::mem::take(&mut *data_path.signals.lock().unwrap());
    for signal in signals {
        device.handle_signal(NOW, signal);
    }
    device.handle_timeout(NOW);
    transmit(device, data_path)
}

/// The end of a turn.
fn transmit(device: &mut Device, data_path: &DataPath) -> Vec<Vec<u8>> {
    let mut handshake = Vec::new();
    loop {
        while let Some(transmit) = device.poll_transmit(NOW) {
            if MessageKind::classify(transmit.datagram) == Ok(MessageKind::Data) {
                data_path.note_sent(transmit.datagram);
            } else {
                handshake.push(transmit.datagram.to_vec());
            }
        }
        if !device.note_transmitted(NOW) {
            return handshake;
        }
    }
}

/// A device with one packet that waits, and its initiation, which is always the same: its seed is.
fn waiting() -> (Device, Arc<DataPath>, Vec<u8>) {
    let mut device = device(OURS, THEIRS);
    let data_path = DataPath::of(&device);
    data_path.send(1);
    let initiation = turn(&mut device, &data_path).pop().expect("a packet waits");
    (device, data_path, initiation)
}

/// A worker sends two packets while the device finishes the handshake that the first one has begun.
#[test]
fn packets_leave_once_and_in_order_while_a_session_begins() {
    let (_, _, initiation) = waiting();
    let mut peer = device(THEIRS, OURS);
    peer.handle_handshake(NOW, endpoint(OURS), &initiation).expect("it is for the peer");
    let response = peer.poll_transmit(NOW).expect("an answer").datagram.to_vec();
    check(Bound::Preemptions(2), move || {
        let (mut device, data_path, _) = waiting();
        let worker = {
            let data_path = Arc::clone(&data_path);
            spawn(move || [2, 3].map(|number| data_path.send(number)))
        };
        device.handle_handshake(NOW, endpoint(THEIRS), &response).expect("it is for this initiation");
        turn(&mut device, &data_path);
        worker.join().unwrap();
        turn(&mut device, &data_path);
        data_path.assert_sent(&[1, 2, 3]);
        data_path.send(4);
        data_path.assert_sent(&[1, 2, 3, 4]);
    });
}

/// The peer's first message confirms the session that we answered, while another worker sends.
#[test]
fn packets_leave_once_and_in_order_while_a_session_is_confirmed() {
    let mut peer = device(THEIRS, OURS);
    let theirs = DataPath::of(&peer);
    theirs.send(1);
    let initiation = turn(&mut peer, &theirs).pop().expect("a packet waits");
    let answered = {
        let initiation = initiation.clone();
        move || {
            let mut device = device(OURS, THEIRS);
            device.handle_handshake(NOW, endpoint(THEIRS), &initiation).expect("it is for us");
            let data_path = DataPath::of(&device);
            let response = turn(&mut device, &data_path).pop().expect("an answer");
            (device, data_path, response)
        }
    };
    let (_, _, response) = answered();
    peer.handle_handshake(NOW, endpoint(OURS), &response).expect("it is for this initiation");
    let first = peer.poll_transmit(NOW).expect("the packet that waits").datagram.to_vec();
    check(Bound::Preemptions(2), move || {
        let (mut device, data_path, _) = answered();
        let receiver = {
            let (data_path, first) = (Arc::clone(&data_path), first.clone());
            spawn(move || data_path.receive(&first))
        };
        let sender = {
            let data_path = Arc::clone(&data_path);
            spawn(move || [1, 2].map(|number| data_path.send(number)))
        };
        turn(&mut device, &data_path);
        receiver.join().unwrap();
        sender.join().unwrap();
        turn(&mut device, &data_path);
        data_path.assert_sent(&[1, 2]);
    });
}

/// The peer has started again, and its first message confirms its new session, while the device sends a keepalive in
/// the one before.
#[test]
fn a_session_that_is_confirmed_stays_in_use() {
    let (_, _, initiation) = waiting();
    let mut peer = device(THEIRS, OURS);
    peer.handle_handshake(NOW, endpoint(OURS), &initiation).expect("it is for the peer");
    let response = peer.poll_transmit(NOW).expect("an answer").datagram.to_vec();
    let mut peer = device_with_seed(9, THEIRS, OURS);
    let theirs = DataPath::of(&peer);
    theirs.send(1);
    let again = turn(&mut peer, &theirs).pop().expect("a packet waits");
    let receiver = u32::from_le_bytes(*again[4..].first_chunk().expect("a sender index"));
    let answered = move || {
        let (mut device, data_path, _) = waiting();
        device.handle_handshake(NOW, endpoint(THEIRS), &response).expect("it is for this initiation");
        turn(&mut device, &data_path);
        device.handle_handshake(NOW, endpoint(THEIRS), &again).expect("it is for us");
        let answer = turn(&mut device, &data_path).pop().expect("an answer");
        (device, data_path, answer)
    };
    let (_, _, answer) = answered();
    peer.handle_handshake(NOW, endpoint(OURS), &answer).expect("it is for this initiation");
    let first = peer.poll_transmit(NOW).expect("the packet that waits").datagram.to_vec();
    check(Bound::Preemptions(2), move || {
        let (mut device, data_path, _) = answered();
        assert!(!data_path.path.sends_to(receiver), "the session before is in use");
        device.send_keepalive(NOW, data_path.path.id());
        let worker = {
            let (data_path, first) = (Arc::clone(&data_path), first.clone());
            spawn(move || data_path.receive(&first))
        };
        transmit(&mut device, &data_path);
        worker.join().unwrap();
        assert!(data_path.path.sends_to(receiver), "the peer knows no other");
        turn(&mut device, &data_path);
        assert!(data_path.path.sends_to(receiver));
    });
}

/// A packet is staged while a new private key makes the device forget everything about its peers.
#[test]
fn a_packet_is_dropped_or_asks_for_a_handshake_when_the_key_changes() {
    check(Bound::Exhaustive, || {
        let mut device = device(OURS, THEIRS);
        let data_path = DataPath::of(&device);
        let worker = {
            let data_path = Arc::clone(&data_path);
            spawn(move || data_path.send(1))
        };
        let changed = device.configure(NOW, |configuration| {
            configuration.set_private_key(Some(private_key(3)));
            Ok::<(), ConfigureError>(())
        });
        changed.expect("no peer has this key");
        worker.join().unwrap();
        let handshake = turn(&mut device, &data_path);
        let dropped = device.take_forgotten_packets() == 1;
        assert_eq!(data_path.transport.staging.is_empty(data_path.path.id()), dropped);
        assert!(dropped || !handshake.is_empty(), "the packet waits, and the device does not know");
    });
}

/// A packet is staged while its peer is removed.
#[test]
fn nothing_stays_behind_when_a_peer_is_removed() {
    check(Bound::Exhaustive, || {
        let mut device = device(OURS, THEIRS);
        let data_path = DataPath::of(&device);
        let worker = {
            let data_path = Arc::clone(&data_path);
            spawn(move || {
                let message = [0; DATA_OVERHEAD + 16];
                let outcome = data_path.transport.reserve_or_stage(
                    NOW.monotonic,
                    &data_path.path,
                    iter::once(&message[..]),
                    message.len(),
                );
                outcome.expect_err("there is no session").dropped.is_some()
            })
        };
        let removed = device.configure(NOW, |configuration| {
            configuration.remove_peer(&private_key(THEIRS).public_key());
            Ok::<(), ConfigureError>(())
        });
        removed.expect("it is there");
        let refused = worker.join().unwrap();
        assert!(refused != (device.take_forgotten_packets() == 1), "it counts as dropped once");
        assert!(data_path.transport.staging.is_empty(data_path.path.id()));
    });
}
