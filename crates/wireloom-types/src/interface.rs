//! The names by which programs recognise an interface and find its control socket.

use std::path::{Path, PathBuf};

/// The alias (`IFLA_IFALIAS`) of an interface that the agent made. The agent leaves every other interface alone.
pub const AGENT_ALIAS: &str = "wireloom";

/// The alias of an interface that `wireloom device` made, until the agent gives it [`AGENT_ALIAS`].
pub const DEVICE_ALIAS: &str = "wireloom device";

/// Where `wg` looks for the control sockets of userspace interfaces: `RUNSTATEDIR "/wireguard/"` in `src/ipc-uapi.h` of
/// wireguard-tools.
const CONTROL_SOCKETS: &str = "/var/run/wireguard";

/// The path of an interface's control socket, `/var/run/wireguard/NAME.sock`, where `wg` looks for it.
///
/// `interface` is the interface's name. It is not checked: the kernel refuses names with a slash.
#[must_use]
pub fn control_socket(interface: &str) -> PathBuf {
    Path::new(CONTROL_SOCKETS).join(format!("{interface}.sock"))
}

/// Where the files of hand-overs are. Not beside the control sockets, which `wg` lists and, when nobody answers,
/// removes.
const HANDOVERS: &str = "/run/wireloom";

/// The path of an interface's hand-over socket, `/run/wireloom/NAME.handover`. `interface` is as for
/// [`control_socket`].
#[must_use]
pub fn handover_socket(interface: &str) -> PathBuf {
    Path::new(HANDOVERS).join(format!("{interface}.handover"))
}

/// The path of the file by which the processes that have an interface are found, `/run/wireloom/NAME.holders`.
/// `interface` is as for [`control_socket`].
#[must_use]
pub fn holders_file(interface: &str) -> PathBuf {
    Path::new(HANDOVERS).join(format!("{interface}.holders"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_sockets_are_where_wg_looks_for_them() {
        assert_eq!(control_socket("wg0"), Path::new("/var/run/wireguard/wg0.sock"));
    }
}
