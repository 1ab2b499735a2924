//! What the timestamps of handshakes have reached survives a restart: a clock that was set back silences nobody.

use wireloom_lab::{PATIENCE, until};
use wireloom_plan::routing::Family;

use crate::fixtures::{
    device::{has_interface, process, request, wait_until_gone},
    tunnel::{PORT, Program, Tunnel, inner, ping},
};

const FILE: &str = "/var/lib/wireloom/wg0.timestamp";

/// What the first node's file says: the seconds since the epoch.
#[track_caller]
fn kept(tunnel: &Tunnel) -> u64 {
    let content = tunnel.node(0).host.space.read(FILE).unwrap().expect("the file");
    let (key, seconds) = content.trim_end().split_once(' ').expect("two words");
    assert_eq!(key, tunnel.keys[0].public);
    seconds.parse().unwrap()
}

fn keep(tunnel: &Tunnel, seconds: u64) {
    let content = format!("{} {seconds}\n", tunnel.keys[0].public);
    tunnel.node(0).host.space.write(FILE, &content).unwrap();
}

/// Makes the first node's interface again, as it was.
fn start_again(tunnel: &Tunnel) {
    let node = tunnel.node(0);
    Program::Wireloom.start(node);
    node.run(&format!("wg set wg0 private-key /run/key listen-port {PORT}")).unwrap();
    let [v4, v6] = inner(0);
    node.run(&format!("ip address add {v4}/24 dev wg0")).unwrap();
    node.run(&format!("ip address add {v6}/64 dev wg0 nodad")).unwrap();
    node.run("ip link set wg0 up").unwrap();
    let [v4, v6] = inner(1);
    tunnel.set_peer(0, 1, &format!("allowed-ips {v4}/32,{v6}/128"));
    tunnel.set_endpoint(0, 1, Family::V4);
}

fn kill(tunnel: &Tunnel) {
    let node = tunnel.node(0);
    node.run(&format!("kill -KILL {}", process(node))).unwrap();
    until(PATIENCE, "the interface to go", || (!has_interface(node)).then_some(())).unwrap();
}

/// The clock of the test's machine stays as it is: the file is from an hour later instead.
#[test]
fn a_device_whose_clock_was_set_back_is_heard_after_a_restart() {
    let tunnel = Tunnel::established();
    let [first, second] = [tunnel.node(0), tunnel.node(1)];
    let running = kept(&tunnel);
    first.run(&format!("kill -TERM {}", process(first))).unwrap();
    wait_until_gone(first);
    let reached = kept(&tunnel);
    assert!(reached < running, "{reached} {running}");
    assert_eq!(first.run(&format!("stat -c %a {FILE}")).unwrap().trim(), "600");

    let later = reached + 3600;
    keep(&tunnel, later);
    start_again(&tunnel);
    tunnel.settle();
    kill(&tunnel);
    let after_kill = kept(&tunnel);
    assert!((later + 1..later + 10).contains(&after_kill), "{after_kill} {later}");
    start_again(&tunnel);
    tunnel.settle();

    // What the file protects from.
    kill(&tunnel);
    let last = kept(&tunnel);
    first.run(&format!("rm {FILE}")).unwrap();
    start_again(&tunnel);
    let is_ignored = || {
        ping(first, inner(1)[0]);
        let drops = request(second, "get_drops=1\n\n");
        drops
            .lines()
            .any(|line| line.starts_with("stale-timestamp=") && line != "stale-timestamp=0")
            .then_some(())
    };
    until(PATIENCE, "the second device to ignore the first one", is_ignored).unwrap();
    kill(&tunnel);
    keep(&tunnel, last);
    start_again(&tunnel);
    tunnel.settle();
}
