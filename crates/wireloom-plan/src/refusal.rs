//! Why there is no plan at all: the kernel stays as it is, and the operator must decide.

/// A state of affairs in which any plan could do harm, so that there is none.
///
/// Nothing is changed while it lasts: what was encrypted stays so, and nothing of somebody
/// else's is touched. A retry helps only after the operator's mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing is known of this node's own workloads, so every rule and route would be a guess.
    #[error(
        "node `{node}` is not in the cluster: nothing is changed; \
         add it to the membership, or set `node` in agent.toml to the name that it has there"
    )]
    NodeMissing {
        /// This node's name.
        node: String,
    },
    /// The interface was not made by Wireloom.
    #[error(
        "interface `{interface}` exists and is not ours (its alias is not `wireloom`): nothing is changed; \
         remove it with `ip link delete {interface}`, or choose another name in [wireguard] interface"
    )]
    ForeignLink {
        /// Its name.
        interface: String,
    },
    /// Without a mark WireGuard's own packets would be routed into the tunnel again.
    #[error(
        "`fwmark` is 0, which marks nothing: nothing is changed; set [routing] fwmark to bits of its own"
    )]
    NoMark,
}
