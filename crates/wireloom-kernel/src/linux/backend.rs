//! The choice between the two WireGuard back ends.
//!
//! To the plan, an interface of the other back end is one whose device is gone and cannot be replaced: it is recreated
//! with the same key, port and peers, and its destinations are unreachable meanwhile.

use std::fmt;

use serde::{Deserialize, Deserializer, de};
use wireloom_plan::settings::Settings;
use wireloom_types::{PeerLookup, SourceCheck};

use super::Linux;
use crate::{
    error::{Attempt, Cause, Error},
    rtnetlink::interface,
    wireguard::{Backend, WireguardDevice, in_kernel::KernelDevice},
};

/// The operator's setting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BackendSetting {
    /// The kernel's WireGuard where it is available, otherwise the userspace engine.
    #[default]
    Auto,
    /// The kernel's own WireGuard.
    Kernel,
    /// `wireloom device`, in a process of its own.
    Userspace,
}

impl<'de> Deserialize<'de> for BackendSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "auto" => Ok(Self::Auto),
            "kernel" => Ok(Self::Kernel),
            "userspace" => Ok(Self::Userspace),
            other => Err(de::Error::custom(format!(
                "{other:?} is not a back end; write \"auto\", \"kernel\" or \"userspace\""
            ))),
        }
    }
}

/// The back end that carries the packets from now on, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendChoice {
    /// The back end.
    pub backend: Backend,
    /// The reason in words, for the log and `wireloom status`.
    pub why: String,
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.backend, self.why)
    }
}

impl Linux {
    /// Chooses the back end, and uses it from the next pass on. To find out whether the kernel has WireGuard,
    /// it creates a device with another name and removes it again.
    ///
    /// # Errors
    /// The setting asks for the kernel's WireGuard, which is not available: nothing changes.
    pub fn choose_backend(
        &mut self,
        wanted: BackendSetting,
        settings: &Settings,
    ) -> Result<BackendChoice, Error> {
        // An interface of another kind is recreated anyway.
        let fits = |found: &interface::Found| {
            found.interface.is_ours() && found.interface.peer_lookup == settings.peer_lookup
        };
        let present = self.find_interface()?.filter(fits).map(|found| found.backend);
        let choice = choose(wanted, settings, present, KernelDevice::probe)?;
        self.wanted = Some(choice.backend);
        Ok(choice)
    }

    /// Uses the back end that the settings decide, without probing the kernel: for commands that change
    /// nothing.
    pub fn expect_backend(&mut self, wanted: BackendSetting, settings: &Settings) {
        self.wanted = decided(wanted, settings).map(|choice| choice.backend);
    }

    pub(super) fn wireguard(&mut self, backend: Backend) -> &mut dyn WireguardDevice {
        match backend {
            Backend::Kernel => &mut self.kernel_device,
            Backend::Userspace => &mut self.userspace_device,
        }
    }

    /// The back end that carries the packets now; `None` without an interface of ours.
    ///
    /// # Errors
    /// The interface cannot be read.
    pub fn present_backend(&mut self) -> Result<Option<Backend>, Error> {
        Ok(self.find_interface()?.filter(|found| found.interface.is_ours()).map(|found| found.backend))
    }

    pub(super) fn current_backend(&mut self) -> Result<Backend, Error> {
        let gone = || Cause::Transient("our interface is gone".into());
        self.present_backend()?.ok_or_else(gone).attempt(|| "find the WireGuard device".into())
    }
}

/// The back end that the settings decide by themselves; `None` when it depends on the machine.
fn decided(wanted: BackendSetting, settings: &Settings) -> Option<BackendChoice> {
    let standard =
        settings.peer_lookup == PeerLookup::Destination && settings.source_check == SourceCheck::AllowedIps;
    let (backend, why) = match wanted {
        BackendSetting::Kernel => (Backend::Kernel, "agent.toml says so"),
        BackendSetting::Userspace => (Backend::Userspace, "agent.toml says so"),
        BackendSetting::Auto if !standard => {
            (Backend::Userspace, "the kernel's WireGuard has no [link] settings")
        }
        BackendSetting::Auto => return None,
    };
    Some(BackendChoice { backend, why: why.into() })
}

fn choose(
    wanted: BackendSetting,
    settings: &Settings,
    present: Option<Backend>,
    probe: impl FnOnce() -> Result<(), Cause>,
) -> Result<BackendChoice, Error> {
    match (decided(wanted, settings), present) {
        (Some(choice), present) => {
            if choice.backend == Backend::Kernel && present != Some(Backend::Kernel) {
                probe().map_err(name_the_fix).attempt(|| "use backend = \"kernel\"".into())?;
            }
            Ok(choice)
        }
        // An upgrade of the agent or of the kernel is no reason to drop sessions.
        (None, Some(backend)) => Ok(BackendChoice { backend, why: "it already has the interface".into() }),
        (None, None) => Ok(match probe() {
            Ok(()) => BackendChoice { backend: Backend::Kernel, why: "it is available here".into() },
            Err(cause) => BackendChoice { backend: Backend::Userspace, why: cause.to_string() },
        }),
    }
}

fn name_the_fix(cause: Cause) -> Cause {
    match cause {
        Cause::Permanent(what) => {
            Cause::Permanent(format!("{what}; load it, or write backend = \"userspace\" or \"auto\""))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::BackendSetting::{Auto, Kernel, Userspace};
    use super::*;

    fn absent() -> Result<(), Cause> {
        Err(Cause::Permanent("this kernel has no WireGuard".into()))
    }

    fn must_not_probe() -> Result<(), Cause> {
        panic!("the kernel must not be probed")
    }

    #[test]
    fn auto_chooses_the_kernel_where_available_and_otherwise_says_why_not() {
        let settings = Settings::defaults("a");
        let chosen = choose(Auto, &settings, None, || Ok(())).unwrap();
        assert_eq!(chosen.backend, Backend::Kernel);
        let chosen = choose(Auto, &settings, None, absent).unwrap();
        assert_eq!(
            chosen,
            BackendChoice { backend: Backend::Userspace, why: "this kernel has no WireGuard".into() }
        );
    }

    #[test]
    fn auto_keeps_the_back_end_of_an_existing_interface() {
        for there in [Backend::Kernel, Backend::Userspace] {
            let chosen = choose(Auto, &Settings::defaults("a"), Some(there), must_not_probe).unwrap();
            assert_eq!(chosen.backend, there);
        }
    }

    #[test]
    fn a_configured_back_end_replaces_the_other_one() {
        let settings = Settings::defaults("a");
        let chosen = choose(Kernel, &settings, Some(Backend::Userspace), || Ok(())).unwrap();
        assert_eq!(chosen.backend, Backend::Kernel);
        let chosen = choose(Userspace, &settings, Some(Backend::Kernel), must_not_probe).unwrap();
        assert_eq!(chosen.backend, Backend::Userspace);
    }

    #[test]
    fn a_kernel_without_wireguard_is_an_error_that_names_the_fix() {
        let error = choose(Kernel, &Settings::defaults("a"), None, absent).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot use backend = \"kernel\": this kernel has no WireGuard; load it, or write backend = \
             \"userspace\" or \"auto\""
        );
    }

    #[test]
    fn link_mode_needs_the_userspace_engine() {
        let settings = Settings { peer_lookup: PeerLookup::Gateway, ..Settings::defaults("a") };
        for wanted in [Auto, Userspace] {
            for present in [None, Some(Backend::Kernel)] {
                let chosen = choose(wanted, &settings, present, must_not_probe).unwrap();
                assert_eq!(chosen.backend, Backend::Userspace);
            }
        }
    }
}
