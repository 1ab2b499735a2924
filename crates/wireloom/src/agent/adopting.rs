//! Has the device of this instance's own supervisor serve, in the place of the instance's before.

use std::time::{Duration, Instant};

use wireloom_kernel::Adoption;

use super::Agent;

/// The least time between two attempts.
const RETRY: Duration = Duration::from_secs(1);

/// Whether this instance's own device serves. Until it does, this instance is not ready: whoever removes the one before
/// would remove its device too.
#[derive(Debug)]
pub(super) struct Adopting {
    is_done: bool,
    /// Our supervisor was told that another instance would have the device.
    anew: bool,
    tried: Option<Instant>,
    pub(super) error: Option<String>,
}

impl Adopting {
    pub(super) fn new(gave_way: bool) -> Self {
        Self { is_done: false, anew: gave_way, tried: None, error: None }
    }

    /// When the next attempt is due, after one that failed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.error.as_ref().and(self.tried).map(|tried| tried + RETRY)
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
        self.adopting.tried = Some(Instant::now());
        match outcome {
            Ok(adopted) => {
                self.adopting.is_done = true;
                self.adopting.error = None;
                if adopted == Some(Adoption::Taken) {
                    tracing::info!("this instance's device has taken over, with all sessions");
                    self.reconciler.distrust_kernel();
                    self.due = now;
                }
            }
            // It may answer in a moment, or is made anew by a pass.
            Err(error) if error.silence().is_some() => {}
            Err(error) => {
                let text = error.to_string();
                if self.adopting.error.as_ref() != Some(&text) {
                    tracing::warn!("{text}; the device before serves on, and it is tried again");
                }
                self.adopting.error = Some(text);
            }
        }
    }
}
