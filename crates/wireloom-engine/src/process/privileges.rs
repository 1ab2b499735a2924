//! Gives up the privileges that the process does not need once the interface and the control socket are open.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;

/// The capabilities that are needed later: `CAP_NET_ADMIN` for the mark and the buffers of a socket that is opened
/// again, `CAP_NET_BIND_SERVICE` for a port below 1024.
const NEEDED: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_BIND_SERVICE];

/// Keeps the needed capabilities, if the process has them, and makes it impossible to gain others. It also turns off
/// core dumps, because the process's memory holds keys.
pub(crate) fn drop_unneeded() -> io::Result<()> {
    prctl::set_no_new_privs()?;
    forbid_core_dumps()?;
    let keep: CapsHashSet = NEEDED.into_iter().collect();
    let permitted = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let keep = &keep & &permitted;
    // The effective set first: it may never exceed the permitted one.
    for (set, keep) in
        [(CapSet::Effective, &keep), (CapSet::Permitted, &keep), (CapSet::Inheritable, &CapsHashSet::new())]
    {
        caps::set(None, set, keep).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Turns off core dumps: the process's memory holds keys, or will soon.
pub(crate) fn forbid_core_dumps() -> io::Result<()> {
    Ok(prctl::set_dumpable(false)?)
}
