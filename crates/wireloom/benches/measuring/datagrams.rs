//! The highest rate of datagrams that arrive.
//!
//! `iperf3` needs most of a processor to send small datagrams: on a machine with two processors, it would measure
//! itself.

use std::{
    io,
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::sys::socket::{setsockopt, sockopt};

use crate::measuring::Way;

/// How long each load is offered.
const OFFERED: Duration = Duration::from_secs(1);
/// How often the sender looks at the clock and sends what is due, as a burst.
const TICK: Duration = Duration::from_micros(200);
/// The longest burst. A sender that falls further behind does not offer the load that it should.
const BURST: u64 = 1000;
/// The share of an offered load that may be lost.
const LOSS: f64 = 0.01;
/// The load to begin with and the load to give up at, in datagrams a second.
const FIRST: f64 = 40_000.0;
const LEAST: f64 = 500.0;
/// The search ends when the highest load that is carried and the lowest that is not have at most this ratio.
const NEAR: f64 = 1.05;
/// When nothing has come for this long, nothing more will.
const SILENCE: Duration = Duration::from_millis(200);
/// Bytes of the receiver's buffer: large, so that the tunnel is measured and not how fast the receiver wakes up.
const BUFFER: usize = 8 << 20;

/// What became of an offered load.
#[derive(Debug, Clone, Copy)]
struct Offer {
    sent: u64,
    delivered: u64,
    elapsed: Duration,
}

impl Offer {
    fn is_carried(self) -> bool {
        self.delivered as f64 >= self.sent as f64 * (1.0 - LOSS)
    }

    /// Whether the sender sent as fast as it should.
    fn is_full(self, rate: f64) -> bool {
        self.sent as f64 >= rate * self.elapsed.as_secs_f64() * 0.95
    }

    fn rate_delivered(self) -> f64 {
        self.delivered as f64 / self.elapsed.as_secs_f64()
    }
}

/// The highest load of which less than 1 % is lost, in datagrams delivered a second.
pub(crate) fn highest_load(way: Way<'_>, length: usize) -> anyhow::Result<f64> {
    let mut rate = FIRST;
    let mut carried = None;
    let mut refused = f64::INFINITY;
    loop {
        // A hiccup of the machine is not the tunnel's limit: a load that is not carried gets a second try.
        let mut offer = offer(way, length, rate)?;
        if !offer.is_carried() {
            offer = self::offer(way, length, rate)?;
        }
        if offer.is_carried() {
            carried = Some((rate, offer.rate_delivered()));
            if !offer.is_full(rate) {
                return Ok(offer.rate_delivered());
            }
        } else {
            refused = rate;
        }
        rate = match carried {
            Some((rate, delivered)) if refused < rate * NEAR => return Ok(delivered),
            Some((rate, _)) if refused.is_finite() => (rate * refused).sqrt(),
            Some((rate, _)) => rate * 2.0,
            None if refused < LEAST => {
                anyhow::bail!("{}", describe(offer))
            }
            None => refused / 2.0,
        };
    }
}

fn describe(offer: Offer) -> String {
    let Offer { sent, delivered, elapsed } = offer;
    format!("of {sent} datagrams in {:.1} s only {delivered} arrived", elapsed.as_secs_f64())
}

/// Sends at a steady rate, and counts what arrives.
fn offer(way: Way<'_>, length: usize, rate: f64) -> anyhow::Result<Offer> {
    let receiver = way.to.space.inside(|| UdpSocket::bind((way.to.address, 0)))??;
    receiver.set_read_timeout(Some(SILENCE))?;
    setsockopt(&receiver, sockopt::RcvBufForce, &BUFFER)
        .or_else(|_| setsockopt(&receiver, sockopt::RcvBuf, &BUFFER))?;
    let sender = way.from.space.inside(|| UdpSocket::bind((way.from.address, 0)))??;
    // A tunnel that has stopped takes no more datagrams.
    sender.set_write_timeout(Some(SILENCE))?;
    sender.connect(receiver.local_addr()?)?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let delivered = scope.spawn(|| count(&receiver, length, &over));
        let (sent, elapsed) = send(&sender, length, rate);
        over.store(true, Ordering::Relaxed);
        let delivered = delivered.join().expect("the receiver does not panic").context("cannot receive")?;
        Ok(Offer { sent, delivered, elapsed })
    })
}

fn send(sender: &UdpSocket, length: usize, rate: f64) -> (u64, Duration) {
    let payload = vec![0x77; length];
    let start = Instant::now();
    let mut sent = 0;
    loop {
        let elapsed = start.elapsed();
        if elapsed >= OFFERED {
            return (sent, elapsed);
        }
        let due = (elapsed.as_secs_f64() * rate) as u64;
        for _ in 0..due.saturating_sub(sent).min(BURST) {
            // A datagram that the kernel refuses counts as lost.
            let _ = sender.send(&payload);
            sent += 1;
        }
        thread::sleep(TICK);
    }
}

fn count(receiver: &UdpSocket, length: usize, over: &AtomicBool) -> io::Result<u64> {
    let mut buffer = vec![0; length + 1];
    let mut count = 0;
    loop {
        match receiver.recv(&mut buffer) {
            Ok(received) => count += u64::from(received == length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if over.load(Ordering::Relaxed) {
                    return Ok(count);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
