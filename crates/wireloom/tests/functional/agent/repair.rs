//! How soon what others break is repaired: within milliseconds what the kernel announces, within seconds what it does
//! not; and what happens to a device that hangs, and to an interface that is renamed or moved away.

use std::{
    io::{self, BufRead as _},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use wireloom_lab::{
    Layout, Node, PATIENCE, Promise, agent, at_this_pace,
    mesh::{KEY, KeyPair, write_key},
    until,
};

use crate::{
    fixtures::device::{self, LOST, processes},
    fixtures::fleet::{Fleet, run},
    wireloom,
};

/// The bound for what the kernel announces: less than the 2 s of a poll, which would find it, too. The aim is a
/// median below 50 ms; that is what the printed figures are for, on a quiet machine.
const ANNOUNCED: Duration = Duration::from_secs(1);

/// What it does not announce is repaired within this: well below the 30 s between two periodic passes, which would find
/// it, too. Polls are 2 s apart, and up to 4.5 s on a busy machine.
const POLLED: Duration = Duration::from_secs(10);

/// A status takes no longer than this, whatever is broken.
const PROMPT: Duration = Duration::from_secs(4);

/// How long a device may be silent before another one replaces it.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// How often a fault is repeated whose median counts; and while a device hangs, before another one replaces it.
const REPEATED: usize = 9;
const BRIEFLY: usize = 4;

/// Runs the line, and returns how long it took until what it broke is repaired.
#[track_caller]
fn repair_time(node: &Node, damage: &str, is_whole: impl Fn(&Node) -> bool) -> Duration {
    node.run(damage).unwrap();
    let begun = Instant::now();
    while !is_whole(node) {
        // Not as `until`, which sleeps for longer than some repairs take.
        let log = || agent::log(node).unwrap();
        assert!(begun.elapsed() < at_this_pace(PATIENCE), "{damage:?} was not repaired\n{}", log());
        std::thread::sleep(Duration::from_millis(1));
    }
    begun.elapsed()
}

/// The repair times of a fault that is repeated, the shortest first.
#[track_caller]
fn repair_times(
    node: &Node,
    damage: &str,
    repeated: usize,
    is_whole: impl Fn(&Node) -> bool,
) -> Vec<Duration> {
    let mut times: Vec<_> = (0..repeated)
        .map(|_| {
            // Longer than the least time between three passes: the kernel announces some repairs, too.
            std::thread::sleep(Duration::from_millis(250));
            repair_time(node, damage, &is_whole)
        })
        .collect();
    times.sort();
    times
}

/// The median of the repair times of a fault that is repeated.
#[track_caller]
fn median_repair_time(node: &Node, damage: &str, is_whole: impl Fn(&Node) -> bool) -> Duration {
    repair_times(node, damage, REPEATED, is_whole)[REPEATED / 2]
}

/// Prints a line of the table, and asserts that the repair took less than `limit`.
#[track_caller]
fn figure(fault: &str, took: Duration, limit: Duration) {
    println!("figure: {fault}: repaired after {} ms", took.as_millis());
    assert!(took < at_this_pace(limit), "{fault}: repaired after {took:?}, not within {limit:?}");
}

fn shows(node: &Node, line: &str, part: &str) -> bool {
    node.run(line).is_ok_and(|shown| shown.contains(part))
}

/// The index of our interface, which a new one has not.
fn index_of_ours(node: &Node) -> String {
    let shown = node.run("ip -o link show wg0").unwrap();
    shown.split_once(':').unwrap().0.to_owned()
}

/// The hardware address of our interface.
fn hardware_address(node: &Node) -> String {
    let shown = node.run("ip -o link show wg0").unwrap();
    shown.split_once("link/ether ").unwrap().1[..17].to_owned()
}

/// The device processes of a node without its agent.
fn devices(fleet: &Fleet) -> Vec<u32> {
    let agent = fleet.agents[0].pid_on_node().unwrap();
    processes(&fleet.lab.nodes[0]).into_iter().filter(|id| Some(*id) != agent).collect()
}

fn has_rule(node: &Node) -> bool {
    shows(node, "ip rule show pref 99", "lookup 1")
}

/// Waits until both nodes have proved themselves and the first one's agent has nothing left to do.
#[track_caller]
fn settle(fleet: &Fleet, promise: Promise) {
    fleet.settle(promise);
    fleet.wait_for_proofs();
    fleet.wait_until_done(&fleet.lab.nodes[0]);
}

fn log(fleet: &Fleet) -> String {
    agent::log(&fleet.lab.nodes[0]).unwrap()
}

#[test]
fn a_device_that_hangs_keeps_nothing_else_from_being_repaired_and_is_restarted() {
    let fleet = Fleet::new(Layout::default(), "encrypt_host_traffic = false");
    settle(&fleet, Promise::SCOPED);
    let node = &fleet.lab.nodes[0];
    let median = median_repair_time(node, "ip rule del pref 99", has_rule);
    figure("rule 99 deleted", median, ANNOUNCED);
    let index = index_of_ours(node);
    assert!(log(&fleet).contains("device wg0: listening on UDP port 51820"), "{}", log(&fleet));

    let [device] = devices(&fleet)[..] else { panic!("{:?}", devices(&fleet)) };
    // One that is late only is left alone.
    node.run(&format!("kill -STOP {device}")).unwrap();
    fleet.wait("the silence to be logged", |fleet| {
        log(fleet).contains(&format!("the WireGuard device does not answer (process {device})"))
    });
    node.run(&format!("kill -CONT {device}")).unwrap();
    fleet.wait("the recovery", |fleet| log(fleet).contains("recovered: the kernel is as desired again"));

    node.run(&format!("kill -STOP {device}")).unwrap();
    let stopped = Instant::now();
    fleet.wait("a status to say so soon", |_| {
        let begun = Instant::now();
        let (_, shown, _) = run(node, "status --json");
        let took = begun.elapsed();
        println!("figure: status while the device hangs: {} ms", took.as_millis());
        took < at_this_pace(PROMPT) && shown.contains("does not answer")
    });
    // The second shortest: repairs that wait for the device, or for a poll, all take longer, but perhaps the first.
    let times = repair_times(node, "ip rule del pref 99", BRIEFLY, has_rule);
    figure("rule 99 deleted while the device hangs", times[1], ANNOUNCED);
    let times = repair_times(node, "ip route flush table 1", BRIEFLY, |node| {
        shows(node, "ip route show table 1", "dev wg0")
    });
    figure("routes deleted while the device hangs", times[1], ANNOUNCED);
    let now = devices(&fleet);
    // On a busy machine, all this may have taken longer.
    if stopped.elapsed() < SILENCE_MAX {
        assert_eq!(now, [device]);
    }

    fleet.wait("another device", |fleet| {
        let now = devices(fleet);
        now.len() == 1 && now != [device]
    });
    println!("figure: a device that hangs is replaced after {} ms", stopped.elapsed().as_millis());
    assert!(stopped.elapsed() > SILENCE_MAX);
    assert_eq!(index_of_ours(node), index);
    fleet.settle(Promise::SCOPED);
    fleet.wait_until_done(node);
}

#[test]
fn what_the_kernel_does_not_announce_is_repaired_within_seconds() {
    let mut fleet = Fleet::new(Layout::default(), "encrypt_host_traffic = true");
    settle(&fleet, Promise::HOST);
    let node = &fleet.lab.nodes[0];
    let underlay = node.run("ip -o -4 address show to 192.168.0.0/16").unwrap();
    let underlay = underlay.split_whitespace().nth(1).unwrap();
    for interface in [underlay, "wg0"] {
        let path = format!("net.ipv4.conf.{interface}.rp_filter");
        let before = node.run(&format!("sysctl -n {path}")).unwrap();
        let median = median_repair_time(node, &format!("sysctl -qw {path}=1"), |node| {
            node.run(&format!("sysctl -n {path}")).unwrap() == before
        });
        figure(&format!("rp_filter of {interface} reset"), median, ANNOUNCED);
    }
    let path = format!("net.ipv4.conf.{underlay}.src_valid_mark");
    let took = repair_time(node, &format!("sysctl -qw {path}=0"), |node| {
        node.run(&format!("sysctl -n {path}")).unwrap() == "1\n"
    });
    figure("src_valid_mark reset", took, POLLED);

    let peer = &fleet.keys[1].public;
    let shown = |what: &str| node.run(&format!("wg show wg0 {what}")).unwrap();
    for (damage, what) in [
        (format!("peer {peer} remove"), "peers"),
        (format!("peer {peer} allowed-ips 10.9.9.0/24"), "allowed-ips"),
        ("fwmark 0".into(), "fwmark"),
        ("listen-port 7".into(), "listen-port"),
        ("private-key /dev/null".into(), "public-key"),
    ] {
        let before = shown(what);
        let took = repair_time(node, &format!("wg set wg0 {damage}"), |node| {
            node.run(&format!("wg show wg0 {what}")).unwrap() == before
        });
        figure(&format!("wg set {damage}"), took, POLLED);
    }

    // A file that others can read changes nothing but the report.
    let before = shown("public-key");
    node.run(&format!("chmod 644 {KEY}")).unwrap();
    let reported =
        || node.run("cat /run/wireloom/wg0.json").unwrap().contains("the previous key stays in force");
    fleet.wait("the error to be reported", |_| reported());
    assert_eq!(shown("public-key"), before);
    node.run(&format!("chmod 600 {KEY}")).unwrap();
    fleet.wait("the error to go", |_| !reported());
    let key = KeyPair::generate(wireloom(), node).unwrap();
    write_key(node, &key).unwrap();
    let begun = Instant::now();
    fleet.wait("the new key", |_| shown("public-key").trim() == key.public);
    figure("the private key's file replaced", begun.elapsed(), POLLED);
    let public = key.public.clone();
    fleet.edit(|mesh| mesh.nodes[0].public_key = Some(public));
    fleet.settle(Promise::HOST);
}

#[test]
fn an_interface_that_is_renamed_or_moved_away_is_made_anew() {
    let fleet = Fleet::new(Layout::default(), "encrypt_host_traffic = false");
    settle(&fleet, Promise::SCOPED);
    let node = &fleet.lab.nodes[0];
    node.run("ip netns add elsewhere").unwrap();
    for (damage, told) in [
        ("ip link set wg0 name foo", "was renamed to foo; removing foo and making wg0 anew"),
        ("ip link set wg0 netns elsewhere", "was deleted or moved away; making it anew"),
    ] {
        let before = devices(&fleet);
        let took = repair_time(node, damage, |node| shows(node, "ip route show table 1", "dev wg0"));
        figure(damage, took, POLLED);
        fleet.settle(Promise::SCOPED);
        fleet.wait_until_done(node);
        // The old one left nothing behind.
        fleet.wait("the old device to end", |fleet| {
            let now = devices(fleet);
            now.len() == 1 && now != before
        });
        for place in ["", "-n elsewhere"] {
            let shown = node.run(&format!("ip {place} -o link show")).unwrap();
            assert_eq!(
                shown.contains("alias wireloom"),
                place.is_empty() && shown.contains("wg0"),
                "{shown}"
            );
            assert!(!shown.contains("foo"), "{shown}");
        }
        assert!(log(&fleet).contains(told), "{}", log(&fleet));
    }
    assert!(!log(&fleet).contains("ERROR"), "{}", log(&fleet));
}

#[test]
fn the_hardware_address_of_a_link_is_set_back() {
    let fleet =
        Fleet::new(Layout::default(), "encrypt_host_traffic = false\n\n[link]\npeer_lookup = \"gateway\"");
    settle(&fleet, Promise::SCOPED);
    let node = &fleet.lab.nodes[0];
    let before = hardware_address(node);
    let neighbours = |node: &Node| {
        let shown = node.run("ip neighbour show dev wg0 nud permanent").unwrap();
        let mut lines: Vec<_> = shown.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let known = neighbours(node);
    assert!(!known.is_empty());
    let median = median_repair_time(node, "ip link set wg0 address 02:00:00:00:00:01", |node| {
        hardware_address(node) == before && neighbours(node) == known
    });
    figure("the hardware address changed", median, ANNOUNCED);
    fleet.settle(Promise::SCOPED);
    fleet.wait_until_done(node);
}

/// Whoever reads the log of a device may end or hang.
#[test]
fn a_device_goes_on_when_nobody_reads_its_log() {
    let lab = device::node();
    let node = &lab.nodes[0];
    for is_read in [false, true] {
        let (reader, writer) = io::pipe().unwrap();
        let mut command = Command::new(wireloom());
        command.args(["device", "--log-to-stdin", "wg0"]).stdin(writer);
        let started = node.host.space.spawn(&mut command).unwrap().wait().unwrap();
        drop(command);
        assert!(started.success());
        // It stays open, and is full after a thousand lines.
        let reader = is_read.then_some(reader);
        for _ in 0..1_500 {
            assert_eq!(device::request(node, "nonsense=1\n\n"), "errno=-22\n\n");
        }
        assert!(device::request(node, "get=1\n\n").ends_with("errno=0\n\n"));
        if let Some(reader) = reader {
            let mut lines = io::BufReader::new(reader).lines().map_while(Result::ok);
            let reading = thread::spawn(move || lines.any(|line| line.contains(LOST)));
            let read = || reading.is_finished().then_some(());
            until(PATIENCE, "the device to say that lines were lost", read).unwrap();
            assert!(reading.join().unwrap());
        }
        node.run("ip link delete wg0").unwrap();
        device::wait_until_gone(node);
    }
}
