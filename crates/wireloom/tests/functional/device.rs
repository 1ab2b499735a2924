//! The userspace interface: its life, its control socket, what it does to bad packets.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, UdpSocket},
    os::unix::net::UnixStream,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use wireloom_lab::{Capture, Content, Lab, Layout, Node, PATIENCE, at_this_pace, until};
use wireloom_plan::routing::Family;

use crate::{
    tunnel::{PORT, Program, Tunnel, all_answered, inner, ping, word},
    wireloom,
};

/// One node without pods.
pub(crate) fn node() -> Lab {
    Lab::new(&Layout { nodes: 1, pods: 0, ..Layout::default() }).unwrap()
}

/// Runs `wireloom` with these words on a node, to its end.
pub(crate) fn run(node: &Node, words: &str) -> Output {
    node.host.space.output(Command::new(wireloom()).args(words.split_whitespace())).unwrap()
}

/// Runs `wireloom` with these words on a node, expects it to fail, and returns what it said.
#[track_caller]
fn complaint(node: &Node, words: &str) -> String {
    let output = run(node, words);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(output.stdout.is_empty());
    said
}

fn has_interface(node: &Node) -> bool {
    node.run("ip link show wg0").is_ok()
}

/// `/run` is `/var/run` on every system that has both.
const SOCKET: &str = "/run/wireguard/wg0.sock";

fn has_socket(node: &Node) -> bool {
    node.host.space.inside(|| fs::symlink_metadata(SOCKET).is_ok()).unwrap()
}

/// The ids of the device processes of a node, as seen in there.
pub(crate) fn processes(node: &Node) -> Vec<u32> {
    let program = wireloom();
    let mut ids = Vec::new();
    node.host
        .space
        .inside(|| {
            for entry in fs::read_dir("/proc").unwrap().flatten() {
                let exe = fs::read_link(entry.path().join("exe"));
                let id = entry.file_name().into_string().ok().and_then(|name| name.parse().ok());
                if let (Ok(exe), Some(id)) = (exe, id)
                    && exe == program
                {
                    ids.push(id);
                }
            }
        })
        .unwrap();
    ids
}

#[track_caller]
pub(crate) fn wait_until_gone(node: &Node) {
    let gone = || {
        let gone = !has_interface(node) && !has_socket(node) && processes(node).is_empty();
        gone.then_some(())
    };
    until(PATIENCE, "interface, socket and process to go", gone).unwrap();
}

/// Says this to the control socket of a node's interface and no more, and returns the answer.
fn say(node: &Node, bytes: &[u8]) -> String {
    node.host
        .space
        .inside(|| {
            let mut stream = UnixStream::connect(SOCKET).unwrap();
            // It may hang up before it has heard all.
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(Shutdown::Write);
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said);
            String::from_utf8(said).unwrap()
        })
        .unwrap()
}

#[test]
fn it_goes_to_the_background_when_it_is_ready() {
    let lab = node();
    let node = &lab.nodes[0];
    let output = run(node, "device wg0");
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    assert!(has_interface(node) && has_socket(node));
    assert_eq!(say(node, b"get=1\n\n"), "errno=0\n\n");
    assert_eq!(node.run("wg show interfaces").unwrap(), "wg0\n");
    let [process] = processes(node)[..] else { panic!("one process") };
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
fn it_keeps_no_privilege_that_it_does_not_need() {
    let lab = node();
    let node = &lab.nodes[0];
    assert!(run(node, "device wg0").status.success());
    let [process] = processes(node)[..] else { panic!("one process") };
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
        // CAP_NET_ADMIN is 12, CAP_NET_BIND_SERVICE is 10.
        for line in ["CapEff:\t0000000000001400\n", "CapPrm:\t0000000000001400\n", "NoNewPrivs:\t1\n"] {
            assert!(status.contains(line), "{status}");
        }
    }
}

#[test]
fn deleting_the_interface_ends_it() {
    let lab = node();
    let node = &lab.nodes[0];
    for up in [false, true] {
        assert!(run(node, "device wg0").status.success());
        if up {
            node.run("ip link set wg0 up").unwrap();
        }
        node.run("ip link delete wg0").unwrap();
        wait_until_gone(node);
    }
}

#[test]
fn removing_the_socket_ends_it() {
    let lab = node();
    let node = &lab.nodes[0];
    assert!(run(node, "device wg0").status.success());
    node.run(&format!("rm {SOCKET}")).unwrap();
    wait_until_gone(node);
}

