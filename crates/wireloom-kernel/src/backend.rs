//! Which of the two WireGuard back ends carries the packets.
//!
//! An interface that another back end has is, to the plan, one whose device is gone: it is made
//! anew with the same key, port and peers, behind routes that refuse meanwhile.

use std::fmt;

use serde::{Deserialize, Deserializer, de};
use wireloom_plan::settings::Settings;
use wireloom_types::{PeerLookup, SourceCheck};

use super::{
    Linux,
    error::{Attempt, Cause, Error},
    link,
    wireguard::{Backend, Implementation, kernel::InKernel},
};

/// Which back end the operator wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BackendSetting {
    /// The kernel's WireGuard where it can be had, else the userspace engine.
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
                "{other:?} is no back end; write \"auto\", \"kernel\" or \"userspace\""
            ))),
        }
    }
}

/// Who carries the packets from now on, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Who.
    pub implementation: Implementation,
    /// In words, for the log and `wireloom status`.
    pub why: String,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.implementation, self.why)
    }
}

impl Linux {
    /// Decides which back end the interface shall have, and takes it from the next pass on. To
    /// find out what the kernel has, a device of another name is made and taken away again.
    ///
    /// # Errors
    /// The kernel's WireGuard is asked for and cannot be had: all stays as it was.
    pub fn choose_backend(&mut self, wanted: BackendSetting, settings: &Settings) -> Result<Choice, Error> {
        // One of another kind is made anew anyway.
        let fits =
            |found: &link::Indexed| found.link.is_ours() && found.link.peer_lookup == settings.peer_lookup;
        let present = self.link()?.filter(fits).map(|found| found.implementation);
        let choice = choose(wanted, settings, present, InKernel::try_out)?;
        self.wanted = Some(choice.implementation);
        Ok(choice)
    }

    /// Takes what the settings decide without trying anything out, for commands that only look.
    pub fn expect_backend(&mut self, wanted: BackendSetting, settings: &Settings) {
        self.wanted = decided(wanted, settings).map(|choice| choice.implementation);
    }

    pub(super) fn backend(&mut self, which: Implementation) -> &mut dyn Backend {
        match which {
            Implementation::Kernel => &mut self.in_kernel,
            Implementation::Userspace => &mut self.userspace,
        }
    }

    /// Who carries the packets now; `None` without an interface of ours.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn present_backend(&mut self) -> Result<Option<Implementation>, Error> {
        Ok(self.link()?.filter(|found| found.link.is_ours()).map(|found| found.implementation))
    }

    pub(super) fn implementation(&mut self) -> Result<Implementation, Error> {
        let gone = || Cause::Passing("our interface is gone".into());
        self.present_backend()?.ok_or_else(gone).attempt(|| "find the WireGuard device".into())
    }
}

/// What the settings say by themselves; `None`: whatever is there, or else can be had.
fn decided(wanted: BackendSetting, settings: &Settings) -> Option<Choice> {
    let standard =
        settings.peer_lookup == PeerLookup::Destination && settings.source_check == SourceCheck::AllowedIps;
    let (implementation, why) = match wanted {
        BackendSetting::Kernel => (Implementation::Kernel, "agent.toml says so"),
        BackendSetting::Userspace => (Implementation::Userspace, "agent.toml says so"),
        BackendSetting::Auto if !standard => {
            (Implementation::Userspace, "the kernel's WireGuard has no [link] settings")
        }
        BackendSetting::Auto => return None,
    };
    Some(Choice { implementation, why: why.into() })
}

fn choose(
    wanted: BackendSetting,
    settings: &Settings,
    present: Option<Implementation>,
    try_out: impl FnOnce() -> Result<(), Cause>,
) -> Result<Choice, Error> {
    match (decided(wanted, settings), present) {
        (Some(choice), present) => {
            if choice.implementation == Implementation::Kernel && present != Some(Implementation::Kernel) {
                try_out().map_err(name_the_mend).attempt(|| "use backend = \"kernel\"".into())?;
            }
            Ok(choice)
        }
        // An upgrade of the agent, or of the kernel, is no reason to drop a session.
        (None, Some(implementation)) => {
            Ok(Choice { implementation, why: "it has the interface already".into() })
        }
        (None, None) => Ok(match try_out() {
            Ok(()) => Choice { implementation: Implementation::Kernel, why: "it can be had here".into() },
            Err(cause) => Choice { implementation: Implementation::Userspace, why: cause.to_string() },
        }),
    }
}

fn name_the_mend(cause: Cause) -> Cause {
    match cause {
        Cause::Told(what) => {
            Cause::Told(format!("{what}; load it, or write backend = \"userspace\" or \"auto\""))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::BackendSetting::{Auto, Kernel, Userspace};
    use super::*;

    fn absent() -> Result<(), Cause> {
        Err(Cause::Told("this kernel has no WireGuard".into()))
    }

    fn untried() -> Result<(), Cause> {
        panic!("there is no need to try")
    }

    #[test]
    fn auto_takes_the_kernel_where_it_can_and_says_why_not() {
        let settings = Settings::defaults("a");
        let chosen = choose(Auto, &settings, None, || Ok(())).unwrap();
        assert_eq!(chosen.implementation, Implementation::Kernel);
        let chosen = choose(Auto, &settings, None, absent).unwrap();
        assert_eq!(
            chosen,
            Choice { implementation: Implementation::Userspace, why: "this kernel has no WireGuard".into() }
        );
    }

    #[test]
    fn auto_takes_an_interface_from_nobody() {
        for there in [Implementation::Kernel, Implementation::Userspace] {
            let chosen = choose(Auto, &Settings::defaults("a"), Some(there), untried).unwrap();
            assert_eq!(chosen.implementation, there);
        }
    }

    #[test]
    fn what_agent_toml_names_is_taken_from_whoever_has_it() {
        let settings = Settings::defaults("a");
        let chosen = choose(Kernel, &settings, Some(Implementation::Userspace), || Ok(())).unwrap();
        assert_eq!(chosen.implementation, Implementation::Kernel);
        let chosen = choose(Userspace, &settings, Some(Implementation::Kernel), untried).unwrap();
        assert_eq!(chosen.implementation, Implementation::Userspace);
    }

    #[test]
    fn a_kernel_without_wireguard_is_an_error_with_the_mend() {
        let error = choose(Kernel, &Settings::defaults("a"), None, absent).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot use backend = \"kernel\": this kernel has no WireGuard; load it, or write backend = \
             \"userspace\" or \"auto\""
        );
    }

    #[test]
    fn link_mode_is_the_userspace_engines() {
        let settings = Settings { peer_lookup: PeerLookup::Gateway, ..Settings::defaults("a") };
        for wanted in [Auto, Userspace] {
            for present in [None, Some(Implementation::Kernel)] {
                let chosen = choose(wanted, &settings, present, untried).unwrap();
                assert_eq!(chosen.implementation, Implementation::Userspace);
            }
        }
    }
}
