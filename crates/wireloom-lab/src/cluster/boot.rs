//! What systemd does on a node that boots, for one unit: the one that loads the guard which Wireloom saved last.

use crate::{Node, Result};

/// The unit, as systemd finds it when it is enabled.
const ENABLED: &str = "/etc/systemd/system/sysinit.target.wants/wireloom-guard.service";

/// Runs what the unit says, if the node has it enabled and there is what it asks for. No pod runs yet, so it does not
/// matter here that the network is up before.
pub(super) fn load_guard(machine: &Node) -> Result<()> {
    let space = &machine.host.space;
    let Some(unit) = space.read(ENABLED)? else { return Ok(()) };
    let values = |key: &'static str| {
        unit.lines().filter_map(move |line| line.strip_prefix(key)?.strip_prefix('=').map(str::trim))
    };
    for path in values("ConditionPathExists") {
        if space.read(path)?.is_none() {
            return Ok(());
        }
    }
    values("ExecStart").try_for_each(|line| space.run(line).map(drop))
}
