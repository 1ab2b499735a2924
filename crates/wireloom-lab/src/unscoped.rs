//! The broken state of issue #9751 of Calico, made by hand on the nodes of a mesh: one policy rule for
//! all sources, while the peers' allowed-IPs hold pods alone.

use std::fmt::Write as _;

use base64ct::{Base64, Encoding as _};
use wireloom_plan::routing::PROTOCOL;
use wireloom_types::interface::AGENT_ALIAS;

use super::{
    Error, Lab, Node, Result, Space, control,
    mesh::{KeyPair, Mesh, PORT},
};

/// The rule, as `ip rule add` takes it.
pub const RULE: &str = "not from all fwmark 0xa/0xa lookup 1 pref 99";

/// Makes it on every node: `device` (a program that makes the userspace interface `wg0`
/// when its name is added, and goes to the background), peers, routes, then the rule.
///
/// # Errors
/// When a program fails, or the device refuses its configuration.
pub fn build(device: &str, lab: &Lab, mesh: &Mesh, keys: &[KeyPair]) -> Result<()> {
    for (node, key) in lab.nodes.iter().zip(keys) {
        node.run(&format!("{device} wg0"))?;
        configure(&node.host.space, "wg0", &configuration(node, mesh, key)?)?;
        // As an agent would have left it that had the bug: the interface and its routes are its own.
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

/// In the words of the control socket (<https://www.wireguard.com/xplatform/>).
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

/// Sends a `set=1` request to the control socket of a userspace WireGuard interface.
///
/// # Errors
/// When nobody answers, or the answer is an error number.
pub fn configure(space: &Space, interface: &str, request: &str) -> Result<()> {
    let answer = control::request(space, interface, format!("set=1\n{request}\n").as_bytes())?;
    match answer.trim() {
        "errno=0" => Ok(()),
        _ => Err(Error::Output { what: format!("the control socket of {interface}"), output: answer }),
    }
}

pub(super) fn hex(base64: &str) -> Result<String> {
    let bytes = Base64::decode_vec(base64)
        .map_err(|_| Error::Output { what: "the key generator".into(), output: base64.to_owned() })?;
    Ok(base16ct::lower::encode_string(&bytes))
}
