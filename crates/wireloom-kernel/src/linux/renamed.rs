//! Our interface under another name, which somebody gave to it.

use nix::errno::Errno;
use wireloom_types::interface::control_socket;

use super::Linux;
use crate::{
    error::Cause,
    rtnetlink::interface,
    wireguard::{Backend, userspace::is_served},
};

impl Linux {
    /// Before our interface is made anew: removes what has become of it, if that is found here. It would keep the port,
    /// and its process the control socket.
    pub(super) fn remove_renamed(&mut self) -> Result<(), Cause> {
        let ours = self.interface.clone();
        let Some(renamed) = self.find_renamed()? else {
            if let Some((_, backend)) = self.last_interface {
                tracing::warn!("the interface {ours} was deleted or moved away; making it anew");
                // The process of an interface in another network namespace goes on.
                if backend == Backend::Userspace {
                    self.userspace_device.dismiss()?;
                }
                self.last_interface = None;
            }
            return Ok(());
        };
        let name = &renamed.name;
        tracing::warn!("the interface {ours} was renamed to {name}; removing {name} and making {ours} anew");
        match self.rtnetlink.change(&interface::remove(renamed.index)) {
            // Somebody else removed it meanwhile.
            Err(error) if error.errno() == Some(Errno::ENODEV) => {}
            removed => removed?,
        }
        self.last_interface = None;
        self.wireguard(renamed.backend).end()
    }

    /// Another interface is ours if it has our alias, and either the index that ours had or, of the userspace engine, a
    /// process that serves our name and not the interface's own.
    fn find_renamed(&mut self) -> Result<Option<interface::Found>, Cause> {
        let all = interface::all(&mut self.rtnetlink)?;
        let renamed = all.into_iter().find(|found| {
            let is_same = Some((found.index, found.backend)) == self.last_interface;
            let serves_ours = || {
                found.backend == Backend::Userspace
                    && !found.interface.left
                    && is_served(&control_socket(&self.interface))
                    && !is_served(&control_socket(&found.name))
            };
            found.name != self.interface && found.interface.is_ours() && (is_same || serves_ours())
        });
        Ok(renamed)
    }
}
