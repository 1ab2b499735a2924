//! Becoming root: of the machine, or of a user namespace.

use std::{
    env, io,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use caps::{CapSet, Capability};

use crate::{Error, Result, tools};

/// What it takes to make namespaces and to work in them.
const NEEDED: [Capability; 3] =
    [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW, Capability::CAP_SYS_ADMIN];

/// Makes sure that this process may make namespaces. If it may not, the program is executed again as root of a new
/// user namespace, with the same arguments and process id, so call this first: what ran before runs twice.
///
/// # Errors
/// [`Error::NotPermitted`] where user namespaces are forbidden.
pub fn become_root() -> Result<()> {
    let effective = caps::read(None, CapSet::Effective);
    let effective =
        effective.map_err(io::Error::other).map_err(Error::io("read this process's capabilities"))?;
    if NEEDED.iter().all(|capability| effective.contains(capability)) {
        return Ok(());
    }
    tools::require(&["unshare"])?;
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--"]);
        command
    };
    // Try it on a program that does nothing first: once replaced, this process could not explain a refusal.
    let trial = unshare().arg("true").stdin(Stdio::null()).output().map_err(Error::io("run unshare"))?;
    if !trial.status.success() {
        let reason = String::from_utf8_lossy(&trial.stderr).trim().to_owned();
        return Err(Error::NotPermitted { reason });
    }
    let program = env::current_exe().map_err(Error::io("find this program's file"))?;
    let failure = unshare().arg(program).args(env::args_os().skip(1)).exec();
    Err(Error::io("run unshare")(failure))
}
