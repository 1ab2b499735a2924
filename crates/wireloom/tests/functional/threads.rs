//! The userspace interface with several threads, more of them than this machine may have cores.

use std::{fs, net::SocketAddr, os::fd::AsRawFd as _, process::Command, thread, time::Duration};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use wireloom_lab::{Layout, Node, PATIENCE, until};
use wireloom_plan::routing::Family;

use crate::{
    device::{node, processes, run, wait_until_gone},
    neighbours::{LINK, Link, reach, start},
    transfer::streams,
    tunnel::{PORT, Program, THREADS, Tunnel, inner, ping, word},
    wireloom,
};

/// Sends eight streams each way through the tunnel at once, and compares what arrives.
#[track_caller]
fn exchange(tunnel: &Tunnel, family: usize) {
    let [one, other] = [0, 1].map(|place| &tunnel.node(place).host.space);
    thread::scope(|scope| {
        scope.spawn(|| streams(one, other, inner(1)[family], 8, 32));
        streams(other, one, inner(0)[family], 8, 32);
    });
}

/// What each thread of the node's device has spent of processor time, by name.
fn spent(node: &Node) -> Vec<(String, u64)> {
    let [process] = processes(node)[..] else { panic!("one process") };
    let tasks = || {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
        let read = |path: std::path::PathBuf| fs::read_to_string(path).unwrap();
        let nanoseconds = |line: String| line.split(' ').next().unwrap().parse().unwrap();
        let spent = |task: fs::DirEntry| {
            let name = read(task.path().join("comm")).trim().to_owned();
            (name, nanoseconds(read(task.path().join("schedstat"))))
        };
        tasks.map(spent).collect()
    };
    node.host.space.inside(tasks).unwrap()
}

#[test]
fn streams_cross_intact_by_several_threads() {
    let tunnel = Tunnel::established_with(Program::WireloomThreads);
    let spent_by = |kind: &str| {
        let all = spent(tunnel.node(0)).into_iter();
        all.filter(|(name, _)| name.starts_with(kind)).map(|(_, spent)| spent).collect::<Vec<_>>()
    };
    for family in [0, 1] {
        exchange(&tunnel, family);
    }
    for kind in ["queue-", "helper-"] {
        let spent = spent_by(kind);
        assert_eq!(spent.len(), THREADS - 1, "{kind}");
        let busy = spent.iter().filter(|nanoseconds| **nanoseconds > 1_000_000).count();
        assert!(busy >= 2, "{kind}: only {busy} did anything worth mentioning");
    }
}

/// How many threads of the node's device have a queue of their own.
fn queues(node: &Node) -> usize {
    spent(node).into_iter().filter(|(name, _)| name.starts_with("queue-")).count()
}

