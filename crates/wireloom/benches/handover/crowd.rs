//! Hand-overs of a device that has sessions with thousands of peers: how long packets wait.
//!
//! One device at the other end is all of these peers, one after the other: it takes a key, makes a session, and takes
//! the next key. The sessions stay with the device that hands over. In the end the other one is itself again, and
//! answers pings.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use wireloom_lab::{Nonces, PATIENCE, PingReport, Pinger, Space, control, mesh::PORT};
use wireloom_plan::routing::Family;
use wireloom_types::{LinkAddress, PrivateKey, PublicKey};

use crate::{Arguments, Mode, ground::Ground, machine::other_work, program::Program, summary::median};

/// Between two looks at a handshake.
const LOOK: Duration = Duration::from_micros(500);
/// Between two handshakes: a device refuses those that come faster as a flood.
const PAUSE: Duration = Duration::from_millis(20);
/// Peers in one request.
const PORTION: usize = 1000;
/// Between two pings.
const PING_INTERVAL: Duration = Duration::from_millis(10);
/// How often a sender looks at the clock and sends what is due.
const TICK: Duration = Duration::from_micros(500);
/// A port where nobody listens.
const DISCARD: u16 = 9;

/// Prints a table: hand-overs beside peers without traffic, then beside datagrams to all of them in turn.
pub(crate) fn run(arguments: &Arguments, own: &Program, count: u32) -> anyhow::Result<()> {
    println!(
        "| mode, queues | peers with sessions | datagrams to them, a second | hand-overs \
         | packets waited, p50 / longest, ms | whole hand-over, p50 / longest, ms | pings to one more lost \
         | slowest, ms | nonces twice | plaintext | other work before, % of a CPU |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    );
    for mode in &arguments.modes {
        for queues in &arguments.queues {
            let mut crowd = Crowd::gather(arguments, *mode, *queues, own, count)?;
            for rate in [0, arguments.datagrams] {
                let work = other_work()?;
                let cells = crowd.measure(arguments, rate)?;
                println!("| {mode}, {queues} | {count} | {rate} | {cells} | {work:.0} |");
            }
        }
    }
    Ok(())
}

/// A device, the first machine's, that has sessions with many peers.
struct Crowd {
    ground: Ground,
    peers: BTreeSet<PublicKey>,
}

impl Crowd {
    /// Makes the device and its sessions with this many peers.
    fn gather(
        arguments: &Arguments,
        mode: Mode,
        queues: u16,
        own: &Program,
        count: u32,
    ) -> anyhow::Result<Self> {
        let ground = Ground::new(&arguments.wireloom, mode, queues, own)?;
        let keys: Vec<_> = (1..=count).map(key).collect();
        let peers: Vec<_> = keys.iter().map(PrivateKey::public_key).collect();
        let [measured, other] = [0, 1].map(|place| &ground.lab.nodes[place]);
        let space = &measured.host.space;
        for (portion, peers) in peers.chunks(PORTION).enumerate() {
            let mut request = "set=1\n".to_owned();
            for (n, peer) in peers.iter().enumerate() {
                let address = address(portion * PORTION + n);
                let _ = write!(request, "public_key={}\nallowed_ip={address}/32\n", peer.to_hex());
            }
            ask(space, &(request + "\n"))?;
        }
        if mode == Mode::Gateway {
            // As the agent makes them.
            let neighbours: String = peers
                .iter()
                .enumerate()
                .map(|(n, peer)| {
                    let (address, link) = (address(n), LinkAddress::of(*peer));
                    format!("neigh replace {address} lladdr {link} dev wg0 nud permanent\n")
                })
                .collect();
            space.feed("ip -batch -", &neighbours)?;
        }
        space.run("ip route add 10.100.0.0/16 dev wg0")?;
        let own = space.run("wg show wg0 public-key")?;
        let own = PublicKey::from_base64(own.trim()).context("`wg` shows no public key")?.to_hex();
        let to = SocketAddr::new(measured.host.addresses.v4.into(), PORT);
        let inside = ground.ends[0].addresses.v4;
        for key in &keys {
            thread::sleep(PAUSE);
            make_session(&other.host.space, key, &own, to, inside)?;
        }
        ground.be_the_peer_again()?;
        Ok(Self { ground, peers: peers.into_iter().collect() })
    }

    /// Hands over again and again, beside this many datagrams a second to the peers in turn: the cells of a row.
    fn measure(&mut self, arguments: &Arguments, rate: u32) -> anyhow::Result<String> {
        let interval = Duration::from_millis(arguments.interval);
        let before = self.handshakes()?;
        let [near, far] = &self.ground.ends;
        let nonces = Nonces::watch(self.ground.lab.underlay())?;
        let pinger = Pinger::start(near, far, Family::V4, PING_INTERVAL)?;
        let socket = near.space.inside(|| UdpSocket::bind((near.addresses.v4, 0)))??;
        let (mut waited, mut whole) = (Vec::new(), Vec::new());
        let (over, count) = (AtomicBool::new(false), self.peers.len());
        thread::scope(|scope| {
            scope.spawn(|| send_to_all(&socket, count, rate, &over));
            let _end = EndOnDrop(&over);
            for _ in 0..arguments.rounds {
                thread::sleep(interval);
                let begun = Instant::now();
                waited.push(self.ground.device.hand_over()?.as_secs_f64() * 1e3);
                whole.push(begun.elapsed().as_secs_f64() * 1e3);
            }
            thread::sleep(interval);
            anyhow::Ok(())
        })?;
        let PingReport { sent, lost, slowest, .. } = pinger.stop()?;
        ensure!(before == self.handshakes()?, "the peers' sessions are not those from before");
        let nonces = nonces.report()?;
        let [waited, whole] = [&mut waited, &mut whole].map(|times| {
            let typical = median(times).unwrap_or(f64::NAN);
            format!("{typical:.1} / {:.1}", times.last().copied().unwrap_or(f64::NAN))
        });
        Ok(format!(
            "{} | {waited} | {whole} | {lost} of {sent} | {:.1} | {} | {}",
            arguments.rounds,
            slowest.as_secs_f64() * 1e3,
            nonces.twice,
            nonces.plaintext
        ))
    }

    /// When the handshake with each of the peers was, as `wg` shows it: none is missing.
    fn handshakes(&self) -> anyhow::Result<Vec<String>> {
        let shown = self.ground.lab.nodes[0].run("wg show wg0 latest-handshakes")?;
        let theirs = |line: &&str| {
            let key = line.split('\t').next().and_then(|key| PublicKey::from_base64(key).ok());
            key.is_some_and(|key| self.peers.contains(&key))
        };
        let mut lines: Vec<_> = shown.lines().filter(theirs).map(str::to_owned).collect();
        lines.sort();
        let sessions = lines.iter().filter(|line| !line.ends_with("\t0")).count();
        ensure!(sessions == self.peers.len(), "only {sessions} peers have a session");
        Ok(lines)
    }
}

/// Makes the device in this network a peer with this key, and waits until it has a session.
fn make_session(
    space: &Space,
    key: &PrivateKey,
    measured: &str,
    to: SocketAddr,
    inside: Ipv4Addr,
) -> anyhow::Result<()> {
    // Two requests: a peer that goes and comes in one is the same peer, and waits 5 s between two attempts.
    ask(space, &format!("set=1\nprivate_key={}\nreplace_peers=true\n\n", *key.expose_hex()))?;
    ask(space, &format!("set=1\npublic_key={measured}\nendpoint={to}\nallowed_ip={inside}/32\n\n"))?;
    // It begins a handshake, and confirms the session.
    space.inside(|| UdpSocket::bind(("0.0.0.0", 0))?.send_to(b"hello", (inside, DISCARD)))??;
    let deadline = Instant::now() + PATIENCE;
    while ask(space, "get=1\n\n")?.contains("last_handshake_time_sec=0\n") {
        ensure!(Instant::now() < deadline, "a peer makes no session");
        thread::sleep(LOOK);
    }
    Ok(())
}

/// Sends datagrams to these peers in turn, at this rate, until it is over. What the kernel refuses is not sent again.
fn send_to_all(socket: &UdpSocket, peers: usize, rate: u32, over: &AtomicBool) {
    let mut last = Instant::now();
    let (mut due, mut next) = (0.0, 0);
    while !over.load(Ordering::Relaxed) {
        thread::sleep(TICK);
        let now = Instant::now();
        due = f64::min(due + (now - last).as_secs_f64() * f64::from(rate), peers as f64);
        last = now;
        while due >= 1.0 {
            let _ = socket.send_to(b"hello", (address(next), DISCARD));
            next = (next + 1) % peers;
            due -= 1.0;
        }
    }
}

/// Ends the datagrams, also when a hand-over fails.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks the control socket, and returns its answer.
fn ask(space: &Space, request: &str) -> anyhow::Result<String> {
    let answer = control::request(space, "wg0", request.as_bytes())?;
    ensure!(answer.ends_with("errno=0\n\n"), "the control socket answered {answer:?}");
    Ok(answer)
}

/// The private key of a peer: any number is one.
fn key(number: u32) -> PrivateKey {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    PrivateKey::from_bytes(bytes)
}

/// The address of a peer in the tunnel.
fn address(place: usize) -> Ipv4Addr {
    let [.., third, last] = place.to_be_bytes();
    Ipv4Addr::new(10, 100, third, last)
}
