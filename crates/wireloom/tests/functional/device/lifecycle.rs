//! How the userspace interface starts and ends, what it refuses, and what it keeps of its privileges.

use std::{
    fs,
    io::{self, Read as _},
    net::UdpSocket,
    process::{Command, Stdio},
};

use wireloom_lab::{Node, PATIENCE, finish, until};
use wireloom_plan::routing::Family;

use crate::{
    fixtures::device::{
        SOCKET, fill, has_interface, has_socket, node, process, processes, request, run, wait_until_gone,
    },
    fixtures::tunnel::{PORT, Program, THREADS, Tunnel, inner, ping, word},
    wireloom,
};

/// Runs `wireloom` with these words on a node, asserts that it fails, and returns what it said.
#[track_caller]
fn complaint(node: &Node, words: &str) -> String {
    let output = run(node, words);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(output.stdout.is_empty());
    said
}

#[test]
fn a_device_goes_to_the_background_once_it_is_ready() {
    let lab = node();
    let node = &lab.nodes[0];
    let output = run(node, "device wg0");
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    assert!(has_interface(node) && has_socket(node));
    assert_eq!(request(node, "get=1\n\n"), "errno=0\n\n");
    assert_eq!(node.run("wg show interfaces").unwrap(), "wg0\n");
    let process = process(node);
    let own =
        |file: &str| node.host.space.inside(|| fs::read_link(format!("/proc/{process}/{file}"))).unwrap();
    for file in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(own(file).unwrap().to_str(), Some("/dev/null"), "{file}");
    }
    assert_eq!(own("cwd").unwrap().to_str(), Some("/"));
    let stat = node.host.space.read(&format!("/proc/{process}/stat")).unwrap().unwrap();
    let session = stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap();
    assert_eq!(session, process.to_string(), "a session of its own");
}

#[test]
fn a_device_keeps_only_the_privileges_that_it_needs() {
    let lab = node();
    let node = &lab.nodes[0];
    assert!(run(node, "device wg0").status.success());
    let process = process(node);
    let threads = node
        .host
        .space
        .inside(|| {
            let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
            let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).unwrap();
            tasks.map(status).collect::<Vec<_>>()
        })
        .unwrap();
    assert!(threads.len() > 1, "the control socket has a thread");
    for status in threads {
        // Bits 12 (CAP_NET_ADMIN) and 10 (CAP_NET_BIND_SERVICE): include/uapi/linux/capability.h.
        for line in ["CapEff:\t0000000000001400\n", "CapPrm:\t0000000000001400\n", "NoNewPrivs:\t1\n"] {
            assert!(status.contains(line), "{status}");
        }
    }
}

#[test]
fn deleting_the_interface_ends_the_device() {
    let lab = node();
    let node = &lab.nodes[0];
    for (up, offload) in [(false, "off"), (true, "on")] {
        assert!(run(node, &format!("device wg0 --offload {offload}")).status.success());
        let shown = node.run("ip -d link show wg0").unwrap();
        assert!(shown.contains(&format!("vnet_hdr {offload} ")), "{shown}");
        if up {
            node.run("ip link set wg0 up").unwrap();
        }
        node.run("ip link delete wg0").unwrap();
        wait_until_gone(node);
    }
}

#[test]
fn removing_the_control_socket_ends_the_device() {
    let lab = node();
    let node = &lab.nodes[0];
    assert!(run(node, "device wg0").status.success());
    node.run(&format!("rm {SOCKET}")).unwrap();
    wait_until_gone(node);
}

#[test]
fn sigterm_and_sigint_end_the_device_and_the_next_one_has_its_port() {
    let lab = node();
    let node = &lab.nodes[0];
    for signal in ["TERM", "INT", "TERM"] {
        // Nobody waits for the process before: its interface is gone before everything else is.
        assert!(run(node, "device wg0").status.success());
        node.run("wg set wg0 listen-port 7000").unwrap();
        node.run("ip link set wg0 up").unwrap();
        until(PATIENCE, "the port to be open", || port_is_open(node, 7000).then_some(())).unwrap();
        // The one before may not have exited yet.
        let alone = || <[u32; 1]>::try_from(processes(node)).ok();
        let [process] = until(PATIENCE, "the only process", alone).unwrap();
        // Others are asked to look again, or told that their terminal is gone.
        node.run(&format!("kill -HUP {process}")).unwrap();
        assert_eq!(request(node, "get=1\n\n"), "listen_port=7000\nerrno=0\n\n");
        node.run(&format!("kill -{signal} {process}")).unwrap();
        until(PATIENCE, "the interface to go", || (!has_interface(node)).then_some(())).unwrap();
    }
    wait_until_gone(node);
}

