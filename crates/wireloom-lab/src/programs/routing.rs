//! Routing daemons on the nodes: each runs in the background and ends with its node.

use crate::{Error, Node, PATIENCE, Result, require, until};

/// The log of a node's BIRD.
const BIRD_LOG: &str = "/run/bird/log";

/// Starts BIRD with this configuration, at the control socket where `birdc` looks for it.
///
/// # Errors
/// [`Error::MissingTool`]; [`Error::Command`] with BIRD's complaint about the configuration.
pub fn bird(node: &Node, configuration: &str) -> Result<()> {
    require(&["bird", "birdc"])?;
    node.run("mkdir -p /run/bird")?;
    let configuration = format!("log \"{BIRD_LOG}\" all;\n{configuration}");
    node.host.space.write("/run/bird/bird.conf", &configuration)?;
    node.run("bird -c /run/bird/bird.conf").map(drop)
}

/// Runs a `birdc` command and returns BIRD's answer.
///
/// # Errors
/// [`Error::Command`] when BIRD does not run.
pub fn birdc(node: &Node, command: &str) -> Result<String> {
    node.run(&format!("birdc -r {command}"))
}

/// Everything that a node's BIRD has logged so far.
///
/// # Errors
/// [`Error::Io`] when the log exists and cannot be read.
pub fn bird_log(node: &Node) -> Result<String> {
    Ok(node.host.space.read(BIRD_LOG)?.unwrap_or_default())
}

/// Starts babeld with this configuration.
///
/// # Errors
/// [`Error::MissingTool`]; [`Error::Command`] when it does not start.
pub fn babeld(node: &Node, configuration: &str) -> Result<()> {
    require(&["babeld"])?;
    node.host.space.write("/run/babeld.conf", configuration)?;
    node.run("babeld -D -I /run/babeld.pid -S /run/babeld.state -L /run/babeld.log -c /run/babeld.conf")
        .map(drop)
}

/// Starts FRR's zebra and these daemons. All read the same configuration, and each takes its own part of it.
///
/// The daemons insist that their user is in a group `frrvty`. A user namespace has no user but root, so the node gets
/// an `/etc/group` that puts root in it. They write to `/var/tmp`, which the node gets for itself.
///
/// # Errors
/// [`Error::MissingTool`]; [`Error::Command`] when a daemon does not start.
pub fn frr(node: &Node, daemons: &[&str], configuration: &str) -> Result<()> {
    require(&["/usr/lib/frr/zebra"])?;
    let space = &node.host.space;
    node.run("mkdir -p /run/frr")?;
    node.run("mount -t tmpfs tmpfs /var/tmp")?;
    // Replaces the symbolic link to the machine's own file.
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

/// Waits until a node's kernel has a route to exactly this prefix through `wg0`.
///
/// # Errors
/// [`Error::Output`] with the node's routes when there is none after [`PATIENCE`].
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
