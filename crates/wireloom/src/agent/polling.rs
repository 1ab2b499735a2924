//! Polls what the kernel does not announce: the WireGuard device, whose peers, keys and ports `wg set` changes, and
//! sysctls. And notices a device that does not answer.

use std::time::{Duration, Instant};

use wireloom_kernel::{DeviceState, SILENCE_MAX, Silence};

use super::Agent;
use crate::run_file::unix_time;

/// How often the device is read.
const INTERVAL: Duration = Duration::from_secs(2);

/// Polls take no more than one part in so many of the time (2 %), unless they would be further apart than `LONGEST`:
/// what somebody changed is repaired within 5 s. Proofs, which need what the device says then, read it besides.
const SHARE: u32 = 50;
const LONGEST: Duration = Duration::from_millis(4_500);

/// How often a device that does not answer is looked at: first soon, because it may only be late.
const OF_LATE: Duration = Duration::from_millis(50);
const OF_SILENT: Duration = Duration::from_millis(200);

/// How long a device is silent before anybody hears of it. A loaded machine may be late.
const UNREMARKABLE: Duration = Duration::from_secs(1);

/// How long after a failed attempt to restart the device the next one follows.
const RESTART_RETRY: Duration = Duration::from_secs(30);

/// What the agent polls, and what it found.
pub(super) struct Polling {
    /// When the next poll is due.
    due: Instant,
    /// What the device said last, and when.
    pub(super) sample: Option<(Instant, DeviceState)>,
    /// The silence of a device that did not answer the last poll.
    silence: Option<Silence>,
    /// A poll has been answered, be it that there is no device.
    is_answered: bool,
}

impl Polling {
    pub(super) fn new() -> Self {
        Self { due: Instant::now(), sample: None, silence: None, is_answered: false }
    }

    /// Whether it is known how the device is: it has answered, or does not answer for long.
    pub(super) fn knows_device(&self) -> bool {
        self.is_answered || self.silence.is_some_and(is_remarkable)
    }

    /// When the next poll is due.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// What the device said last, and when.
    pub(super) fn sample(&self) -> Option<&(Instant, DeviceState)> {
        self.sample.as_ref()
    }

    /// The silence of a device that did not answer the last poll.
    pub(super) fn silence(&self) -> Option<Silence> {
        self.silence
    }
}

/// Whether a silence is long enough to tell of it.
pub(super) fn is_remarkable(silence: Silence) -> bool {
    silence.lasted >= UNREMARKABLE
}

impl Agent {
    /// Polls if it is time to, and makes a pass due if somebody changed something.
    pub(super) fn poll(&mut self) {
        let begun = Instant::now();
        if begun < self.polling.due || self.last_pass.is_none() {
            return;
        }
        let (kernel, left) = self.reconciler.kernel_and_mirror();
        let outcome = kernel.poll(left);
        let took = begun.elapsed();
        self.polling.due = begun + INTERVAL.max(took * SHARE).min(LONGEST);
        match outcome {
            Ok(poll) => {
                self.report.device_silent_since = None;
                self.polling.is_answered = true;
                self.polling.sample = poll.device.map(|device| (begun, device));
                if self.polling.silence.take().is_some() || poll.tampered {
                    self.look_at_kernel();
                }
            }
            Err(error) => match error.silence() {
                Some(silence) => self.hear_silence(silence),
                None => tracing::debug!("{error}"),
            },
        }
    }

    /// Makes a pass due once a silence is remarkable, which reports it, and when it has lasted too long, which restarts
    /// the device.
    fn hear_silence(&mut self, silence: Silence) {
        let before = self.polling.silence;
        self.await_answer(silence);
        let is_reported = before.is_some_and(is_remarkable);
        let rested = self.last_pass.is_none_or(|last| last.elapsed() >= RESTART_RETRY);
        let is_first = before.is_none_or(|before| before.lasted < SILENCE_MAX);
        if (is_remarkable(silence) && !is_reported) || (silence.lasted >= SILENCE_MAX && (is_first || rested))
        {
            self.look_at_kernel();
        }
    }

    /// Looks at a device again soon that has not answered.
    pub(super) fn await_answer(&mut self, silence: Silence) {
        if is_remarkable(silence) && self.report.device_silent_since.is_none() {
            self.report.device_silent_since = Some(unix_time().saturating_sub(silence.lasted.as_secs()));
        }
        self.polling.silence = Some(silence);
        self.polling.due = Instant::now() + if is_remarkable(silence) { OF_SILENT } else { OF_LATE };
    }

    fn look_at_kernel(&mut self) {
        self.reconciler.distrust_kernel();
        self.due = Instant::now();
    }

    /// Restarts a device that has not answered for too long: ends its process, so that the pass that follows starts
    /// another one.
    pub(super) fn end_silent_device(&mut self) {
        match self.reconciler.kernel_mut().end_silent_device() {
            Ok(Some(silence)) => {
                tracing::warn!(
                    "{silence} for {} s; ended it, to start another one",
                    silence.lasted.as_secs()
                );
                self.reconciler.distrust_kernel();
            }
            Ok(None) => {}
            Err(error) => tracing::error!("{error}"),
        }
    }
}