fn port_is_open(node: &Node, port: u16) -> bool {
    node.host.space.inside(|| UdpSocket::bind(("0.0.0.0", port)).is_err()).unwrap()
}

#[test]
fn after_a_kill_the_next_device_starts_and_answers() {
    let lab = node();
    let node = &lab.nodes[0];
    assert!(run(node, "device wg0").status.success());
    for _ in 0..3 {
        let alone = || <[u32; 1]>::try_from(processes(node)).ok();
        let [process] = until(PATIENCE, "the only process", alone).unwrap();
        node.run(&format!("kill -KILL {process}")).unwrap();
        assert!(has_socket(node), "nobody was left to remove it");
        // Nobody waits for the process before, which the kernel still takes apart.
        assert!(run(node, "device wg0").status.success());
        assert_eq!(request(node, "get=1\n\n"), "errno=0\n\n");
    }
}

/// Its routes would lead past the tunnel if it went. The next process finds it as it was, with one queue or several.
#[test]
fn a_persistent_interface_outlives_its_process_and_is_taken_over() {
    let tunnel = Tunnel::established();
    let node = tunnel.node(0);
    for threads in [1, THREADS] {
        node.run("ip link delete wg0").unwrap();
        wait_until_gone(node);
        let options = format!("--threads {threads}");
        assert!(run(node, &format!("device wg0 --persistent {options}")).status.success());
        let [own_v4, own_v6] = inner(0);
        node.run(&format!("ip address add {own_v4}/24 dev wg0")).unwrap();
        node.run(&format!("ip address add {own_v6}/64 dev wg0 nodad")).unwrap();
        node.run("ip link set wg0 mtu 1300 up").unwrap();
        node.run("ip route add 198.51.100.0/24 dev wg0").unwrap();
        node.run("ip route add 2001:db8:51::/64 dev wg0").unwrap();
        let state = || {
            let lines = [
                "ip -d -o link show wg0",
                "ip -o address show dev wg0",
                "ip route show dev wg0",
                "ip -6 route show dev wg0",
            ];
            // Nobody says that a new TUN interface is up, only that it is again.
            lines.map(|line| node.run(line).unwrap().replace(" state UNKNOWN ", " state UP "))
        };
        let configure = || {
            node.run(&format!("wg set wg0 private-key /run/key listen-port {PORT}")).unwrap();
            let [v4, v6] = inner(1);
            tunnel.set_peer(0, 1, &format!("allowed-ips {v4}/32,{v6}/128"));
            tunnel.set_endpoint(0, 1, Family::V4);
            tunnel.settle();
        };
        configure();
        let before = state();
        // What stayed once stays again, though the next process is not asked to keep it.
        for (signal, persistent) in [("KILL", "--persistent"), ("TERM", ""), ("KILL", "")] {
            node.run(&format!("kill -{signal} {}", process(node))).unwrap();
            let linkdown = || {
                let routes = ["ip route show dev wg0", "ip -6 route show dev wg0"];
                let all = routes.iter().all(|line| {
                    let shown = node.run(line).unwrap();
                    shown.lines().count() > 1 && shown.lines().all(|route| route.contains("linkdown"))
                });
                all.then_some(())
            };
            until(PATIENCE, "the routes to lose their carrier", linkdown).unwrap();
            assert!(run(node, &format!("device wg0 {persistent} {options}")).status.success());
            configure();
            assert_eq!(state(), before, "{signal} {persistent}");
        }
        assert!(complaint(node, "device wg0 --persistent").contains("wg0 exists already"));
    }
    node.run(&format!("rm {SOCKET}")).unwrap();
    wait_until_gone(node);
}

