//! The programs that the laboratory needs from the system, and the Debian packages that have them.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use crate::{Error, Result};

/// Programs, each with its Debian package.
const PACKAGES: &[(&str, &str)] = &[
    ("babeld", "babeld"),
    ("bird", "bird2"),
    ("birdc", "bird2"),
    // FRR's daemons are not in PATH.
    ("/usr/lib/frr/zebra", "frr"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("bridge", "iproute2"),
    ("conntrack", "conntrack"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("etcd", "etcd-server"),
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("iptables", "iptables"),
    ("jq", "jq"),
    ("nstat", "iproute2"),
    ("ss", "iproute2"),
    ("ping", "iputils-ping"),
    ("nft", "nftables"),
    ("kill", "procps"),
    ("mount", "mount"),
    ("nsenter", "util-linux"),
    ("pgrep", "procps"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("ps", "procps"),
    ("readelf", "binutils"),
    ("taskset", "util-linux"),
    ("tcpdump", "tcpdump"),
    ("unshare", "util-linux"),
    ("runc", "runc"),
    ("sysctl", "procps"),
    ("wg", "wireguard-tools"),
    ("wg-quick", "wireguard-tools"),
    ("wireguard-go", "wireguard-go"),
];

/// Where Debian keeps administrators' programs, which an ordinary user's `PATH` lacks.
const ADMINISTRATORS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// This process's `PATH`, followed by the administrators' directories.
pub(crate) fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(ADMINISTRATORS.map(PathBuf::from));
    env::join_paths(directories).expect("the parts of a PATH contain no separator")
}

/// Checks that each of these programs is installed.
///
/// # Errors
/// [`Error::MissingTool`] for the first that is not, with the name of its Debian package.
pub fn require(programs: &[&str]) -> Result<()> {
    require_in(&search_path(), programs)
}

/// A program that [`PACKAGES`] does not list counts as installed: it fails when it is run.
fn require_in(path: &OsStr, programs: &[&str]) -> Result<()> {
    for (program, package) in PACKAGES.iter().filter(|(program, _)| programs.contains(program)) {
        if !env::split_paths(path).any(|directory| directory.join(program).is_file()) {
            return Err(Error::MissingTool { program, package });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let empty = tempfile::tempdir().unwrap();
        let error = require_in(empty.path().as_os_str(), &["nft"]).unwrap_err();
        assert_eq!(error.to_string(), "the program `nft` is missing: install the Debian package `nftables`");
        std::fs::write(empty.path().join("nft"), "").unwrap();
        assert!(require_in(empty.path().as_os_str(), &["nft", "not-listed"]).is_ok());
    }
}
