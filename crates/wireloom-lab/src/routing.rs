//! Routing daemons on the nodes of a laboratory: each goes to the background and ends with its node.

use super::{Error, Node, PATIENCE, Result, require, until};

/// Where a node's BIRD writes to.
const BIRD_LOG: &str = "/run/bird/log";

/// Starts BIRD with this configuration; `birdc` on the node finds it.
///
/// # Errors
/// With what BIRD says of the configuration; when it is not installed.
pub fn bird(node: &Node, configuration: &str) -> Result<()> {
    require(&["bird", "birdc"])?;
    node.run("mkdir -p /run/bird")?;
    let configuration = format!("log \"{BIRD_LOG}\" all;\n{configuration}");
    node.host.space.write("/run/bird/bird.conf", &configuration)?;
    node.run("bird -c /run/bird/bird.conf").map(drop)
}

/// What BIRD answers to a command of `birdc`.
///
/// # Errors
/// When it does not run.
pub fn birdc(node: &Node, command: &str) -> Result<String> {
    node.run(&format!("birdc -r {command}"))
}

/// What a node's BIRD has logged.
///
/// # Errors
/// When it cannot be read.
pub fn bird_log(node: &Node) -> Result<String> {
    Ok(node.host.space.read(BIRD_LOG)?.unwrap_or_default())
}

/// Starts babeld with this configuration.
///
/// # Errors
/// When it is not installed, or does not start.
pub fn babeld(node: &Node, configuration: &str) -> Result<()> {
    require(&["babeld"])?;
    node.host.space.write("/run/babeld.conf", configuration)?;
    node.run("babeld -D -I /run/babeld.pid -S /run/babeld.state -L /run/babeld.log -c /run/babeld.conf")
        .map(drop)
}

/// Starts FRR's zebra and these daemons with one configuration, of which each takes its part.
///
/// They insist on a group `frrvty` with their user in it: in a user namespace there is root alone, so
/// the node gets a list of groups where that is root's. Their debris goes to a directory of the node's.
///
/// # Errors
/// When FRR is not installed, or a daemon does not start.
pub fn frr(node: &Node, daemons: &[&str], configuration: &str) -> Result<()> {
    require(&["/usr/lib/frr/zebra"])?;
    let space = &node.host.space;
    node.run("mkdir -p /run/frr")?;
    node.run("mount -t tmpfs tmpfs /var/tmp")?;
    // In place of the link to the machine's own list.
    space.write("/etc/group", "root:x:0:root\nfrrvty:x:0:root\n")?;
    space.write("/run/frr/frr.conf", configuration)?;
    for daemon in ["zebra"].iter().chain(daemons) {
        node.run(&format!(
            "/usr/lib/frr/{daemon} -d -u root -g root -f /run/frr/frr.conf --vty_socket /run/frr \
             -z /run/frr/zserv.api -i /run/frr/{daemon}.pid --log file:/run/frr/log"
        ))?;
    }
    Ok(())
}

/// Waits until a node's kernel has a route to exactly this prefix by a next hop on `wg0`.
///
/// # Errors
/// When it does not come, with the routes that are there.
pub fn learn(node: &Node, prefix: ipnet::IpNet) -> Result<()> {
    let family = if prefix.addr().is_ipv4() { "-4" } else { "-6" };
    let shown = || node.run(&format!("ip {family} route show {prefix}"));
    let learnt = until(PATIENCE, &format!("{} to learn {prefix}", node.name), || {
        shown().ok()?.contains("dev wg0").then_some(())
    });
    learnt.map_err(|error| match node.run(&format!("ip {family} route")) {
        Ok(output) => Error::Output { what: format!("{error}; `ip route`"), output },
        Err(error) => error,
    })
}