#[test]
fn a_link_is_carried_by_several_threads_and_taken_over_with_as_many_as_it_can_have() {
    const SEVERAL: &str = "--peer-lookup gateway --source-check off --threads 4";
    let mut link = Link::without_devices(Layout { nodes: 3, pods: 0, ..Layout::default() });
    link.start(Family::V4, |_| SEVERAL);
    link.settle();
    for family in [0, 1] {
        thread::scope(|scope| {
            for (from, to) in [(0, 1), (1, 0), (0, 2)] {
                let [from, space] = [from, to].map(|place: usize| &link.node(place).host.space);
                scope.spawn(move || streams(from, space, inner(to)[family], 8, 8));
            }
        });
    }
    let node = link.node(0);
    let busy =
        spent(node).into_iter().filter(|(name, spent)| name.starts_with("queue-") && *spent > 1_000_000);
    assert!(busy.count() >= 2, "{:?}", spent(node));
    // Nobody gets in beside it, though the kernel would let them.
    let said = node.run(&format!("{} device wg0 {SEVERAL}", wireloom().display())).unwrap_err().to_string();
    assert!(said.contains("wg0 exists already"), "{said}");
    assert!(node.run("ip -d link show wg0").unwrap().contains(&format!("numqueues {THREADS} ")));
    let restart = |options: &str| {
        let [process] = processes(node)[..] else { panic!("one process") };
        node.run(&format!("kill -TERM {process}")).unwrap();
        until(PATIENCE, "the process to end", || processes(node).is_empty().then_some(())).unwrap();
        start(node, options);
        link.configure(0);
        for address in inner(1).into_iter().chain(inner(2)) {
            reach(node, address);
        }
        queues(node)
    };
    // What can have several queues may have one, and as many again.
    let one = format!("{LINK} --threads 1");
    assert_eq!([restart(SEVERAL), restart(&one), restart(SEVERAL)], [THREADS - 1, 0, THREADS - 1]);
    // What was made for one has one, with all that it had; made anew, it has several.
    node.run("rm /run/wireguard/wg0.sock").unwrap();
    wait_until_gone(node);
    start(node, &one);
    link.configure(0);
    link.address(0);
    node.run(&format!("ip route add 172.20.0.0/16 via {}", inner(1)[0])).unwrap();
    assert_eq!(restart(SEVERAL), 0);
    assert!(node.run("ip route").unwrap().contains("172.20.0.0/16"));
    node.run("rm /run/wireguard/wg0.sock").unwrap();
    wait_until_gone(node);
    start(node, SEVERAL);
    link.configure(0);
    link.address(0);
    reach(node, inner(1)[0]);
    assert_eq!(queues(node), THREADS - 1);
}

#[test]
fn changes_of_port_mark_and_state_cost_no_stream() {
    let tunnel = Tunnel::established_with(Program::WireloomThreads);
    let node = tunnel.node(1);
    thread::scope(|scope| {
        let streams = scope.spawn(|| exchange(&tunnel, 0));
        // Roaming, as the other end sees it.
        for port in [51_900, 51_901, PORT] {
            thread::sleep(Duration::from_millis(100));
            node.run(&format!("wg set wg0 listen-port {port} fwmark {}", port - 51_000)).unwrap();
        }
        for mtu in [1300, 1420] {
            thread::sleep(Duration::from_millis(50));
            node.run(&format!("ip link set wg0 mtu {mtu}")).unwrap();
        }
        node.run("ip link set wg0 down").unwrap();
        thread::sleep(Duration::from_millis(100));
        node.run("ip link set wg0 up").unwrap();
        node.run(&format!("ip address replace {}/64 dev wg0 nodad", inner(1)[1])).unwrap();
        // Its sessions are gone, which the other end learns by the first packet from here. Without one it
        // goes on with its own for 15 s, should all that the streams still have to send be its.
        until(PATIENCE, "a ping", || ping(node, inner(0)[0]).then_some(())).unwrap();
        streams.join().unwrap();
    });
    exchange(&tunnel, 1);
}

#[test]
fn every_thread_sends_with_the_mark() {
    let tunnel = Tunnel::established_with(Program::WireloomThreads);
    let node = tunnel.node(0);
    let unmarked_is_counted = "table inet test { chain output {\n type filter hook output priority 0\n \
                               oifname eth0 udp dport 51820 meta mark != 0xa counter drop\n }\n }\n";
    node.run("wg set wg0 fwmark 0xa").unwrap();
    node.host.space.feed("nft -f -", unmarked_is_counted).unwrap();
    exchange(&tunnel, 0);
    let rules = node.run("nft list ruleset").unwrap();
    assert!(rules.contains("counter packets 0 bytes 0 drop"), "{rules}");
    node.run("wg set wg0 fwmark 0").unwrap();
    assert!(!ping(node, inner(1)[0]));
}

/// A socket on this port whose owner would share it.
fn sharing(address: &str) -> std::io::Result<Socket> {
    let address: SocketAddr = address.parse().unwrap();
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    socket.bind(&address.into())?;
    assert!(socket.as_raw_fd() >= 0);
    Ok(socket)
}