#[test]
fn in_the_foreground_a_device_logs_what_happens() {
    let lab = node();
    let node = &lab.nodes[0];
    let mut command = Command::new(wireloom());
    command.args(["device", "-f", "wg0"]).stderr(Stdio::piped());
    let child = node.host.space.spawn(&mut command).unwrap();
    until(PATIENCE, "the interface", || has_socket(node).then_some(())).unwrap();
    node.run("ip link set wg0 up").unwrap();
    node.run("wg set wg0 listen-port 7000").unwrap();
    let answer = request(node, "set=1\nlisten_port=high\n\n");
    assert_eq!(answer, "errno=-22\n\n");
    let process = process(node);
    node.run(&format!("kill -USR1 {process}")).unwrap();
    assert_eq!(request(node, "get=1\n\n"), "listen_port=7000\nerrno=0\n\n");
    node.run(&format!("kill {process}")).unwrap();
    let output = finish(child, "`wireloom device -f wg0`", PATIENCE).unwrap();
    assert!(output.status.success());
    let log = String::from_utf8(output.stderr).unwrap();
    for words in [
        "the interface is up",
        "line 2: listen_port takes a UDP port: 0 to 65535",
        "dropped so far: none",
        "a signal asked for it",
    ] {
        assert!(log.contains(words), "{words:?} in {log}");
    }
}

#[test]
fn in_the_foreground_a_device_goes_on_when_nobody_reads_its_log() {
    let lab = node();
    let node = &lab.nodes[0];
    let mut command = Command::new(wireloom());
    command.args(["device", "-f", "wg0"]).stderr(Stdio::piped());
    let mut child = node.host.space.spawn(&mut command).unwrap();
    until(PATIENCE, "the interface", || has_socket(node).then_some(())).unwrap();
    let reader = child.stderr.as_mut().unwrap();
    let filled = fill(reader);
    for state in ["up", "down"] {
        // It logs that.
        node.run(&format!("ip link set wg0 {state}")).unwrap();
        assert!(request(node, "get=1\n\n").ends_with("errno=0\n\n"), "after {state}");
    }
    reader.read_exact(&mut vec![0; filled]).unwrap();
    node.run(&format!("kill {}", process(node))).unwrap();
    let output = finish(child, "`wireloom device -f wg0`", PATIENCE).unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    for words in ["the interface is up", "the interface is down", "a signal asked for it"] {
        assert!(log.contains(words), "{words:?} in {log}");
    }
}

#[test]
fn in_the_foreground_a_device_that_fails_ends_when_nobody_reads_its_log() {
    let lab = node();
    let node = &lab.nodes[0];
    node.run("ip link add wg0 type bridge").unwrap();
    let (reader, writer) = io::pipe().unwrap();
    fill(&reader);
    let mut command = Command::new(wireloom());
    let mut child = node.host.space.spawn(command.args(["device", "-f", "wg0"]).stderr(writer)).unwrap();
    let end = until(PATIENCE, "the device to end", || child.try_wait().unwrap());
    child.kill().unwrap();
    assert!(!end.unwrap().success());
}

#[test]
fn an_interface_that_exists_is_refused_and_stays_as_it_is() {
    let lab = node();
    let node = &lab.nodes[0];
    node.run("ip link add wg0 type bridge").unwrap();
    let said = complaint(node, "device wg0");
    assert!(said.contains("wg0 exists already") && !said.contains("delete"), "{said}");
    assert!(node.run("ip -d link show wg0").unwrap().contains("bridge"));
    node.run("ip link delete wg0").unwrap();
    // A persistent TUN interface belongs to somebody, even while no process holds it.
    node.run("ip tuntap add wg0 mode tun").unwrap();
    assert!(complaint(node, "device wg0").contains("wg0 exists already"));
    assert!(has_interface(node) && !has_socket(node));
    node.run("ip link delete wg0").unwrap();
    assert!(run(node, "device wg0").status.success());
    assert!(complaint(node, "device wg0").contains("wg0 exists already"));
    assert_eq!(request(node, "get=1\n\n"), "errno=0\n\n");
}

