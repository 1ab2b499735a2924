//! How soon a peer's attempts to begin a session are answered.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use wireloom_lab::{control, until};

use crate::ground::{Ground, MEASURED, PORT, new_key, start};

/// A peer whose third attempt was in vain, 10 s after the first, has no luck.
const SESSION: Duration = Duration::from_secs(12);
/// Between two sessions. A device answers one peer only so often.
const PAUSE: Duration = Duration::from_millis(300);
/// How often the relay looks whether it is over.
const LOOK: Duration = Duration::from_millis(10);
/// Where the relay listens, on the peer's machine, and where it sends from.
const RELAY: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 777);
const INITIATION: u8 = 1;
const DATA: u8 = 4;

/// What became of the attempts of a peer.
pub(crate) struct Attempts {
    /// For each: after how many milliseconds a response or a cookie came; infinity where none came before the
    /// next attempt.
    pub(crate) answered: Vec<f64>,
    /// For each session: how many milliseconds after the first attempt it carried a packet; infinity
    /// where it does not. Each attempt follows five seconds after the one before.
    pub(crate) connected: Vec<f64>,
}

impl Attempts {
    /// Lets a peer that the measured device knows begin this many sessions, each as if it had just been made.
    ///
    /// It is a `wireloom device` too, whose datagrams go by way of a relay that looks at the clock.
    pub(crate) fn make(ground: &Ground, sessions: usize) -> anyhow::Result<Self> {
        let key = new_key(&ground.peer)?;
        let measured = base16(&ground.key);
        ground.measured.run(&format!("wg set wg0 peer {key} allowed-ips 10.11.0.1/32"))?;
        ground.measured.run("ip route add 10.11.0.1 dev wg0")?;
        let _program = start(&ground.peer, &ground.own, "wg1")?;
        ground.peer.run("wg set wg1 private-key /run/key")?;
        ground.peer.run("ip address add 10.11.0.1/32 dev wg1")?;
        ground.peer.run("ip link set wg1 mtu 1420 up")?;
        // By a table of its own: the other tunnel has the address already.
        ground.peer.run("ip rule add from 10.11.0.1 lookup 11")?;
        ground.peer.run("ip route add default dev wg1 table 11")?;
        let relay = ground.peer.inside(|| UdpSocket::bind(RELAY))??;
        let outside = ground.peer.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
        outside.connect((IpAddr::from(MEASURED), PORT))?;
        for socket in [&relay, &outside] {
            socket.set_read_timeout(Some(LOOK))?;
        }
        let relay = Relay { inside: relay, outside, seen: Mutex::default(), over: AtomicBool::new(false) };
        let mut connected = Vec::new();
        thread::scope(|scope| {
            scope.spawn(|| relay.carry_out());
            scope.spawn(|| relay.carry_in());
            let _end = EndOnDrop(&relay.over);
            for _ in 0..sessions {
                thread::sleep(PAUSE);
                let begin = format!(
                    "set=1\nreplace_peers=true\npublic_key={measured}\nendpoint={}:{}\nallowed_ip=0.0.0.0/0\n\n",
                    RELAY.0, RELAY.1
                );
                control::request(&ground.peer, "wg1", begin.as_bytes())?;
                let start = Instant::now();
                let ping = "ping -q -c 1 -W 1 -I 10.11.0.1 10.9.0.2";
                let works = until(SESSION, "a ping through the new session", || ground.peer.run(ping).ok());
                connected.push(works.map_or(f64::INFINITY, |_| start.elapsed().as_secs_f64() * 1e3));
            }
            anyhow::Ok(())
        })?;
        let seen = relay.seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Self { answered: seen.answered, connected })
    }
}

/// Carries datagrams between a device on the same machine and the measured one, and looks at the clock.
struct Relay {
    inside: UdpSocket,
    outside: UdpSocket,
    seen: Mutex<Seen>,
    over: AtomicBool,
}

#[derive(Default)]
struct Seen {
    device: Option<SocketAddr>,
    /// When the last initiation went out, if it was not answered yet.
    asked: Option<Instant>,
    answered: Vec<f64>,
}

impl Relay {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carry_out(&self) {
        let mut buffer = [0; 2048];
        while !self.over.load(Ordering::Relaxed) {
            let Ok((length, from)) = self.inside.recv_from(&mut buffer) else { continue };
            let mut seen = self.seen();
            seen.device = Some(from);
            if buffer[0] == INITIATION && seen.asked.replace(Instant::now()).is_some() {
                seen.answered.push(f64::INFINITY);
            }
            drop(seen);
            let _ = self.outside.send(&buffer[..length]);
        }
    }

    fn carry_in(&self) {
        let mut buffer = [0; 2048];
        while !self.over.load(Ordering::Relaxed) {
            let Ok(length) = self.outside.recv(&mut buffer) else { continue };
            let mut seen = self.seen();
            if buffer[0] != DATA
                && let Some(asked) = seen.asked.take()
            {
                seen.answered.push(asked.elapsed().as_secs_f64() * 1e3);
            }
            if let Some(device) = seen.device {
                let _ = self.inside.send_to(&buffer[..length], device);
            }
        }
    }
}

/// Ends the relay, also when something fails.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn base16(key: &[u8; 32]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}
