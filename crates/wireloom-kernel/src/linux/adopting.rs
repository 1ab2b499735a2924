//! The device of another instance, such as the pod of the version before, whose place that of our own one takes.

use super::Linux;
use crate::{
    error::{Attempt, Error},
    wireguard::{Backend, userspace::Adoption},
};

impl Linux {
    /// Has our supervisor's device take over our interface from the one that has it, with its sessions, unless it has
    /// it already. `anew`: even then, after [`Self::release_device`]. `None` when there is nothing to take over: no
    /// device of the userspace engine, or none that answers, which a pass replaces.
    ///
    /// # Errors
    /// The device or our supervisor cannot be asked, or the new device did not take over: then the one before serves
    /// on.
    pub fn adopt_device(&mut self, anew: bool) -> Result<Option<Adoption>, Error> {
        let found = self.find_interface()?;
        let ours = found.filter(|found| found.interface.is_ours() && found.backend == Backend::Userspace);
        let Some(found) = ours.filter(|found| !found.interface.left) else { return Ok(None) };
        let Some(device) = self.read_device(Backend::Userspace)? else { return Ok(None) };
        let peer_lookup = found.interface.peer_lookup;
        let adopted = self.userspace_device.adopt(&device, peer_lookup, anew);
        adopted.map(Some).attempt(|| "have our own supervisor's device take over".into())
    }

    /// Tells our supervisor, if there is one, that another instance's device takes over from its own: it does not start
    /// that again when it ends.
    ///
    /// # Errors
    /// The supervisor cannot be asked.
    pub fn release_device(&self) -> Result<(), Error> {
        self.userspace_device.release().attempt(|| "release the device".into())
    }
}
