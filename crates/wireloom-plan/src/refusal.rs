//! Why there is no plan: the kernel stays as it is, and the operator must decide.

use wireloom_types::interface::AGENT_ALIAS;

/// A situation in which any plan could do harm, so that there is none.
///
/// Nothing changes while it lasts: what was encrypted stays encrypted, and nothing foreign is touched. A retry
/// helps only after the operator has fixed the cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// This node's own workloads are unknown, so every rule and route would be a guess.
    #[error(
        "node `{node}` is not in the cluster: nothing is changed; \
         add it to the membership, or set `node` in agent.toml to its name there"
    )]
    NodeMissing {
        /// This node's name.
        node: String,
    },
    /// The interface was not made by Wireloom.
    #[error(
        "interface `{interface}` exists and is not Wireloom's (its alias is not `{AGENT_ALIAS}`): nothing is changed; \
         remove it with `ip link delete {interface}`, or choose another name in [wireguard] interface"
    )]
    ForeignInterface {
        /// Its name.
        interface: String,
    },
    /// Without a mark, WireGuard's own packets would be routed into the tunnel again.
    #[error(
        "`fwmark` is 0, which marks nothing: nothing is changed; set [routing] fwmark to bits that nothing else uses"
    )]
    NoMark,
}
