//! The situations in which the measured device works, and their figures.

use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use clap::ValueEnum;

use crate::{
    answers::Answering,
    attempts::Attempts,
    flood::Flood,
    ground::{DEAD, Ground, PORT, from_outside},
    measuring::streams,
    pings::Pings,
};

/// How many peers the measured device has, besides the one that pings it.
const PEERS: u32 = 5000;
/// Initiations a second of the slower flood.
const RATE: f64 = 100_000.0;
/// Time for a load to reach its full rate.
const RISE: Duration = Duration::from_millis(300);
/// Sessions that a peer begins. In a flood, each takes a second attempt.
const SESSIONS: usize = 3;
/// A port of the measured machine where nobody reads what is received.
const UNREAD: u16 = 778;

/// A situation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    Alone,
    Handshakes,
    AnsweredHandshakes,
    Dump,
    DeadPeer,
    Flood,
    FullFlood,
    FloodThroughput,
    Attempts,
    FloodAttempts,
}

impl Row {
    pub(crate) fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    /// Labels of its figures, and their digits after the decimal point.
    pub(crate) fn figures(self) -> &'static [(&'static str, usize)] {
        match self {
            Self::Alone => &[("ping alone, p50, µs", 0), ("p99", 0), ("lost, %", 1)],
            Self::Handshakes => {
                &[("ping beside 5,000 handshakes at once, p50, µs", 0), ("p99", 0), ("lost, %", 1)]
            }
            Self::AnsweredHandshakes => &[
                ("ping beside 5,000 handshakes that are answered, p50, µs", 0),
                ("p99", 0),
                ("lost, %", 1),
                ("peers with a session after that, %", 1),
            ],
            Self::Dump => {
                &[("ping beside `wg show dump` of 5,000 peers, p50, µs", 0), ("p99", 0), ("lost, %", 1)]
            }
            Self::DeadPeer => {
                &[("ping beside a stream to a dead peer, p50, µs", 0), ("p99", 0), ("lost, %", 1)]
            }
            Self::Flood => &[
                ("ping beside 100,000 initiations a second, p50, µs", 0),
                ("p99", 0),
                ("lost, %", 1),
                ("initiations sent, thousands a second", 0),
            ],
            Self::FullFlood => &[
                ("ping beside as many initiations as can be sent, p50, µs", 0),
                ("p99", 0),
                ("lost, %", 1),
                ("initiations sent, thousands a second", 0),
            ],
            Self::FloodThroughput => &[
                ("TCP, 1 stream, Gbit/s", 2),
                ("beside 100,000 initiations a second: part of that", 2),
                ("beside as many to a port that nobody reads", 2),
                ("beside as many initiations as can be sent", 2),
                ("beside as many to a port that nobody reads", 2),
            ],
            Self::Attempts => &[
                ("an attempt, answered after, p50, ms", 1),
                ("the latest answer", 1),
                ("the session works after, ms", 0),
            ],
            Self::FloodAttempts => &[
                ("an attempt beside 100,000 initiations a second, answered after, p50, ms", 1),
                ("the latest answer", 1),
                ("the session works after, ms", 0),
            ],
        }
    }

    /// Takes the measurement: its figures.
    pub(crate) fn take(self, ground: &Ground, length: Duration) -> anyhow::Result<Vec<f64>> {
        let pings = || pings(ground, length);
        match self {
            Self::Alone => pings(),
            Self::Handshakes => {
                let begin = |_: &AtomicBool| {
                    thread::sleep(RISE);
                    ground.add_silent_peers(PEERS, true)
                };
                beside(begin, pings).map(|((), figures)| figures)
            }
            Self::AnsweredHandshakes => {
                let peers = Answering::new(ground, PEERS)?;
                let load = |over: &AtomicBool| peers.answer(over);
                let begin = |_: &AtomicBool| {
                    thread::sleep(RISE);
                    peers.introduce(ground)
                };
                let ((), mut figures) = beside(load, || beside(begin, pings).map(|((), figures)| figures))?;
                figures.push(peers.connected(ground)?);
                Ok(figures)
            }
            Self::Dump => {
                ground.add_silent_peers(PEERS, false)?;
                let dump = |over: &AtomicBool| {
                    while !over.load(Ordering::Relaxed) {
                        ground.measured.run("wg show wg0 dump")?;
                    }
                    Ok(())
                };
                beside(dump, pings).map(|((), figures)| figures)
            }
            Self::DeadPeer => {
                ground.add_silent_peers(1, false)?;
                ground.measured.run(&format!("ip route add {DEAD} dev wg0"))?;
                beside(|over| stream_to_the_dead(ground, over), pings).map(|((), figures)| figures)
            }
            Self::Flood | Self::FullFlood => {
                let rate = (self == Self::Flood).then_some(RATE);
                let (sent, mut figures) = beside_flood(ground, PORT, rate, pings)?;
                figures.push(sent / 1e3);
                Ok(figures)
            }
            Self::FloodThroughput => {
                let tcp = || streams::tcp(ground.way(), length, &[]).map(|stream| stream.gigabits_a_second());
                let unread = ground.measured.inside(|| UdpSocket::bind(("0.0.0.0", UNREAD)))??;
                let alone = tcp()?;
                let mut figures = vec![alone];
                for rate in [Some(RATE), None] {
                    for port in [PORT, UNREAD] {
                        figures.push(beside_flood(ground, port, rate, tcp)?.1 / alone);
                    }
                }
                drop(unread);
                Ok(figures)
            }
            Self::Attempts => attempts(ground),
            Self::FloodAttempts => beside_flood(ground, PORT, Some(RATE), || attempts(ground)).map(|it| it.1),
        }
    }
}

