//! Sysctls of underlay interfaces, changed only after their values are saved on disk.

use std::{collections::BTreeSet, env, fs, io, path::PathBuf, sync::LazyLock};

use wireloom_plan::sysctl::{ALL, UnderlaySysctl};

use crate::{
    error::{Attempt, Error},
    state::StateDir,
};

/// Where sysctls are: `/proc/sys`, or what `WIRELOOM_SYSCTL_ROOT` names. A container that is not privileged has
/// `/proc/sys` read-only; it can have the host's mounted elsewhere. The network's are those of the process's own
/// network either way (`net_ctl_header_lookup` in net/sysctl_net.c).
static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
    let given = env::var_os("WIRELOOM_SYSCTL_ROOT").filter(|path| !path.is_empty());
    given.map_or_else(|| "/proc/sys".into(), PathBuf::from)
});

/// `net.ipv4.conf.IFACE.…` as a path, because an interface's name may contain dots.
fn path(interface: &str, sysctl: UnderlaySysctl) -> PathBuf {
    ROOT.join("net/ipv4/conf").join(interface).join(sysctl.name())
}

/// `None` when the interface is gone.
pub(crate) fn read(interface: &str, sysctl: UnderlaySysctl) -> Result<Option<u8>, Error> {
    let path = path(interface, sysctl);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.attempt(|| format!("read {}", path.display()))?,
    };
    let number =
        text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{text:?}")));
    number.map(Some).attempt(|| format!("read {}", path.display()))
}

/// The sysctls that make the kernel pass over the routes of our own interface while no device is behind it. For IPv4
/// either of two does it (`IN_DEV_IGNORE_ROUTES_WITH_LINKDOWN`, include/linux/inetdevice.h), for IPv6 the interface's
/// alone (`ip6_ignore_linkdown`, include/net/addrconf.h).
pub(crate) fn linkdown_ignored(interface: &str) -> Result<BTreeSet<String>, Error> {
    const NAME: &str = "ignore_routes_with_linkdown";
    let places = [("ipv4", ALL), ("ipv4", interface), ("ipv6", interface)];
    let mut ignored = BTreeSet::new();
    for (family, of) in places {
        let path = PathBuf::from("/proc/sys/net").join(family).join("conf").join(of).join(NAME);
        match fs::read_to_string(&path) {
            // The interface is gone, or the kernel has no IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            text => {
                if text.attempt(|| format!("read {}", path.display()))?.trim() != "0" {
                    ignored.insert(format!("net.{family}.conf.{of}.{NAME}"));
                }
            }
        }
    }
    Ok(ignored)
}

/// Turns IPv6 on for our own interface, on a machine whose operator turned it off
/// (`net.ipv6.conf.default.disable_ipv6`): otherwise the kernel refuses the routes, and without routes there are
/// no rules. The setting belongs to our interface and goes with it.
pub(crate) fn enable_ipv6(interface: &str) -> Result<(), Error> {
    let path = ROOT.join("net/ipv6/conf").join(interface).join("disable_ipv6");
    match fs::read_to_string(&path) {
        Ok(text) if text.trim() != "0" => {
            tracing::info!("turn IPv6 on for {interface}, because the mesh routes IPv6");
            fs::write(&path, "0").attempt(|| format!("write {}", path.display()))
        }
        // IPv6 is on, or the kernel has none, or the interface is gone: setting the route will tell.
        _ => Ok(()),
    }
}

/// Runs an action that changes the sysctl as a side effect, and restores the sysctl.
pub(crate) fn preserve<T>(
    interface: &str,
    sysctl: UnderlaySysctl,
    action: impl FnOnce() -> T,
) -> Result<T, Error> {
    let before = read(interface, sysctl)?;
    let outcome = action();
    match before {
        Some(before) if read(interface, sysctl)? != Some(before) => {
            let operation = || format!("restore net.ipv4.conf.{interface}.{}", sysctl.name());
            fs::write(path(interface, sysctl), before.to_string()).attempt(operation)?;
        }
        _ => {}
    }
    Ok(outcome)
}

/// Saves the sysctl's value, unless one is saved already, and then sets it.
pub(crate) fn set(state: &StateDir, interface: &str, sysctl: UnderlaySysctl, value: u8) -> Result<(), Error> {
    let operation = || format!("set net.ipv4.conf.{interface}.{} to {value}", sysctl.name());
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

/// Sets `rp_filter` of our own interface. The setting belongs to the interface and goes with it.
pub(crate) fn set_own_rp_filter(interface: &str, value: u8) -> Result<(), Error> {
    let operation = || format!("set net.ipv4.conf.{interface}.rp_filter to {value}");
    fs::write(path(interface, UnderlaySysctl::RpFilter), value.to_string()).attempt(operation)
}

/// Restores the sysctl and deletes the saved value. If the interface is gone, only deletes the saved value.
pub(crate) fn restore(state: &StateDir, interface: &str, sysctl: UnderlaySysctl) -> Result<(), Error> {
    let operation = || format!("restore net.ipv4.conf.{interface}.{}", sysctl.name());
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
