//! The three states of the demo's mesh.

use wireloom_lab::Promise;

/// A state of the mesh. Each is reached from the one before it, on the live mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The fault: one rule for all sources, while allowed-IPs hold pods only.
    Unscoped,
    /// The fix: `encrypt_host_traffic = false`.
    Scoped,
    /// Hosts encrypted too: `encrypt_host_traffic = true`.
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
            Self::Unscoped => "The fault: one rule for all sources, while allowed-IPs hold pods only",
            Self::Scoped => "The fix: the agent's rules match pods' addresses only",
            Self::Host => "Hosts encrypted too: encrypt_host_traffic = true",
        }
    }

    /// What the table shows, in one sentence.
    pub(super) fn meaning(self) -> &'static str {
        match self {
            Self::Unscoped => {
                "A host's packets to pods enter the tunnel, and the far end drops them (Calico issue #9751)."
            }
            Self::Scoped => {
                "Agents were started on the broken mesh: now only packets from pods enter the tunnel."
            }
            Self::Host => {
                "Changed in agent.toml on the live mesh: everything but WireGuard's own packets enters the tunnel."
            }
        }
    }
}