/// Round trips in microseconds, the median and the 99th percentile, and the part that was lost, in percent.
fn pings(ground: &Ground, length: Duration) -> anyhow::Result<Vec<f64>> {
    let pings = Pings::send(ground.way(), length)?;
    let lost = pings.unanswered() as f64 / pings.sent() as f64 * 100.0;
    Ok(vec![pings.percentile(0.5), pings.percentile(0.99), lost])
}

/// Milliseconds until an attempt was answered, in the median and at most, and until a session works.
fn attempts(ground: &Ground) -> anyhow::Result<Vec<f64>> {
    let Attempts { mut answered, mut connected } = Attempts::make(ground, SESSIONS)?;
    answered.sort_by(f64::total_cmp);
    connected.sort_by(f64::total_cmp);
    let middle = |times: &[f64]| times.get(times.len() / 2).copied().unwrap_or(f64::INFINITY);
    let latest = answered.last().copied().unwrap_or(f64::INFINITY);
    Ok(vec![middle(&answered), latest, middle(&connected)])
}

/// Sends long packets to a peer that is dead, as fast as the interface takes them, up to some Gbit/s.
fn stream_to_the_dead(ground: &Ground, over: &AtomicBool) -> anyhow::Result<()> {
    const PAYLOAD: [u8; 1372] = [0x77; 1372];
    const BURST: usize = 50;
    const TICK: Duration = Duration::from_millis(1);
    let socket = ground.measured.inside(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    socket.connect((DEAD, 9))?;
    while !over.load(Ordering::Relaxed) {
        // An ICMP error that somebody sent about an earlier one is no reason to stop.
        (0..BURST).for_each(|_| drop(socket.send(&PAYLOAD)));
        thread::sleep(TICK);
    }
    Ok(())
}

fn beside_flood<T>(
    ground: &Ground,
    port: u16,
    rate: Option<f64>,
    test: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(f64, T)> {
    let flood = Flood::new(&ground.stranger, from_outside(port), &ground.key)?;
    let work = |over: &AtomicBool| flood.run(rate, || over.load(Ordering::Relaxed));
    beside(work, || {
        thread::sleep(RISE);
        test()
    })
}

/// Runs `work` on a thread of its own until `test` has ended. Returns what both returned.
fn beside<W: Send, T>(
    work: impl FnOnce(&AtomicBool) -> anyhow::Result<W> + Send,
    test: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(W, T)> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let worker = scope.spawn(|| work(&over));
        let result = test();
        over.store(true, Ordering::Relaxed);
        Ok((worker.join().expect("the load does not panic")?, result?))
    })
}