#[test]
fn signals_end_it() {
    let lab = node();
    let node = &lab.nodes[0];
    for signal in ["TERM", "INT"] {
        assert!(run(node, "device wg0").status.success());
        let [process] = processes(node)[..] else { panic!("one process") };
        node.run(&format!("kill -{signal} {process}")).unwrap();
        wait_until_gone(node);
    }
}

#[test]
fn a_killed_process_leaves_nothing_in_the_way_of_the_next() {
    let lab = node();
    let node = &lab.nodes[0];
    assert!(run(node, "device wg0").status.success());
    let [process] = processes(node)[..] else { panic!("one process") };
    node.run(&format!("kill -KILL {process}")).unwrap();
    until(PATIENCE, "the interface to go", || (!has_interface(node)).then_some(())).unwrap();
    assert!(has_socket(node), "nobody was left to remove it");
    assert!(run(node, "device wg0").status.success());
    assert_eq!(say(node, b"get=1\n\n"), "errno=0\n\n");
}

#[test]
fn in_the_foreground_it_logs_and_stays() {
    let lab = node();
    let node = &lab.nodes[0];
    let mut command = Command::new(wireloom());
    command.args(["device", "-f", "wg0"]).stderr(Stdio::piped());
    let child = node.host.space.spawn(&mut command).unwrap();
    until(PATIENCE, "the interface", || has_socket(node).then_some(())).unwrap();
    node.run("ip link set wg0 up").unwrap();
    node.run("wg set wg0 listen-port 7000").unwrap();
    let answer = say(node, b"set=1\nlisten_port=high\n\n");
    assert_eq!(answer, "errno=-22\n\n");
    let [process] = processes(node)[..] else { panic!("one process") };
    node.run(&format!("kill -USR1 {process}")).unwrap();
    assert_eq!(say(node, b"get=1\n\n"), "listen_port=7000\nerrno=0\n\n");
    node.run(&format!("kill {process}")).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let log = String::from_utf8(output.stderr).unwrap();
    for words in [
        "the interface is up",
        "line 2: listen_port takes a UDP port: 0 to 65535",
        "dropped so far: none",
        "told to by a signal",
    ] {
        assert!(log.contains(words), "{words:?} in {log}");
    }
}

#[test]
fn a_taken_name_is_refused_and_left() {
    let lab = node();
    let node = &lab.nodes[0];
    node.run("ip link add wg0 type bridge").unwrap();
    let said = complaint(node, "device wg0");
    assert!(said.contains("wg0 exists already") && said.contains("ip link delete wg0"), "{said}");
    assert!(node.run("ip -d link show wg0").unwrap().contains("bridge"));
    node.run("ip link delete wg0").unwrap();
    // A persistent TUN interface that nobody holds at present is somebody's, too.
    node.run("ip tuntap add wg0 mode tun").unwrap();
    assert!(complaint(node, "device wg0").contains("wg0 exists already"));
    assert!(has_interface(node) && !has_socket(node));
    node.run("ip link delete wg0").unwrap();
    assert!(run(node, "device wg0").status.success());
    assert!(complaint(node, "device wg0").contains("wg0 exists already"));
    assert_eq!(say(node, b"get=1\n\n"), "errno=0\n\n");
}

#[test]
fn names_that_cannot_be_are_refused() {
    let lab = node();
    for name in ["sixteen-bytes-xx", "a/b", "wg%d", "a:b", ".."] {
        let said = complaint(&lab.nodes[0], &format!("device {name}"));
        assert!(said.contains("is no interface name"), "{said}");
    }
}

#[test]
fn a_socket_that_another_process_serves_is_refused_and_left() {
    let lab = node();
    let node = &lab.nodes[0];
    assert!(run(node, "device wg0").status.success());
    // In another network the name is free, but the socket is not.
    node.run("ip netns add other").unwrap();
    let line = format!("ip netns exec other {} device wg0", word(wireloom()));
    let said = node.run(&line).unwrap_err().to_string();
    assert!(said.contains("another process already serves"), "{said}");
    assert_eq!(node.run("ip -n other -o link show type tun").unwrap(), "");
    assert_eq!(say(node, b"get=1\n\n"), "errno=0\n\n");
}

