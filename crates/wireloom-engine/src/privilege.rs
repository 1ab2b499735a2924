//! Gives up what the process does not need, once the interface and the control socket are there.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;

/// What is needed later: `CAP_NET_ADMIN` for the mark and the buffers of a socket that is opened
/// anew, `CAP_NET_BIND_SERVICE` for a port below 1024.
const NEEDED: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_BIND_SERVICE];

/// Keeps the needed capabilities, as far as they are there, and rules out gaining others. Nor does
/// the process, whose memory holds keys, leave a core file.
pub(crate) fn drop_unneeded() -> io::Result<()> {
    prctl::set_no_new_privs()?;
    prctl::set_dumpable(false)?;
    let keep: CapsHashSet = NEEDED.into_iter().collect();
    let permitted = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let keep = &keep & &permitted;
    // Effective first: it may never exceed what is permitted.
    for (set, keep) in
        [(CapSet::Effective, &keep), (CapSet::Permitted, &keep), (CapSet::Inheritable, &CapsHashSet::new())]
    {
        caps::set(None, set, keep).map_err(io::Error::other)?;
    }
    Ok(())
}
