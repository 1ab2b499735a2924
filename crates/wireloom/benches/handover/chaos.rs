//! Hand-overs in which one side is killed, or stopped for a while, at a random moment. Whoever is left serves, or a new
//! process starts on the interface that is left; no nonce is ever used twice.

use std::{
    fmt,
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use nix::sys::signal::Signal;
use wireloom_lab::{FAMILIES, Noise, Nonces, Numbered, Pinger, device::Device};
use wireloom_plan::routing::Family;

use crate::{Arguments, ground::Ground, program::Program};

/// When the disturbance comes, after the start of the new process: in microseconds.
const MOMENT: Range<u64> = 0..30_000;
/// How long a side is stopped, in microseconds.
const STOPPED: Range<u64> = 0..300_000;
/// How long it may take until somebody serves again.
const BACK: Duration = Duration::from_secs(30);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// Rounds after which pings begin anew: they have numbers of 16 bits.
const PINGED: u32 = 20;
const PING_INTERVAL: Duration = Duration::from_millis(10);
/// Numbered datagrams a second, and their length in bytes.
const RATE: u32 = 10_000;
const DATAGRAM: usize = 64;

/// What is done to a side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    KillBefore,
    KillAfter,
    StopBefore,
    StopAfter,
}

impl Disturbance {
    const ALL: [Self; 4] = [Self::KillBefore, Self::KillAfter, Self::StopBefore, Self::StopAfter];
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::KillBefore => "process before killed",
            Self::KillAfter => "process after killed",
            Self::StopBefore => "process before stopped",
            Self::StopAfter => "process after stopped",
        })
    }
}

/// How often which side served afterwards, for one kind of disturbance.
#[derive(Debug, Default, Clone, Copy)]
struct Outcomes {
    rounds: u32,
    before: u32,
    after: u32,
    afresh: u32,
    configured: u32,
    longest: Duration,
}

/// Who serves.
#[derive(Debug, Clone, Copy)]
struct Served {
    by_taker: bool,
    afresh: bool,
    configured: bool,
}

pub(crate) fn run(arguments: &Arguments, own: &Program, count: u32) -> anyhow::Result<()> {
    println!(
        "| mode, queues | disturbed | rounds | the process before went on | the one after took over | a third started \
         | configured anew | longest until somebody served and a ping came back, ms |"
    );
    println!("|---|---|--:|--:|--:|--:|--:|--:|");
    let mut random = Noise::new(arguments.seed);
    let rows = (arguments.modes.len() * arguments.queues.len()).max(1) as u32;
    for mode in &arguments.modes {
        for queues in &arguments.queues {
            let mut ground = Ground::new(&arguments.wireloom, *mode, *queues, own)?;
            let nonces = Nonces::watch(ground.lab.underlay())?;
            let [near, far] = &ground.ends;
            let numbered = Numbered::start(near, far, Family::V4, RATE, DATAGRAM)?;
            let mut all = [Outcomes::default(); 4];
            let (mut lost, mut outage, mut round) = (0, Duration::ZERO, 0);
            while round < count.div_ceil(rows) {
                let [near, far] = &ground.ends;
                let start = |family| Pinger::start(near, far, family, PING_INTERVAL);
                let pingers = FAMILIES.into_iter().map(start).collect::<Result<Vec<_>, _>>()?;
                for _ in 0..PINGED.min(count.div_ceil(rows) - round) {
                    let kind = within(&mut random, 0..4) as usize;
                    let begun = Instant::now();
                    let served = disturb(&mut ground, Disturbance::ALL[kind], &mut random)?;
                    all[kind].add(served, begun.elapsed());
                    round += 1;
                    ensure!(
                        nonces.report()?.twice == 0,
                        "round {round}, {}: a nonce came twice",
                        Disturbance::ALL[kind]
                    );
                }
                for pinger in pingers {
                    let report = pinger.stop()?;
                    lost += report.lost;
                    outage = outage.max(report.outage);
                }
            }
            for (disturbance, outcomes) in Disturbance::ALL.into_iter().zip(all) {
                println!("| {mode}, {queues} | {disturbance} | {outcomes} |");
            }
            let (numbered, nonces) = (numbered.stop()?, nonces.report()?);
            println!(
                "\n{mode}, {queues}: {lost} pings lost, longest outage {:.0} ms; of {} datagrams {} lost, {} twice; \
                 {} messages in {} sessions on the wire, {} nonces twice, {} backwards, {} packets in plaintext\n",
                outage.as_secs_f64() * 1e3,
                numbered.sent,
                numbered.lost,
                numbered.twice,
                nonces.messages,
                nonces.sessions,
                nonces.twice,
                nonces.backwards,
                nonces.plaintext
            );
        }
    }
    Ok(())
}

/// Begins a hand-over, disturbs it, and waits until somebody serves.
fn disturb(ground: &mut Ground, disturbance: Disturbance, random: &mut Noise) -> anyhow::Result<Served> {
    let mut taker = ground.device.begin_hand_over()?;
    thread::sleep(Duration::from_micros(within(random, MOMENT)));
    let before = &ground.device;
    match disturbance {
        Disturbance::KillBefore => kill(before),
        Disturbance::KillAfter => kill(&taker),
        Disturbance::StopBefore => stop(before, random),
        Disturbance::StopAfter => stop(&taker, random),
    }
    let deadline = Instant::now() + BACK;
    let mut served = Served { by_taker: false, afresh: false, configured: false };
    loop {
        let waits = Instant::now() < deadline;
        match (ground.device.has_ended(), taker.has_ended()) {
            // Both: one of them will end.
            (false, false) => {
                ensure!(
                    waits,
                    "neither process ends; before: {}; after: {}",
                    ground.device.said(),
                    taker.said()
                );
            }
            (true, false) => {
                served.by_taker = true;
                std::mem::swap(&mut ground.device, &mut taker);
            }
            (true, true) => {
                served.afresh = true;
                ground.start_afresh()?;
            }
            (false, true) => {
                // It may be on its way to start afresh, and answer nobody for a moment.
                if !ground.is_configured() && ground.configure_again().is_ok() {
                    served.configured = true;
                }
                if ground.works() {
                    return Ok(served);
                }
                ensure!(waits, "nobody serves; before: {}; after: {}", ground.device.said(), taker.said());
            }
        }
        thread::sleep(LOOK);
    }
}

fn kill(device: &Device) {
    // One that has ended already needs no signal.
    let _ = device.signal(Signal::SIGKILL);
}

fn stop(device: &Device, random: &mut Noise) {
    let _ = device.signal(Signal::SIGSTOP);
    thread::sleep(Duration::from_micros(within(random, STOPPED)));
    let _ = device.signal(Signal::SIGCONT);
}

impl Outcomes {
    fn add(&mut self, served: Served, time: Duration) {
        self.rounds += 1;
        match served {
            Served { afresh: true, .. } => self.afresh += 1,
            Served { by_taker: true, .. } => self.after += 1,
            Served { .. } => self.before += 1,
        }
        self.configured += u32::from(served.configured);
        self.longest = self.longest.max(time);
    }
}

impl fmt::Display for Outcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rounds, before, after, afresh, configured, longest } = self;
        write!(
            f,
            "{rounds} | {before} | {after} | {afresh} | {configured} | {:.0}",
            longest.as_secs_f64() * 1e3
        )
    }
}

/// Which number of a range is next.
fn within(random: &mut Noise, range: Range<u64>) -> u64 {
    range.start + random.number() % (range.end - range.start)
}
