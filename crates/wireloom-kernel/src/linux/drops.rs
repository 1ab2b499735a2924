//! What the device dropped.

use std::collections::BTreeMap;

use wireloom_types::interface::control_socket;

use super::Linux;
use crate::{
    error::{Attempt, Error},
    wireguard::{Backend, userspace},
};

impl Linux {
    /// The packets that the device dropped since it started, by the reason's name; `None` for one that does not say,
    /// as the kernel's WireGuard, and when there is none.
    ///
    /// # Errors
    /// The device does not answer within a second, or the interface cannot be read.
    pub fn drops(&mut self) -> Result<Option<BTreeMap<String, u64>>, Error> {
        if self.present_backend()? != Some(Backend::Userspace) {
            return Ok(None);
        }
        userspace::drops::read(&control_socket(&self.interface))
            .attempt(|| format!("read what the device of {} dropped", self.interface))
    }
}