#[test]
fn invalid_interface_names_are_refused() {
    let lab = node();
    for name in ["sixteen-bytes-xx", "a/b", "wg%d", "a:b", ".."] {
        let said = complaint(&lab.nodes[0], &format!("device {name}"));
        assert!(said.contains("is not an interface name"), "{said}");
    }
}

#[test]
fn a_control_socket_that_another_process_serves_is_refused_and_stays() {
    let lab = node();
    let node = &lab.nodes[0];
    assert!(run(node, "device wg0").status.success());
    // In another network namespace the name is free, but the socket is not.
    node.run("ip netns add other").unwrap();
    let line = format!("ip netns exec other {} device wg0", word(wireloom()));
    let said = node.run(&line).unwrap_err().to_string();
    assert!(said.contains("another process already serves"), "{said}");
    assert_eq!(node.run("ip -n other -o link show type tun").unwrap(), "");
    assert_eq!(request(node, "get=1\n\n"), "errno=0\n\n");
}

#[test]
fn without_root_the_error_says_to_run_as_root() {
    let lab = node();
    let node = &lab.nodes[0];
    // A user of a user namespace, without any right over this network.
    let mut nobody = Command::new("unshare");
    nobody.args(["--map-user=1000", "--map-group=1000", "--"]).arg(wireloom()).args(["device", "wg0"]);
    let output = node.host.space.output(&mut nobody).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("run as root"), "{said}");
}

