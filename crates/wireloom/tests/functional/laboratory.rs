//! The laboratory measures what it claims to, and leaves nothing behind.

mod flows;

use std::{fs, path::Path, process::Command, time::Duration};

use wireloom_lab::{
    Capture, Content, Lab, Layout, Matrix, PATIENCE, Pinger, Promise, Stream, Wire,
    mesh::{KeyPair, Mesh},
    probe::{Exchange, probe},
    unscoped, until,
};
use wireloom_plan::routing::Family;

#[test]
fn without_a_tunnel_everything_is_reachable_in_plaintext() {
    let lab = Lab::new(&Layout { nodes: 3, block_address: true, ..Layout::default() }).unwrap();
    let matrix = Matrix::measure(&lab).unwrap();
    assert_eq!(matrix.0.len(), 6 * 4 * 2);
    assert_eq!(matrix.broken(Promise::PLAINTEXT), [""; 0]);
    // A promise that is not kept is named, cell by cell.
    let broken = matrix.broken(Promise::SCOPED);
    assert_eq!(broken.len(), 6 * 2);
    assert_eq!(
        broken[0],
        "pod → pod over IPv4, pod-1 on node-a to pod-1 on node-b: reachable, direct (promised: reachable, encrypted)"
    );
}

#[test]
fn a_refused_destination_is_unreachable_and_leaves_no_trace() {
    let lab = Lab::new(&Layout::default()).unwrap();
    let [a, b] = &lab.nodes[..] else { panic!("two nodes") };
    for (family, block) in [(Family::V4, b.block[0]), (Family::V6, b.block[1])] {
        a.run(&format!("ip route replace unreachable {block}")).unwrap();
        for exchange in [Exchange::Ping, Exchange::Udp] {
            let cell = probe(lab.underlay(), &a.pods[0], &b.pods[0], family, exchange).unwrap();
            assert_eq!((cell.reachable, cell.wire), (false, Wire::Nothing), "{family:?} {exchange:?}");
        }
    }
}

#[test]
fn a_lost_reply_makes_a_place_unreachable_and_the_request_visible() {
    let lab = Lab::new(&Layout::default()).unwrap();
    let [a, b] = &lab.nodes[..] else { panic!("two nodes") };
    b.run(&format!("ip route replace blackhole {}", a.block[0])).unwrap();
    let cell = probe(lab.underlay(), &a.pods[0], &b.pods[0], Family::V4, Exchange::Ping).unwrap();
    assert_eq!((cell.reachable, cell.wire), (false, Wire::Direct));
}

#[test]
fn udp_and_tcp_arrive_and_the_capture_sees_them() {
    let lab = Lab::new(&Layout::default()).unwrap();
    let [a, b] = &lab.nodes[..] else { panic!("two nodes") };
    let capture = Capture::open(lab.underlay()).unwrap();
    for family in [Family::V4, Family::V6] {
        let cell = probe(lab.underlay(), &a.pods[0], &b.host, family, Exchange::Udp).unwrap();
        assert_eq!((cell.reachable, cell.wire), (true, Wire::Direct));
        let stream = Stream::start(&a.pods[0], &b.pods[0], family).unwrap();
        until(PATIENCE, "the stream to flow", || (stream.received() > 100_000).then_some(())).unwrap();
        let report = stream.stop().unwrap();
        assert!(report.intact && report.sent == report.received, "{report:?}");
    }
    let packets = capture.drain().unwrap();
    let seen = |wanted: fn(&Content) -> bool| packets.iter().any(|packet| wanted(&packet.content));
    assert!(seen(|content| matches!(content, Content::Tcp { .. })));
    assert!(seen(|content| matches!(content, Content::Udp { .. })));
}

