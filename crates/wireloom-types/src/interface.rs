//! The names by which programs recognise an interface and find its control socket.

use std::path::{Path, PathBuf};

/// The alias (`IFLA_IFALIAS`) of an interface that the agent made: any other interface is somebody else's.
pub const AGENT_ALIAS: &str = "wireloom";

/// The alias of an interface that a device made, until the agent gives it [`AGENT_ALIAS`].
pub const DEVICE_ALIAS: &str = "wireloom device";

/// Where `wg` looks for the control sockets of userspace interfaces (`RUNSTATEDIR` in `src/ipc-uapi.h` of wireguard-tools).
pub const CONTROL_SOCKET_DIRECTORY: &str = "/var/run/wireguard";

/// The control socket of an interface, in [`CONTROL_SOCKET_DIRECTORY`].
#[must_use]
pub fn control_socket(interface: &str) -> PathBuf {
    Path::new(CONTROL_SOCKET_DIRECTORY).join(format!("{interface}.sock"))
}
