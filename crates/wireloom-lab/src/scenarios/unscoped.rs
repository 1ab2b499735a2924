//! The fault of Calico issue #9751, set up by hand on the nodes of a mesh: one policy rule covers all sources, while
//! the peers' allowed-IPs hold pods only.

use std::fmt::Write as _;

use wireloom_plan::routing::PROTOCOL;
use wireloom_types::interface::AGENT_ALIAS;

use crate::{
    Lab, Node, Result,
    control::{configure, hex},
    mesh::{KeyPair, Mesh, PORT},
};

/// The rule, in the words of `ip rule add`.
const RULE: &str = "not from all fwmark 0xa/0xa lookup 1 pref 99";

/// Sets the fault up on every node: the interface `wg0` with its peers, the routes, then the rule. `device` is a
/// command that takes the interface's name as one more argument, makes a userspace interface and returns.
///
/// # Errors
/// When a program fails, or the device refuses its configuration.
pub fn build(device: &str, lab: &Lab, mesh: &Mesh, keys: &[KeyPair]) -> Result<()> {
    for (node, key) in lab.nodes.iter().zip(keys) {
        node.run(&format!("{device} wg0"))?;
        configure(&node.host.space, "wg0", &configuration(node, mesh, key)?)?;
        // Interface and routes are marked as an agent's: as if an agent that has this fault had made them.
        let mut batch = format!("link set wg0 mtu 1420 alias {AGENT_ALIAS} up\n");
        for member in &mesh.nodes {
            for workload in &member.workloads {
                let target = if member.name == node.name { "throw" } else { "unicast" };
                let device = if member.name == node.name { "" } else { "dev wg0" };
                let _ = writeln!(batch, "route add {target} {workload} {device} table 1 proto {PROTOCOL}");
            }
        }
        node.host.space.feed("ip -batch -", &batch)?;
        for family in ["-4", "-6"] {
            node.run(&format!("ip {family} rule add {RULE}"))?;
        }
    }
    Ok(())
}

/// A node's key and peers, for the control socket.
fn configuration(node: &Node, mesh: &Mesh, key: &KeyPair) -> Result<String> {
    let mut request = format!("private_key={}\nlisten_port={PORT}\nfwmark=10\n", hex(&key.private)?);
    for member in mesh.nodes.iter().filter(|member| member.name != node.name) {
        if let (Some(public_key), Some(endpoint)) = (&member.public_key, member.endpoint) {
            let _ = writeln!(request, "public_key={}\nendpoint={endpoint}", hex(public_key)?);
            for workload in &member.workloads {
                let _ = writeln!(request, "allowed_ip={workload}");
            }
        }
    }
    Ok(request)
}
