//! The three states that the demo shows.

use wireloom_lab::Promise;

/// What the mesh is in; each follows from the one before on the live mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// One rule for all sources, allowed-IPs for pods alone: the break.
    Unscoped,
    /// `encrypt_host_traffic = false`: the mend.
    Scoped,
    /// `encrypt_host_traffic = true`.
    Host,
}

impl State {
    pub(super) const ALL: [Self; 3] = [Self::Unscoped, Self::Scoped, Self::Host];

    pub(super) fn promise(self) -> Promise {
        match self {
            Self::Unscoped => Promise::UNSCOPED,
            Self::Scoped => Promise::SCOPED,
            Self::Host => Promise::HOST,
        }
    }

    pub(super) fn letter(self) -> char {
        match self {
            Self::Unscoped => 'a',
            Self::Scoped => 'b',
            Self::Host => 'c',
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Unscoped => "One rule for all sources, allowed-IPs for pods alone",
            Self::Scoped => "Rules for the pods' addresses, by the agent",
            Self::Host => "Hosts encrypted too: encrypt_host_traffic = true",
        }
    }

    /// What the rows show, in a sentence.
    pub(super) fn meaning(self) -> &'static str {
        match self {
            Self::Unscoped => {
                "What a host sends to a pod enters the tunnel, and the far end refuses its source (Calico issue #9751)."
            }
            Self::Scoped => "Started on the broken mesh: only what comes from a pod is sent into the tunnel.",
            Self::Host => "Switched in agent.toml on the live mesh: all but WireGuard's own packets.",
        }
    }
}
