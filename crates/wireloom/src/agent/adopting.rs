//! Has the device of this instance's own supervisor serve, in the place of the instance's before.

use std::time::{Duration, Instant};

use wireloom_kernel::Adoption;

use super::Agent;

/// The pause after the first attempt that fails. It doubles with each further one: an attempt may hold up all packets
/// for a moment before it fails.
const RETRY: Duration = Duration::from_secs(1);

/// The longest pause.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Whether this instance's own device serves. Until it does, this instance is not ready: whoever removes the one before
/// would remove its device too.
#[derive(Debug)]
pub(super) struct Adopting {
    is_done: bool,
    /// Our supervisor was told that another instance would have the device.
    anew: bool,
    /// When the next attempt is due, after one that failed.
    due: Option<Instant>,
    /// The pause after the next attempt that fails.
    pause: Duration,
    pub(super) error: Option<String>,
}

impl Adopting {
    pub(super) fn new(gave_way: bool) -> Self {
        Self { is_done: false, anew: gave_way, due: None, pause: RETRY, error: None }
    }

    /// When the next attempt is due, after one that failed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    fn succeeded(&mut self) {
        self.is_done = true;
        self.due = None;
        self.error = None;
    }

    /// The device before did not answer, so that nothing was attempted. It may in a moment, or a pass makes it anew.
    fn met_silence(&mut self, now: Instant) {
        self.due = Some(now + RETRY);
        self.error = Some("the device before does not answer yet".into());
    }

    /// Returns whether that is news.
    fn failed(&mut self, now: Instant, why: String) -> bool {
        self.due = Some(now + self.pause);
        self.pause = RETRY_MAX.min(2 * self.pause);
        let is_news = self.error.as_ref() != Some(&why);
        self.error = Some(why);
        is_news
    }
}

impl Agent {
    /// Takes the device over if that is still to be done.
    pub(super) fn adopt_device(&mut self) {
        let now = Instant::now();
        if self.adopting.is_done || self.adopting.due().is_some_and(|due| now < due) {
            return;
        }
        let outcome = self.reconciler.kernel_mut().adopt_device(self.adopting.anew);
        // It may have taken seconds.
        let ended = Instant::now();
        match outcome {
            Ok(adopted) => {
                self.adopting.succeeded();
                if adopted == Some(Adoption::Taken) {
                    tracing::info!("this instance's device has taken over, with all sessions");
                    self.reconciler.distrust_kernel();
                    self.due = now;
                }
            }
            Err(error) if error.silence().is_some() => self.adopting.met_silence(ended),
            Err(error) => {
                let text = error.to_string();
                if self.adopting.failed(ended, text.clone()) {
                    tracing::warn!("{text}; the device before serves on, and it is tried again");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_not_ready_before_its_device_serves() {
        let now = Instant::now();
        let mut adopting = Adopting::new(false);
        assert_eq!((adopting.due(), &adopting.error), (None, &None), "nothing was tried");
        // Even if the device answers the next pass.
        adopting.met_silence(now);
        assert_eq!(adopting.due(), Some(now + RETRY));
        assert!(adopting.error.is_some());
        adopting.succeeded();
        assert_eq!((adopting.due(), &adopting.error), (None, &None));
    }

    #[test]
    fn attempts_that_fail_become_rare() {
        let now = Instant::now();
        let mut adopting = Adopting::new(false);
        let pauses: Vec<_> = (0..9)
            .map(|attempt| {
                assert_eq!(adopting.failed(now, "it is too slow".into()), attempt == 0);
                (adopting.due().unwrap() - now).as_secs()
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        adopting.met_silence(now);
        assert_eq!(adopting.due(), Some(now + RETRY), "a question costs nobody anything");
    }
}
