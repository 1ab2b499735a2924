//! A bad network between two nodes: it loses, doubles and reorders, by a seed.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use wireloom_lab::Space;

use crate::transfer::Noise;

/// Of so many datagrams, one is lost; another one comes twice.
const LOST: u64 = 100;
const DOUBLED: u64 = 100;
/// Of so many, one is overtaken by up to [`OVERTAKERS`] others.
const LATE: u64 = 20;
const OVERTAKERS: u64 = 32;
/// When so long nothing comes to overtake it, what is late goes on its way.
const SILENCE: Duration = Duration::from_millis(5);

/// Carries datagrams between two ends, each of which knows it by an address of its own; it behaves until it
/// is told otherwise.
pub(crate) struct Relay {
    /// Where the ends send to.
    pub(crate) addresses: [SocketAddr; 2],
    bad: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    ways: [JoinHandle<Mischief>; 2],
}

/// How many datagrams it happened to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mischief {
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) late: u64,
}

impl Relay {
    /// Starts to relay on a machine, at this address of its own.
    pub(crate) fn start(space: &Space, address: IpAddr, ends: [SocketAddr; 2], seed: u64) -> Self {
        let [a, b] = ends.map(|_| {
            let socket = space.inside(|| UdpSocket::bind((address, 0)).unwrap()).unwrap();
            socket.set_read_timeout(Some(SILENCE)).unwrap();
            // For one super-packet of a sender's after the other.
            let _ = setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20));
            Arc::new(socket)
        });
        let addresses = [&a, &b].map(|socket| socket.local_addr().unwrap());
        let (bad, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let way = |from: &Arc<UdpSocket>, by: &Arc<UdpSocket>, to, seed| {
            let (from, by) = (Arc::clone(from), Arc::clone(by));
            let mut way = Way { noise: Noise::new(seed), late: Vec::new(), mischief: Mischief::default() };
            let (bad, over) = (Arc::clone(&bad), Arc::clone(&over));
            thread::spawn(move || {
                let send = |datagram: &[u8]| {
                    let _ = by.send_to(datagram, to);
                };
                let mut buffer = [0; 2048];
                while !over.load(Ordering::Relaxed) {
                    match from.recv(&mut buffer) {
                        Ok(length) if bad.load(Ordering::Relaxed) => way.pass(&buffer[..length], send),
                        Ok(length) => send(&buffer[..length]),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => way.release(send),
                        // An end that does not listen yet.
                        Err(_) => {}
                    }
                }
                way.mischief
            })
        };
        let ways = [way(&a, &b, ends[1], seed), way(&b, &a, ends[0], !seed)];
        Self { addresses, bad, over, ways }
    }

    pub(crate) fn turn_bad(&self) {
        self.bad.store(true, Ordering::Relaxed);
    }

    /// What it did in each direction.
    pub(crate) fn stop(self) -> [Mischief; 2] {
        self.over.store(true, Ordering::Relaxed);
        self.ways.map(|way| way.join().unwrap())
    }
}

/// One direction.
struct Way {
    noise: Noise,
    /// With how many more are to overtake each.
    late: Vec<(u64, Vec<u8>)>,
    mischief: Mischief,
}

impl Way {
    fn pass(&mut self, datagram: &[u8], send: impl Fn(&[u8])) {
        let mut one_of = |count| self.noise.next().is_multiple_of(count);
        if one_of(LOST) {
            self.mischief.lost += 1;
        } else if one_of(LATE) {
            self.mischief.late += 1;
            self.late.push((1 + self.noise.next() % OVERTAKERS, datagram.to_vec()));
            return;
        } else {
            send(datagram);
            if one_of(DOUBLED) {
                self.mischief.doubled += 1;
                send(datagram);
            }
        }
        self.late.retain_mut(|(overtakers, datagram)| {
            *overtakers -= 1;
            if *overtakers == 0 {
                send(datagram);
            }
            *overtakers > 0
        });
    }

    fn release(&mut self, send: impl Fn(&[u8])) {
        self.late.drain(..).for_each(|(_, datagram)| send(&datagram));
    }
}
