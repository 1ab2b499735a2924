//! A userspace device that does not answer, because its process hangs or was stopped.

use super::Linux;
use crate::{
    error::{Attempt, Error},
    wireguard::{Silence, userspace::SILENCE_MAX},
};

impl Linux {
    /// Ends our device if it has not answered for [`SILENCE_MAX`], so that the next pass starts another one behind the
    /// interface, which stays. Returns its silence if it did. Such a silence takes several looks: time in which this
    /// process did not run either counts for 2 s at most.
    ///
    /// # Errors
    /// The process cannot be ended.
    pub fn end_silent_device(&mut self) -> Result<Option<Silence>, Error> {
        let Some(silence) = self.userspace_device.silence() else { return Ok(None) };
        if silence.lasted < SILENCE_MAX || !self.has_own_interface()? {
            return Ok(None);
        }
        // It may have answered meanwhile.
        match self.device() {
            Err(error) if error.silence().is_some() => {}
            _ => return Ok(None),
        }
        self.userspace_device
            .kill_silent()
            .attempt(|| "end the WireGuard device, which does not answer".into())?;
        self.await_end_of_process()?;
        Ok(Some(silence))
    }

    fn has_own_interface(&mut self) -> Result<bool, Error> {
        Ok(self.find_interface()?.is_some_and(|found| found.interface.is_ours()))
    }
}