#[test]
fn the_pinger_counts_what_is_lost() {
    let lab = Lab::new(&Layout::default()).unwrap();
    let [a, b] = &lab.nodes[..] else { panic!("two nodes") };
    let pinger = Pinger::start(&a.host, &b.host, Family::V6, Duration::from_millis(5)).unwrap();
    let ping = || probe(lab.underlay(), &a.host, &b.host, Family::V6, Exchange::Ping).unwrap();
    until(PATIENCE, "answers to the pinger", || (pinger.answered() > 5).then_some(())).unwrap();
    b.run("ip link set eth0 down").unwrap();
    assert!(!ping().reachable);
    let answered = pinger.answered();
    // The address went with the cable.
    b.run("ip link set eth0 up").unwrap();
    b.run(&format!("ip address replace {}/64 dev eth0 nodad", b.host.addresses.v6)).unwrap();
    until(PATIENCE, "answers after the outage", || (pinger.answered() > answered + 5).then_some(())).unwrap();
    let report = pinger.stop().unwrap();
    assert!(report.outage > Duration::from_secs(1) && report.outage < PATIENCE, "{report:?}");
    // The probe took six attempts of 300 ms each while nothing came back: time for more than ten pings on a busy
    // machine as well.
    assert!(report.lost > 10 && report.lost < report.sent, "{report:?}");
}

#[test]
fn a_borrowed_address_moves_from_node_to_node() {
    let mut lab = Lab::new(&Layout { nodes: 3, ..Layout::default() }).unwrap();
    let borrowed = lab.lend_address(0, 77, 1).unwrap();
    for home in [1, 2, 0] {
        lab.move_address(borrowed, home).unwrap();
        let pod = lab.nodes[home].pods.last().unwrap();
        assert_eq!(pod.addresses, borrowed);
        for from in lab.nodes.iter().filter(|node| node.name != lab.nodes[home].name) {
            for family in [Family::V4, Family::V6] {
                let reached = || {
                    let cell = probe(lab.underlay(), &from.pods[0], pod, family, Exchange::Ping).unwrap();
                    (cell.reachable && cell.wire == Wire::Direct).then_some(())
                };
                until(PATIENCE, &format!("{} to reach it at {home}", from.name), reached).unwrap();
            }
        }
    }
}

#[test]
fn nodes_have_directories_of_their_own() {
    let lab = Lab::new(&Layout { pods: 0, ..Layout::default() }).unwrap();
    let [a, b] = &lab.nodes[..] else { panic!("two nodes") };
    for path in ["/etc/wireloom/x", "/var/lib/wireloom/x", "/run/x", "/var/run/y"] {
        a.host.space.write(path, "mine").unwrap();
        assert_eq!(a.host.space.read(path).unwrap().as_deref(), Some("mine"));
        assert_eq!(b.host.space.read(path).unwrap(), None);
        assert!(!Path::new(path).exists());
    }
    // All other files are the machine's.
    assert_eq!(a.host.space.read("/etc/passwd").unwrap(), fs::read_to_string("/etc/passwd").ok());
}

#[test]
fn daemons_end_with_their_node() {
    let lab = Lab::new(&Layout { nodes: 1, ..Layout::default() }).unwrap();
    let node = &lab.nodes[0];
    let mut sleeper = node.host.space.spawn(Command::new("sleep").arg("1000")).unwrap();
    let holder = node.pid();
    assert!(alive(holder) && sleeper.try_wait().unwrap().is_none());
    drop(lab);
    until(PATIENCE, "the daemon to end", || sleeper.try_wait().unwrap()).unwrap();
    until(PATIENCE, "the holder to end", || (!alive(holder)).then_some(())).unwrap();
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// With another WireGuard and without an agent: what the laboratory measures does not depend on the program under
/// test.
#[test]
fn with_one_rule_for_all_sources_what_hosts_send_is_lost() {
    let lab = Lab::new(&Layout { nodes: 3, ..Layout::default() }).unwrap();
    let space = &lab.nodes[0].host.space;
    let key = || {
        let private = space.run("wg genkey").unwrap().trim().to_owned();
        let public = space.feed("wg pubkey", &private).unwrap().trim().to_owned();
        KeyPair { private, public }
    };
    let keys = [key(), key(), key()];
    unscoped::build("wireguard-go", &lab, &Mesh::of(&lab, &keys), &keys).unwrap();
    let matrix = Matrix::settle(&lab, Promise::UNSCOPED, PATIENCE).unwrap();
    assert_eq!(matrix.broken(Promise::UNSCOPED), [""; 0]);
}
