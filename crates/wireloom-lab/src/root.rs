//! Becoming root: of the machine, or of a user namespace.

use std::{
    env, fs, io,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use crate::{Error, Result, tools};

/// Bits of `CapEff` in `/proc/self/status` (`include/uapi/linux/capability.h`): `CAP_NET_ADMIN`,
/// `CAP_NET_RAW` and `CAP_SYS_ADMIN`.
const NEEDED: u64 = 1 << 12 | 1 << 13 | 1 << 21;

/// Makes sure that this process may make namespaces. If it may not, the program is executed again as root of a new
/// user namespace, with the same arguments and process id, so call this first: what ran before runs twice.
///
/// # Errors
/// [`Error::NotPermitted`] where user namespaces are forbidden.
pub fn become_root() -> Result<()> {
    if capabilities()? & NEEDED == NEEDED {
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

fn capabilities() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").map_err(Error::io("read /proc/self/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .ok_or_else(|| Error::io("read CapEff")(io::Error::from(io::ErrorKind::InvalidData)))
}