#[test]
fn the_port_is_nobody_elses() {
    let lab = node();
    let node = &lab.nodes[0];
    let threads = format!("--threads {THREADS}");
    assert!(run(node, &format!("device wg0 {threads}")).status.success());
    assert!(run(node, &format!("device wg1 {threads}")).status.success());
    node.run("ip link set wg0 up").unwrap();
    node.run("ip link set wg1 up").unwrap();
    let in_use = |line: &str| {
        let error = node.run(line).unwrap_err().to_string();
        assert!(error.contains("Address already in use"), "{error}");
    };
    // Another of our own, and others that would share.
    node.run("wg set wg0 listen-port 6000").unwrap();
    in_use("wg set wg1 listen-port 6000");
    for address in ["0.0.0.0:7000", "[::]:7000"] {
        let squatter = node.host.space.inside(|| sharing(address).unwrap()).unwrap();
        in_use("wg set wg0 listen-port 7000 fwmark 2");
        let shown = node.run("wg show wg0").unwrap();
        assert!(shown.contains("listening port: 6000") && !shown.contains("fwmark"), "{shown}");
        drop(squatter);
    }
    // A child of another test may hold the squatters' descriptors for a moment.
    until(PATIENCE, "the port to be free", || node.run("wg set wg0 listen-port 7000").ok()).unwrap();
    // What we let go is free at once, whichever thread had which socket.
    for port in [6000, 7000].repeat(10) {
        node.run(&format!("wg set wg0 listen-port {port}")).unwrap();
    }
}

#[test]
fn whatever_ends_it_ends_all_threads() {
    let lab = node();
    let node = &lab.nodes[0];
    let ends: [(&str, &dyn Fn()); 3] = [
        ("deletion", &|| drop(node.run("ip link delete wg0").unwrap())),
        ("the socket's removal", &|| drop(node.run("rm /run/wireguard/wg0.sock").unwrap())),
        ("a signal", &|| {
            let [process] = processes(node)[..] else { panic!("one process") };
            node.run(&format!("kill -TERM {process}")).unwrap();
        }),
    ];
    for state in ["down", "up"] {
        for (what, end) in ends {
            assert!(run(node, &format!("device wg0 --threads {THREADS}")).status.success());
            node.run(&format!("ip link set wg0 {state}")).unwrap();
            end();
            eprintln!("ended by {what} while it is {state}");
            wait_until_gone(node);
        }
    }
}

#[test]
fn wg_quick_passes_the_number_by_the_environment() {
    let tunnel = Tunnel::new(&[Program::WireloomThreads]);
    let near = tunnel.node(1);
    let [near_v4, near_v6] = inner(1);
    tunnel.set_peer(0, 1, &format!("allowed-ips {near_v4}/32,{near_v6}/128"));
    let configuration = format!(
        "[Interface]\nPrivateKey = {}\nAddress = {near_v4}/24, {near_v6}/64\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = {}\n",
        tunnel.keys[1].private,
        tunnel.keys[0].public,
        tunnel.endpoint(0, Family::V4)
    );
    near.host.space.write("/run/wg0.conf", &configuration).unwrap();
    near.run(&format!("ln -s {} /run/wireloom-device", word(wireloom()))).unwrap();
    let quick = |what: &str| {
        let mut command = Command::new("wg-quick");
        command.args([what, "/run/wg0.conf"]);
        command.env("WG_QUICK_USERSPACE_IMPLEMENTATION", "/run/wireloom-device");
        command.env("WIRELOOM_THREADS", THREADS.to_string());
        let output = near.host.space.output(&mut command).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    quick("up");
    let queues = spent(near).into_iter().filter(|(name, _)| name.starts_with("queue-")).count();
    assert_eq!(queues, THREADS - 1);
    for address in inner(0) {
        until(PATIENCE, "a ping", || ping(near, address).then_some(())).unwrap();
    }
    exchange(&tunnel, 0);
    quick("down");
    wait_until_gone(near);
}

#[test]
fn a_number_that_cannot_be_is_refused() {
    let lab = node();
    for number in ["0", "257", "-1", "many"] {
        let output = run(&lab.nodes[0], &format!("device wg0 --threads={number}"));
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("--threads") && said.contains(number), "{said}");
    }
}