#[test]
fn without_root_it_says_so() {
    let lab = node();
    let node = &lab.nodes[0];
    // A user of a user namespace that has no right over this network.
    let mut nobody = Command::new("unshare");
    nobody.args(["--map-user=1000", "--map-group=1000", "--"]).arg(wireloom()).args(["device", "wg0"]);
    let output = node.host.space.output(&mut nobody).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("run as root"), "{said}");
}

#[test]
fn a_port_in_use_refuses_the_whole_change() {
    let lab = node();
    let node = &lab.nodes[0];
    assert!(run(node, "device wg0").status.success());
    for address in ["0.0.0.0:7000", "[::]:7000"] {
        let squatter = node.host.space.inside(|| UdpSocket::bind(address).unwrap()).unwrap();
        for state in ["down", "up"] {
            node.run(&format!("ip link set wg0 {state}")).unwrap();
            node.run("wg set wg0 listen-port 6000 fwmark 1").unwrap();
            let error = node.run("wg set wg0 listen-port 7000 fwmark 2").unwrap_err().to_string();
            // A socket for IPv6 that is not for it alone has the port in both families.
            assert!(error.contains("Address already in use"), "{error}");
            assert_eq!(say(node, b"get=1\n\n"), "listen_port=6000\nfwmark=1\nerrno=0\n\n");
        }
        drop(squatter);
        node.run("ip link set wg0 down").unwrap();
    }
    node.run("wg set wg0 listen-port 7000").unwrap();
}

