//! How the userspace interface is configured: by `wg`, by its control socket, by keys.

use std::{fs, net::UdpSocket, time::Duration};

use wireloom_lab::{Node, PATIENCE, control, until};

use crate::{
    fixtures::device::{node, process, request, run},
    fixtures::tunnel::{PORT, Tunnel, inner, ping, word},
    wireloom,
};

#[test]
fn a_change_that_asks_for_a_port_in_use_is_refused_as_a_whole() {
    let lab = node();
    let node = &lab.nodes[0];
    assert!(run(node, "device wg0").status.success());
    for address in ["0.0.0.0:7000", "[::]:7000"] {
        // A program that another test has just started may still hold the descriptor of the squatter before.
        let bind = || node.host.space.inside(|| UdpSocket::bind(address)).unwrap();
        let squatter = until(PATIENCE, "the port to be free", || bind().ok()).unwrap();
        for state in ["down", "up"] {
            node.run(&format!("ip link set wg0 {state}")).unwrap();
            node.run("wg set wg0 listen-port 6000 fwmark 1").unwrap();
            let error = node.run("wg set wg0 listen-port 7000 fwmark 2").unwrap_err().to_string();
            // An IPv6 socket without IPV6_V6ONLY takes the port in both families.
            assert!(error.contains("Address already in use"), "{error}");
            assert_eq!(request(node, "get=1\n\n"), "listen_port=6000\nfwmark=1\nerrno=0\n\n");
        }
        drop(squatter);
        node.run("ip link set wg0 down").unwrap();
    }
    until(PATIENCE, "the port to be free", || node.run("wg set wg0 listen-port 7000").ok()).unwrap();
}

#[test]
fn the_port_is_open_only_while_the_interface_is_up() {
    let tunnel = Tunnel::established();
    let node = tunnel.node(0);
    let bind = || node.host.space.inside(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap();
    assert!(bind().is_err());
    node.run("ip link set wg0 down").unwrap();
    let squatter = until(PATIENCE, "the port to be free", || bind().ok()).unwrap();
    // `ip link set up` cannot report that the port is taken: the device tries until it is free.
    node.run("ip link set wg0 up").unwrap();
    assert!(!ping(node, inner(1)[0]));
    drop(squatter);
    node.run("ip address replace fd99::1/64 dev wg0 nodad").unwrap();
    tunnel.settle();
}

#[test]
fn wg_sets_and_shows_every_setting() {
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

    // `syncconf` sends the differences only; back and forth it ends where it began.
    let fewer = format!(
        "[Interface]\nListenPort = 7001\nPrivateKey = {private}\n\
         [Peer]\nPublicKey = {other}\nAllowedIPs = 10.1.0.0/16\n"
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
    assert_eq!(request(node, &wrong), "errno=-22\n\n");
    assert_eq!(shown(), before);
}

#[test]
fn wireloom_and_wg_derive_the_same_public_keys() {
    let lab = node();
    let node = &lab.nodes[0];
    let private = String::from_utf8(run(node, "key generate").stdout).unwrap();
    let public = node.host.space.feed(&format!("{} key public", word(wireloom())), &private).unwrap();
    assert_eq!(public, node.host.space.feed("wg pubkey", &private).unwrap());
    // `wg genkey` clamps its keys as well; `wg pubkey` takes them as they come.
    let theirs = node.run("wg genkey").unwrap();
    let public = node.host.space.feed(&format!("{} key public", word(wireloom())), &theirs).unwrap();
    assert_eq!(public, node.host.space.feed("wg pubkey", &theirs).unwrap());
    for wrong in ["", "not a key", &private[..40], &"A".repeat(2000)] {
        let error = node.host.space.feed(&format!("{} key public", word(wireloom())), wrong).unwrap_err();
        assert!(error.to_string().contains("expected 44 characters of base64"), "{error}");
    }
}

#[test]
fn garbage_on_the_control_socket_changes_nothing_and_stops_no_packet() {
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
        let answer = control::request(&node.host.space, "wg0", garbage).unwrap();
        let refused = answer.is_empty() || answer == "errno=-22\n\n";
        assert!(refused, "{answer:?} to {:?}", String::from_utf8_lossy(&garbage[..garbage.len().min(50)]));
        until(PATIENCE, "an answer to a ping", || ping(node, inner(1)[0]).then_some(())).unwrap();
    }
    assert_eq!(node.run("wg showconf wg0").unwrap(), before);
}

#[test]
fn five_thousand_peers_are_configured_by_one_request() {
    let lab = node();
    let node = &lab.nodes[0];
    assert!(run(node, "device wg0").status.success());
    node.run("ip link set wg0 up").unwrap();
    let mut all = format!("set=1\nprivate_key={:064x}\nreplace_peers=true\n", 1 << 20);
    for peer in 1..=5000_u32 {
        let [_, _, high, low] = peer.to_be_bytes();
        all += &format!(
            "public_key={peer:064x}\nendpoint=192.168.1.2:9\n\
             allowed_ip=10.{high}.{low}.0/24\nallowed_ip=fd00:{peer:x}::/32\n"
        );
    }
    all += "\n";
    assert_eq!(request(node, &all), "errno=0\n\n");
    let shown = node.run("wg show wg0 allowed-ips").unwrap();
    assert_eq!(shown.lines().count(), 5000);
    // Processor time, which does not depend on what else the machine does. Something quadratic in the number
    // of peers would take far longer, even unoptimised.
    let spent = processor_time(node);
    assert!(spent < Duration::from_secs(10), "{spent:?}");

    // What long requests need is given back, whether they are refused for their length or for their last line. The
    // allocator keeps a few MiB, and would keep most of it.
    let before = memory(node);
    let peer = format!("public_key={:064x}\nallowed_ip=10.0.0.0/8\nallowed_ip=10.0.0.1/32\n", 1);
    for (length, errno) in [(15 << 20, -22), (20 << 20, -7)] {
        let long = format!("set=1\n{}nonsense\n\n", peer.repeat(length / peer.len()));
        assert_eq!(request(node, &long), format!("errno={errno}\n\n"));
    }
    let given_back = || (memory(node) < before + (8 << 10)).then_some(());
    until(PATIENCE, "the memory to be given back", given_back).unwrap();
    assert_eq!(node.run("wg show wg0 allowed-ips").unwrap(), shown);
}

/// The memory of a node's device, in KiB.
fn memory(node: &Node) -> u64 {
    let status = node.host.space.read(&format!("/proc/{}/status", process(node))).unwrap().unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    resident.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What all threads of a node's device have used so far.
fn processor_time(node: &Node) -> Duration {
    let process = process(node);
    let tasks = || {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
        // Its first number is nanoseconds on a processor (Documentation/scheduler/sched-stats.rst). The thread of a
        // control client may end meanwhile.
        let lines = tasks.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
        lines.map(|line| line.split(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>()
    };
    Duration::from_nanos(node.host.space.inside(tasks).unwrap())
}
