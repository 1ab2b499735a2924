//! Sysctls of underlay interfaces, changed only after what they were is on the disk.

use std::{fs, io, path::PathBuf};

use wireloom_plan::kernel::UnderlaySysctl;

use super::error::{Attempt, Error};
use crate::state::StateDir;

/// `net.ipv4.conf.IFACE.…`; an interface's name may hold dots, so it is a path and not a dotted name.
fn path(interface: &str, sysctl: UnderlaySysctl) -> PathBuf {
    PathBuf::from("/proc/sys/net/ipv4/conf").join(interface).join(file_name(sysctl))
}

fn file_name(sysctl: UnderlaySysctl) -> &'static str {
    match sysctl {
        UnderlaySysctl::RpFilter => "rp_filter",
        UnderlaySysctl::SrcValidMark => "src_valid_mark",
        UnderlaySysctl::SendRedirects => "send_redirects",
    }
}

/// `None` when the interface is gone.
pub(super) fn read(interface: &str, sysctl: UnderlaySysctl) -> Result<Option<u8>, Error> {
    let path = path(interface, sysctl);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.attempt(|| format!("read {}", path.display()))?,
    };
    let number =
        text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{text:?}")));
    number.map(Some).attempt(|| format!("read {}", path.display()))
}

/// Lets IPv6 routes lead to our own interface also on a machine whose operator turned IPv6 off
/// (`net.ipv6.conf.default.disable_ipv6`): the kernel refuses them otherwise, and without its routes
/// no rule comes up. It is our interface's own setting and goes with it.
pub(super) fn enable_ipv6(interface: &str) -> Result<(), Error> {
    let path = PathBuf::from("/proc/sys/net/ipv6/conf").join(interface).join("disable_ipv6");
    match fs::read_to_string(&path) {
        Ok(text) if text.trim() != "0" => {
            tracing::info!("turn IPv6 on for {interface}, which the mesh routes");
            fs::write(&path, "0").attempt(|| format!("write {}", path.display()))
        }
        // It is on, or the kernel has no IPv6, or the interface is gone: the route will tell.
        _ => Ok(()),
    }
}

/// Does something that changes the sysctl behind our back, and puts that back.
pub(super) fn preserve<T>(
    interface: &str,
    sysctl: UnderlaySysctl,
    action: impl FnOnce() -> T,
) -> Result<T, Error> {
    let before = read(interface, sysctl)?;
    let outcome = action();
    match before {
        Some(before) if read(interface, sysctl)? != Some(before) => {
            let operation = || format!("put net.ipv4.conf.{interface}.{} back", file_name(sysctl));
            fs::write(path(interface, sysctl), before.to_string()).attempt(operation)?;
        }
        _ => {}
    }
    Ok(outcome)
}

/// Records what the sysctl was, unless that is recorded already, and then sets it.
pub(super) fn set(state: &StateDir, interface: &str, sysctl: UnderlaySysctl, value: u8) -> Result<(), Error> {
    let operation = || format!("set net.ipv4.conf.{interface}.{} to {value}", file_name(sysctl));
    let mut saved = state.saved_sysctls().attempt(operation)?;
    if let Some(before) = read(interface, sysctl)? {
        let of_interface = saved.entry(interface.to_owned()).or_default();
        if let std::collections::btree_map::Entry::Vacant(vacant) = of_interface.entry(sysctl) {
            vacant.insert(before);
            state.save_sysctls(&saved).attempt(operation)?;
        }
    }
    fs::write(path(interface, sysctl), value.to_string()).attempt(operation)
}

/// Puts the sysctl back and forgets the record; of an interface that is gone only the record goes.
pub(super) fn restore(state: &StateDir, interface: &str, sysctl: UnderlaySysctl) -> Result<(), Error> {
    let operation = || format!("put net.ipv4.conf.{interface}.{} back", file_name(sysctl));
    let mut saved = state.saved_sysctls().attempt(operation)?;
    let Some(of_interface) = saved.get_mut(interface) else { return Ok(()) };
    let Some(before) = of_interface.remove(&sysctl) else { return Ok(()) };
    match fs::write(path(interface, sysctl), before.to_string()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        written => written.attempt(operation)?,
    }
    if of_interface.is_empty() {
        saved.remove(interface);
    }
    state.save_sysctls(&saved).attempt(operation)
}