#[test]
fn the_port_is_open_only_while_the_interface_is_up() {
    let tunnel = Tunnel::established();
    let node = tunnel.node(0);
    let bind = || node.host.space.inside(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap();
    assert!(bind().is_err());
    node.run("ip link set wg0 down").unwrap();
    let squatter = until(PATIENCE, "the port to be free", || bind().ok()).unwrap();
    // Nobody can be told that the interface came up without its port: it is tried until it works.
    node.run("ip link set wg0 up").unwrap();
    assert!(!ping(node, inner(1)[0]));
    drop(squatter);
    node.run("ip address replace fd99::1/64 dev wg0 nodad").unwrap();
    tunnel.settle();
}

#[test]
fn wg_reads_and_writes_everything() {
    let lab = node();
    let node = &lab.nodes[0];
    assert!(run(node, "device wg0").status.success());
    let private = node.run("wg genkey").unwrap();
    let public = node.host.space.feed("wg pubkey", &private).unwrap();
    let [other, third] = [(); 2].map(|()| {
        let key = node.run("wg genkey").unwrap();
        node.host.space.feed("wg pubkey", &key).unwrap().trim().to_owned()
    });
    let secret = node.run("wg genpsk").unwrap();
    let configuration = format!(
        "[Interface]\nListenPort = 7000\nFwMark = 0x10\nPrivateKey = {private}\n\
         [Peer]\nPublicKey = {other}\nPresharedKey = {secret}\nAllowedIPs = 10.0.0.0/8, fd00::/8\n\
         Endpoint = [2001:db8::1]:51820\nPersistentKeepalive = 25\n\n\
         [Peer]\nPublicKey = {third}\nAllowedIPs = 10.1.0.0/16\nEndpoint = [fe80::1%eth0]:51820\n"
    );
    let write = |text: &str| node.host.space.write("/run/wg0.conf", text).unwrap();
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let shown = || node.run("wg showconf wg0").unwrap();
    write(&configuration);
    node.run("wg setconf wg0 /run/wg0.conf").unwrap();
    assert_eq!(sorted(&shown()), sorted(&configuration));
    assert_eq!(node.run("wg show wg0 public-key").unwrap(), public);

    // `syncconf` sends differences alone; back and forth it ends where it began.
    let fewer = format!(
        "[Interface]\nListenPort = 7001\nPrivateKey = {private}\n[Peer]\nPublicKey = {other}\nAllowedIPs = 10.1.0.0/16\n"
    );
    write(&fewer);
    node.run("wg syncconf wg0 /run/wg0.conf").unwrap();
    let now = shown();
    assert!(!now.contains(&third) && !now.contains("10.0.0.0/8") && now.contains("10.1.0.0/16"), "{now}");
    write(&configuration);
    node.run("wg syncconf wg0 /run/wg0.conf").unwrap();
    assert_eq!(sorted(&shown()), sorted(&configuration));
    node.run("wg addconf wg0 /run/wg0.conf").unwrap();
    assert_eq!(sorted(&shown()), sorted(&configuration));

    node.run(&format!(
        "wg set wg0 peer {other} preshared-key /dev/null persistent-keepalive off allowed-ips 10.2.0.0/16"
    ))
    .unwrap();
    node.run(&format!("wg set wg0 fwmark off peer {third} remove")).unwrap();
    let now = shown();
    assert!(now.contains("AllowedIPs = 10.2.0.0/16\n"), "{now}");
    for gone in ["PresharedKey", "Keepalive", "FwMark", &third] {
        assert!(!now.contains(gone), "{gone} in {now}");
    }
    // A configuration that is wrong in one place changes nothing at all.
    let before = shown();
    let key = "a".repeat(64);
    let wrong =
        format!("set=1\nlisten_port=9\nreplace_peers=true\npublic_key={key}\nallowed_ip=10.3.0.0/33\n\n");
    assert_eq!(say(node, wrong.as_bytes()), "errno=-22\n\n");
    assert_eq!(shown(), before);
}

#[test]
fn wg_quick_makes_and_removes_a_full_tunnel() {
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
    // As `/usr/bin/wireloom-device` would be: a link to the program.
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
        // Its keepalive begins the handshake, before anybody sends anything.
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
fn an_idle_interface_sends_nothing() {
    let tunnel = Tunnel::new(&[Program::Wireloom; 2]);
    let capture = Capture::open(tunnel.lab.underlay()).unwrap();
    // Everything, multicast included, would go to the peer.
    tunnel.set_peer(0, 1, "allowed-ips 0.0.0.0/0,::/0");
    tunnel.set_endpoint(0, 1, Family::V4);
    let node = tunnel.node(0);
    // Router solicitations and group reports come within the first second or so of an interface's life.
    for _ in 0..2 {
        node.run("ip link set wg0 down").unwrap();
        node.run("ip link set wg0 up").unwrap();
        std::thread::sleep(Duration::from_millis(1500));
    }
    let shown = node.run("ip -6 address show dev wg0").unwrap();
    assert!(!shown.contains("fe80"), "{shown}");
    let sent: Vec<_> = capture.drain().unwrap();
    let sent: Vec<_> =
        sent.iter().filter(|packet| matches!(packet.content, Content::WireGuard { .. })).collect();
    assert!(sent.is_empty(), "{sent:?}");
}

#[test]
fn a_persistent_keepalive_needs_no_traffic() {
    let tunnel = Tunnel::new(&[Program::Wireloom; 2]);
    tunnel.set_endpoint(0, 1, Family::V6);
    tunnel.set_peer(0, 1, "persistent-keepalive 1");
    until(PATIENCE, "a handshake", || (tunnel.handshake(1) > 0).then_some(())).unwrap();
    // Each is an empty message of 32 bytes.
    let received = || {
        let shown = tunnel.shown(1, "transfer");
        shown.split('\t').next().unwrap().parse::<u64>().unwrap()
    };
    let begun = (Instant::now(), received());
    until(PATIENCE, "three keepalives", || (received() >= begun.1 + 96).then_some(())).unwrap();
    assert!(begun.0.elapsed() > Duration::from_secs(2), "one a second");
}

#[test]
fn datagrams_carry_the_mark() {
    let tunnel = Tunnel::established();
    let node = tunnel.node(0);
    let unmarked_is_lost = "table inet test { chain output {\n type filter hook output priority 0\n \
                            oifname eth0 udp dport 51820 meta mark != 0xa drop\n }\n }\n";
    node.host.space.feed("nft -f -", unmarked_is_lost).unwrap();
    assert!(!ping(node, inner(1)[0]));
    node.run("wg set wg0 fwmark 0xa").unwrap();
    tunnel.settle();
    // Also on a port that is opened anew, by when most privileges are gone.
    node.run("wg set wg0 listen-port 53").unwrap();
    tunnel.settle();
    node.run("wg set wg0 fwmark 0").unwrap();
    assert!(!ping(node, inner(1)[0]));
}

#[test]
fn answers_leave_from_the_address_that_was_asked() {
    for (family, second, prefix) in [
        (Family::V4, "192.168.1.222", "/24"),
        (Family::V6, "fd00:192:168:1::222", "/64 nodad preferred_lft 0"),
    ] {
        let tunnel = Tunnel::new(&[Program::Wireloom; 2]);
        let node = tunnel.node(1);
        // Routing prefers the node's first address as a source: the second is secondary, or deprecated.
        node.run(&format!("ip address add {second}{prefix} dev eth0")).unwrap();
        let second = second.parse::<IpAddr>().unwrap();
        let endpoint = SocketAddr::new(second, PORT).to_string();
        tunnel.set_peer(0, 1, &format!("endpoint {endpoint}"));
        tunnel.settle();
        assert_eq!(tunnel.shown(0, "endpoints"), endpoint, "it was not made to roam");
        // When that address goes, another one must do, and the peer follows.
        let prefix = prefix.split(' ').next().unwrap();
        node.run(&format!("ip address delete {second}{prefix} dev eth0")).unwrap();
        tunnel.settle_from(1, 0);
        assert_eq!(tunnel.shown(0, "endpoints"), tunnel.endpoint(1, family).to_string());
    }
}

#[test]
fn link_local_endpoints_need_no_address_of_the_operators() {
    let tunnel = Tunnel::new(&[Program::Wireloom; 2]);
    let link_local = |place: usize| {
        let shown = tunnel.node(place).run("ip -6 -o address show dev eth0 scope link").unwrap();
        let word = shown.split_whitespace().find(|word| word.starts_with("fe80")).expect("an address");
        word.split('/').next().unwrap().to_owned()
    };
    let endpoint = format!("[{}%eth0]:{PORT}", link_local(1));
    tunnel.set_peer(0, 1, &format!("endpoint {endpoint}"));
    tunnel.settle();
    tunnel.settle_from(1, 0);
    assert_eq!(tunnel.shown(0, "endpoints"), endpoint);
    assert_eq!(tunnel.shown(1, "endpoints"), format!("[{}%eth0]:{PORT}", link_local(0)));
}

#[test]
fn peers_are_served_over_both_families_at_once() {
    let tunnel = Tunnel::new(&[Program::Wireloom; 3]);
    let allow = |place: usize, other: usize| {
        let [v4, v6] = inner(other);
        tunnel.set_peer(place, other, &format!("allowed-ips {v4}/32,{v6}/128"));
    };
    allow(0, 2);
    allow(2, 0);
    tunnel.set_endpoint(0, 1, Family::V4);
    tunnel.set_endpoint(0, 2, Family::V6);
    tunnel.settle_from(0, 1);
    tunnel.settle_from(0, 2);
    let pings = [inner(1), inner(2)].concat();
    let pings: Vec<_> = pings.iter().map(|address| format!("-c 500 -i 0.002 -s 1000 {address}")).collect();
    all_answered(tunnel.node(0), &pings, 2000);
}

#[test]
fn keys_are_those_of_wg() {
    let lab = node();
    let node = &lab.nodes[0];
    let private = String::from_utf8(run(node, "key generate").stdout).unwrap();
    let public = node.host.space.feed(&format!("{} key public", word(wireloom())), &private).unwrap();
    assert_eq!(public, node.host.space.feed("wg pubkey", &private).unwrap());
    // `wg genkey` clamps its keys, too; `wg pubkey` takes them as they are.
    let theirs = node.run("wg genkey").unwrap();
    let public = node.host.space.feed(&format!("{} key public", word(wireloom())), &theirs).unwrap();
    assert_eq!(public, node.host.space.feed("wg pubkey", &theirs).unwrap());
    for wrong in ["", "not a key", &private[..40], &"A".repeat(2000)] {
        let error = node.host.space.feed(&format!("{} key public", word(wireloom())), wrong).unwrap_err();
        assert!(error.to_string().contains("expected 44 characters of base64"), "{error}");
    }
}

#[test]
fn moved_to_another_network_it_still_sends_from_where_it_was_made() {
    let tunnel = Tunnel::established();
    let node = tunnel.node(0);
    let ([own, _], [peer, _]) = (inner(0), inner(1));
    node.run("ip netns add inside").unwrap();
    node.run("ip link set wg0 netns inside").unwrap();
    node.run(&format!("ip -n inside address add {own}/24 dev wg0")).unwrap();
    node.run("ip -n inside link set wg0 up").unwrap();
    let arrived = || node.run(&format!("ip netns exec inside ping -n -q -c1 -W1 {peer}")).ok();
    until(PATIENCE, "a ping from inside", arrived).unwrap();
    assert!(!ping(node, peer), "nothing is left outside");
    node.run("ip -n inside link delete wg0").unwrap();
    wait_until_gone(node);
}

#[test]
fn the_interfaces_mtu_is_followed() {
    let tunnel = Tunnel::established();
    for (mtu, payload) in [(1280, 1252), (9000, 8972)] {
        for place in [0, 1] {
            tunnel.node(place).run(&format!("ip link set wg0 mtu {mtu}")).unwrap();
        }
        // The last byte that fits: padding must not make it more than the MTU.
        let line = format!("-M do -c 3 -i 0.01 -s {payload} {}", inner(1)[0]);
        all_answered(tunnel.node(0), &[line], 3);
    }
}

#[test]
fn malformed_and_truncated_messages_of_every_type_are_dropped_silently() {
    let tunnel = Tunnel::established();
    let node = tunnel.node(1);
    let [process] = processes(node)[..] else { panic!("one process") };
    let victim = tunnel.endpoint(1, Family::V4);
    let attacker = tunnel.node(0).host.space.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    attacker.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let before = counts(node);
    let mut sent = 0;
    let mut send = |datagram: &[u8]| {
        sent += attacker.send_to(datagram, victim).map(|_| 1).unwrap();
        if sent % 64 == 0 {
            // Not a flood: every one is to arrive.
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    for kind in 0..=6_u8 {
        for fill in [0, 0xff] {
            for len in (0..200).chain([1420, 1500, 9000, 65_507]) {
                let mut datagram = vec![fill; len];
                if let Some(first) = datagram.first_mut() {
                    *first = kind;
                }
                if let (0, Some(reserved)) = (len % 3, datagram.get_mut(1..4)) {
                    reserved.fill(0);
                }
                send(&datagram);
            }
        }
    }
    let silence = attacker.recv_from(&mut [0; 2048]);
    assert!(silence.is_err(), "an answer to garbage: {silence:?}");
    until(PATIENCE, "every one to be counted", || (counts(node) == before + sent).then_some(())).unwrap();
    assert_eq!(processes(node), [process]);
    tunnel.settle();
}

/// Everything that a node's interface has dropped so far.
fn counts(node: &Node) -> u64 {
    let said = say(node, b"get_drops=1\n\n");
    let lines = said.lines().filter(|line| !line.is_empty() && !line.starts_with("errno="));
    lines.map(|line| line.split_once('=').unwrap().1.parse::<u64>().unwrap()).sum()
}

#[test]
fn garbage_on_the_control_socket_disturbs_nobody() {
    let tunnel = Tunnel::established();
    let node = tunnel.node(0);
    let before = node.run("wg showconf wg0").unwrap();
    for garbage in [
        b"".as_slice(),
        b"\n\n\n",
        b"put=1\n\n",
        b"set=1\nreplace_peers=true\nprivate_key=\n\n",
        b"set=1\nreplace_peers=true",
        &[0; 1 << 20],
        &[b'a'; 1 << 20],
        &b"set=1\nreplace_peers=true\n".repeat(1 << 15),
        &[b"set=1\nreplace_peers=true\npublic_key=".as_slice(), &[b'0'; 1 << 20], b"\n\n"].concat(),
    ] {
        let answer = say(node, garbage);
        let refused = answer.is_empty() || answer == "errno=-22\n\n";
        assert!(refused, "{answer:?} to {:?}", String::from_utf8_lossy(&garbage[..garbage.len().min(50)]));
        assert!(ping(node, inner(1)[0]));
    }
    assert_eq!(node.run("wg showconf wg0").unwrap(), before);
}

#[test]
fn many_peers_are_configured_in_one_go() {
    let lab = node();
    let node = &lab.nodes[0];
    assert!(run(node, "device wg0").status.success());
    node.run("ip link set wg0 up").unwrap();
    let mut request = format!("set=1\nprivate_key={:064x}\nreplace_peers=true\n", 1 << 20);
    for peer in 1..=5000_u32 {
        let [_, _, high, low] = peer.to_be_bytes();
        request += &format!(
            "public_key={peer:064x}\nendpoint=192.168.1.2:9\nallowed_ip=10.{high}.{low}.0/24\nallowed_ip=fd00:{peer:x}::/32\n"
        );
    }
    request += "\n";
    let begun = Instant::now();
    assert_eq!(say(node, request.as_bytes()), "errno=0\n\n");
    let shown = node.run("wg show wg0 allowed-ips").unwrap();
    assert_eq!(shown.lines().count(), 5000);
    // Unoptimised, on a busy machine; what is quadratic would take far longer.
    assert!(begun.elapsed() < at_this_pace(Duration::from_secs(10)), "{:?}", begun.elapsed());
}