#[test]
fn wg_quick_makes_a_full_tunnel_and_removes_all_of_it() {
    let tunnel = Tunnel::new(&[Program::Wireloom]);
    let (far, near) = (tunnel.node(0), tunnel.node(1));
    let private = &tunnel.keys[1].private;
    let [far_v4, far_v6] = inner(0);
    let [near_v4, near_v6] = inner(1);
    tunnel.set_peer(0, 1, &format!("allowed-ips {near_v4}/32,{near_v6}/128"));
    far.run("ip address add 198.51.100.1/32 dev lo").unwrap();
    let configuration = format!(
        "[Interface]\nPrivateKey = {private}\nAddress = {near_v4}/24, {near_v6}/64\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = {}\nPersistentKeepalive = 5\n",
        tunnel.keys[0].public,
        tunnel.endpoint(0, Family::V4)
    );
    near.host.space.write("/run/wgq.conf", &configuration).unwrap();
    let state = || {
        let mut state = String::new();
        for line in ["ip -4 rule", "ip -6 rule", "ip route show table all", "ip -o link", "nft list ruleset"]
        {
            state += &near.run(line).unwrap();
        }
        state
    };
    let before = state();
    // What `/usr/bin/wireloom-device` would be: a link to the program.
    near.run(&format!("ln -s {} /run/wireloom-device", word(wireloom()))).unwrap();
    let quick = |what: &str| {
        let mut command = Command::new("wg-quick");
        command.args([what, "/run/wgq.conf"]);
        command.env("WG_QUICK_USERSPACE_IMPLEMENTATION", "/run/wireloom-device");
        let output = near.host.space.output(&mut command).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    for _ in 0..2 {
        quick("up");
        // Its persistent keepalive begins the handshake before anybody sends anything.
        until(PATIENCE, "a handshake", || (tunnel.handshake(0) > 0).then_some(())).unwrap();
        for address in [far_v4, far_v6, "198.51.100.1".parse().unwrap()] {
            until(PATIENCE, "a ping", || ping(near, address).then_some(())).unwrap();
        }
        let route = near.run("ip route get 198.51.100.1").unwrap();
        assert!(route.contains("dev wgq"), "{route}");
        quick("down");
        until(PATIENCE, "the process to end", || processes(near).is_empty().then_some(())).unwrap();
        assert_eq!(state(), before);
        assert!(near.host.space.inside(|| fs::read_dir("/run/wireguard").unwrap().next().is_none()).unwrap());
    }
}

#[test]
fn an_interface_moved_to_another_namespace_sends_from_the_one_it_was_made_in() {
    let tunnel = Tunnel::established();
    let node = tunnel.node(0);
    let ([own, _], [peer, _]) = (inner(0), inner(1));
    node.run("ip netns add inside").unwrap();
    node.run("ip link set wg0 netns inside").unwrap();
    node.run(&format!("ip -n inside address add {own}/24 dev wg0")).unwrap();
    node.run("ip -n inside link set wg0 up").unwrap();
    let arrived = || node.run(&format!("ip netns exec inside ping -n -q -c1 -W1 {peer}")).ok();
    until(PATIENCE, "a ping from the other namespace", arrived).unwrap();
    assert!(!ping(node, peer), "nothing is left in the namespace where it was made");
    node.run("ip -n inside link delete wg0").unwrap();
    wait_until_gone(node);
}

/// Another interface that gets its index meanwhile is not taken for it.
#[test]
fn an_interface_is_followed_into_another_namespace_and_back() {
    let lab = node();
    let node = &lab.nodes[0];
    let open = |expected: bool| {
        let what = format!("the port to be open: {expected}");
        until(PATIENCE, &what, || (port_is_open(node, 7000) == expected).then_some(())).unwrap();
    };
    node.run("ip netns add inside").unwrap();
    for link in ["", "--peer-lookup gateway --source-check off"] {
        assert!(run(node, &format!("device wg0 --persistent {link}")).status.success());
        node.run("wg set wg0 listen-port 7000").unwrap();
        node.run("ip link set wg0 up").unwrap();
        open(true);
        let index = node.host.space.read("/sys/class/net/wg0/ifindex").unwrap();
        let index = index.unwrap_or_else(|| {
            let shown = node.run("ip -o link show wg0").unwrap();
            shown.split(':').next().unwrap().to_owned()
        });
        node.run("ip link set wg0 netns inside").unwrap();
        // Leaving a namespace sets it down.
        open(false);
        for _ in 0..2 {
            node.run("ip -n inside link set wg0 mtu 1300 up").unwrap();
            open(true);
            // This one is down, and then it goes.
            node.run(&format!("ip link add other index {} type bridge", index.trim())).unwrap();
            node.run("ip link delete other").unwrap();
            for _ in 0..2 {
                // A turn lies between two answers.
                assert_eq!(request(node, "get=1\n\n"), "listen_port=7000\nerrno=0\n\n");
            }
            assert!(port_is_open(node, 7000));
            node.run("ip -n inside link set wg0 down").unwrap();
            open(false);
        }
        // When it is back, it outlives its process again.
        node.run(&format!("ip -n inside link set wg0 netns {}", process(node))).unwrap();
        node.run("ip link set wg0 up").unwrap();
        open(true);
        node.run("ip link set wg0 down").unwrap();
        open(false);
        node.run("ip link set wg0 up").unwrap();
        open(true);
        node.run(&format!("kill -KILL {}", process(node))).unwrap();
        let is_left = || node.run("ip link show wg0").unwrap().contains("NO-CARRIER").then_some(());
        until(PATIENCE, "the interface to be left", is_left).unwrap();
        assert!(run(node, &format!("device wg0 {link}")).status.success());
        // In the other one it does not, because nobody would find it there, and there would be a second one.
        node.run("ip link set wg0 netns inside").unwrap();
        let is_persistent = || node.run("ip -n inside -d link show wg0").unwrap().contains("persist on");
        until(PATIENCE, "the interface to go with its process", || (!is_persistent()).then_some(())).unwrap();
        node.run(&format!("kill {}", process(node))).unwrap();
        wait_until_gone(node);
        assert!(node.run("ip -n inside link show wg0").is_err());
    }
    // Nobody hears of the end of an interface that goes with its namespace, but by its descriptor.
    for state in ["down", "up"] {
        node.run("ip netns add other").unwrap();
        assert!(run(node, "device wg0").status.success());
        node.run("ip link set wg0 up").unwrap();
        node.run("ip link set wg0 netns other").unwrap();
        node.run(&format!("ip -n other link set wg0 {state}")).unwrap();
        node.run("ip netns delete other").unwrap();
        wait_until_gone(node);
    }
}
