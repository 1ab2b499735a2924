//! What the agent reports of this node.

/// The state of this node for people: `WireloomNodeStatus`, and an Event for each condition that begins. The default is
/// that of a node that has left the mesh: it has no `WireloomNodeStatus`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// One word or two, such as "Encrypted" or "NotEncrypted": what `kubectl get` shows.
    pub state: String,
    /// The agent's version.
    pub version: String,
    /// The verdict in a sentence, as `wireloom status` prints it.
    pub message: String,
    /// Peers that this node encrypts with, and how many there are.
    pub peers: (u32, u32),
    /// The warnings in sentences, worst first.
    pub warnings: Vec<String>,
}

impl Report {
    pub(super) fn has_left(&self) -> bool {
        *self == Self::default()
    }
}
