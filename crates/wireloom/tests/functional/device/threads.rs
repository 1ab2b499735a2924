//! The userspace interface with several threads, perhaps more than this machine has cores.

use std::{fs, net::SocketAddr, os::fd::AsRawFd as _, process::Command, thread};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use wireloom_lab::{Layout, Node, PATIENCE, until};
use wireloom_plan::routing::Family;

use crate::{
    fixtures::device::{node, process, processes, run, wait_until_gone},
    fixtures::link::{LINK, Link, reach, start},
    fixtures::transfer::{RunningStreams, streams},
    fixtures::tunnel::{PORT, Program, THREADS, Tunnel, inner, ping, word},
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

/// The processor time of each thread of the node's device, in nanoseconds, with the thread's name.
fn spent(node: &Node) -> Vec<(String, u64)> {
    let process = process(node);
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
fn streams_arrive_intact_and_several_threads_carry_them() {
    let tunnel = Tunnel::established_with(Program::WireloomThreads);
    let spent_by = |kind: &str| {
        let all = spent(tunnel.node(0)).into_iter();
        all.filter(|(name, _)| name.starts_with(kind)).map(|(_, spent)| spent).collect::<Vec<_>>()
    };
    for family in [0, 1] {
        exchange(&tunnel, family);
    }
    for (kind, count) in [("queue-", THREADS), ("helper-", THREADS - 1)] {
        let spent = spent_by(kind);
        assert_eq!(spent.len(), count, "{kind}");
        let busy = spent.iter().filter(|nanoseconds| **nanoseconds > 1_000_000).count();
        assert!(busy >= 2, "of the {kind} threads only {busy} worked for more than a millisecond");
    }
}

/// How many threads of the node's device have a queue of their own.
fn queues(node: &Node) -> usize {
    spent(node).into_iter().filter(|(name, _)| name.starts_with("queue-")).count()
}

#[test]
fn a_link_keeps_its_number_of_queues_when_another_process_takes_it_over() {
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
    // A second device is refused, though the kernel would let it attach to the queues.
    let said = node.run(&format!("{} device wg0 {SEVERAL}", wireloom().display())).unwrap_err().to_string();
    assert!(said.contains("wg0 exists already"), "{said}");
    assert!(node.run("ip -d link show wg0").unwrap().contains(&format!("numqueues {THREADS} ")));
    let restart = |options: &str| {
        node.run(&format!("kill -TERM {}", process(node))).unwrap();
        until(PATIENCE, "the process to end", || processes(node).is_empty().then_some(())).unwrap();
        start(node, options);
        link.configure(0);
        for address in inner(1).into_iter().chain(inner(2)) {
            reach(node, address);
        }
        queues(node)
    };
    // An interface made for several queues may be served by one thread, and by several again.
    let one = format!("{LINK} --threads 1");
    assert_eq!([restart(SEVERAL), restart(&one), restart(SEVERAL)], [THREADS, 1, THREADS]);
    // An interface made for one queue keeps it, with its routes; made anew, it has several.
    node.run("rm /run/wireguard/wg0.sock").unwrap();
    wait_until_gone(node);
    start(node, &one);
    link.configure(0);
    link.address(0);
    node.run(&format!("ip route add 172.20.0.0/16 via {}", inner(1)[0])).unwrap();
    assert_eq!(restart(SEVERAL), 1);
    assert!(node.run("ip route").unwrap().contains("172.20.0.0/16"));
    node.run("rm /run/wireguard/wg0.sock").unwrap();
    wait_until_gone(node);
    start(node, SEVERAL);
    link.configure(0);
    link.address(0);
    reach(node, inner(1)[0]);
    assert_eq!(queues(node), THREADS);
}

/// Streams run all the while, and after each change each of them brings more bytes, all as they were sent. What
/// is on the way when the interface goes down is lost, and TCP sends it again.
#[test]
fn streams_survive_changes_of_port_mark_mtu_and_state() {
    /// What each stream must bring after each change: more than can have been under way before it.
    const BYTES: u64 = 4 << 20;
    let tunnel = Tunnel::established_with(Program::WireloomThreads);
    let [far, node] = [0, 1].map(|place| tunnel.node(place));
    let spaces = [&far.host.space, &node.host.space];
    let directions = [
        RunningStreams::start(spaces[0], spaces[1], inner(1)[0], 8),
        RunningStreams::start(spaces[1], spaces[0], inner(0)[0], 8),
    ];
    let flow_on = |after: &str| {
        let before = directions.each_ref().map(RunningStreams::arrived);
        let flow = || {
            let mut streams = directions.iter().zip(&before);
            streams.all(|(streams, before)| streams.have_moved(before, BYTES)).then_some(())
        };
        until(3 * PATIENCE, &format!("each stream to flow on after {after}"), flow).unwrap_or_else(|error| {
            panic!("{error}: from {before:?} to {:?}", directions.each_ref().map(RunningStreams::arrived))
        });
    };
    flow_on("the start");
    let change = |line: &str| {
        node.run(line).unwrap();
        flow_on(line);
    };
    // To the other end, a change of the port is roaming.
    for port in [51_900, 51_901, PORT] {
        change(&format!("wg set wg0 listen-port {port} fwmark {}", port - 51_000));
    }
    for mtu in [1300, 1420] {
        change(&format!("ip link set wg0 mtu {mtu}"));
    }
    node.run("ip link set wg0 down").unwrap();
    node.run("ip link set wg0 up").unwrap();
    node.run(&format!("ip address replace {}/64 dev wg0 nodad", inner(1)[1])).unwrap();
    // The sessions of this end are gone, which the other end learns from the first packet that it gets. TCP may
    // take a while to send one: a ping is faster.
    until(PATIENCE, "an answer to a ping", || ping(node, inner(0)[0]).then_some(())).unwrap();
    flow_on("the interface was down");
    directions.into_iter().for_each(RunningStreams::finish);
    exchange(&tunnel, 1);
}

#[test]
fn every_thread_sends_with_the_firewall_mark() {
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

/// A socket at this address that allows others to share it (`SO_REUSEPORT`).
fn sharing(address: &str) -> std::io::Result<Socket> {
    let address: SocketAddr = address.parse().unwrap();
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    socket.bind(&address.into())?;
    assert!(socket.as_raw_fd() >= 0);
    Ok(socket)
}

#[test]
fn no_other_process_shares_the_port() {
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
    // Held by another device, and by a process that would share it.
    node.run("wg set wg0 listen-port 6000").unwrap();
    in_use("wg set wg1 listen-port 6000");
    for address in ["0.0.0.0:7000", "[::]:7000"] {
        let squatter = node.host.space.inside(|| sharing(address).unwrap()).unwrap();
        in_use("wg set wg0 listen-port 7000 fwmark 2");
        let shown = node.run("wg show wg0").unwrap();
        assert!(shown.contains("listening port: 6000") && !shown.contains("fwmark"), "{shown}");
        drop(squatter);
    }
    // A program that another test has just started may still hold the squatters' descriptors.
    until(PATIENCE, "the port to be free", || node.run("wg set wg0 listen-port 7000").ok()).unwrap();
    // A port that the device leaves is free at once, whichever thread had which socket.
    for port in [6000, 7000].repeat(10) {
        node.run(&format!("wg set wg0 listen-port {port}")).unwrap();
    }
}

#[test]
fn all_threads_end_whichever_way_the_device_ends() {
    let lab = node();
    let node = &lab.nodes[0];
    let ends: [(&str, &dyn Fn()); 3] = [
        ("deletion", &|| drop(node.run("ip link delete wg0").unwrap())),
        ("the socket's removal", &|| drop(node.run("rm /run/wireguard/wg0.sock").unwrap())),
        ("a signal", &|| {
            node.run(&format!("kill -TERM {}", process(node))).unwrap();
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
fn wg_quick_passes_the_number_of_threads_in_the_environment() {
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
    assert_eq!(queues, THREADS);
    for address in inner(0) {
        until(PATIENCE, "a ping", || ping(near, address).then_some(())).unwrap();
    }
    exchange(&tunnel, 0);
    quick("down");
    wait_until_gone(near);
}

#[test]
fn an_impossible_number_of_threads_is_refused() {
    let lab = node();
    for number in ["0", "257", "-1", "many"] {
        let output = run(&lab.nodes[0], &format!("device wg0 --threads={number}"));
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("--threads") && said.contains(number), "{said}");
    }
}
