//! `wireloom engine`: a device that is supervised.

use std::{
    fs,
    io::Read as _,
    net::UdpSocket,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use wireloom_kernel::supervisor::{State, Status, Supervisor, SupervisorError};
use wireloom_lab::{Lab, Layout, Node, PATIENCE, at_this_pace, device::Device, finish, mesh::KeyPair, until};

use crate::{
    fixtures::{
        device::{LOST, fill, has_interface, has_socket, node, processes, request, run, wait_until_gone},
        service_manager::ServiceManager,
    },
    wireloom,
};

const ENGINE: &str = "/run/wireloom/engine.sock";

/// Starts a supervisor on a node, and waits until it answers.
fn start(node: &Node) -> Child {
    let child = node.host.space.spawn(Command::new(wireloom()).arg("engine").stderr(Stdio::piped())).unwrap();
    until(PATIENCE, "the supervisor", || ask(node, Supervisor::status).ok()).unwrap();
    child
}

/// Asks the supervisor of a node, as the agent does.
fn ask<T: Send>(node: &Node, what: impl FnOnce(&Supervisor) -> T + Send) -> T {
    node.host.space.inside(|| what(&Supervisor::at(Path::new(ENGINE)))).unwrap()
}

fn run_device(node: &Node, arguments: &str) -> Result<Status, SupervisorError> {
    let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
    ask(node, |engine| engine.run(&arguments, false))
}

fn status(node: &Node) -> Status {
    ask(node, Supervisor::status).unwrap()
}

fn port_is_open(node: &Node, port: u16) -> bool {
    node.host.space.inside(|| UdpSocket::bind(("0.0.0.0", port)).is_err()).unwrap()
}

/// The supervisor's process, by its id on the node.
#[track_caller]
fn supervisor(node: &Node) -> u32 {
    let device = status(node).process;
    let others: Vec<u32> = processes(node).into_iter().filter(|id| Some(*id) != device).collect();
    let [supervisor] = others[..] else { panic!("{others:?} run beside the device {device:?}") };
    supervisor
}

#[test]
fn a_supervised_device_is_started_again_when_it_dies_and_ends_when_it_is_stopped() {
    let lab = node();
    let node = &lab.nodes[0];
    let engine = start(node);
    for socket in [ENGINE, "/run/wireloom/engine.notify"] {
        let mode = node.host.space.inside(|| fs::metadata(socket).unwrap().permissions().mode()).unwrap();
        assert_eq!(mode & 0o077, 0, "{socket}");
    }
    let second = run(node, "engine");
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success() && said.contains("another supervisor serves it"), "{said}");
    assert_eq!(status(node), Status { version: status(node).version, ..Status::default() }, "it idles");

    let running = run_device(node, "--persistent wg0").unwrap();
    assert_eq!(
        (running.state, &running.arguments[..]),
        (State::Running, &["--persistent", "wg0"].map(String::from)[..])
    );
    assert_eq!(node.run("wg show interfaces").unwrap(), "wg0\n");
    node.run("wg set wg0 listen-port 7000").unwrap();
    node.run("ip link set wg0 up").unwrap();
    // A queue, a socket of each family, and the sockets of control and hand-over.
    until(PATIENCE, "the descriptors", || (status(node).descriptors == 5).then_some(())).unwrap();
    let index = || node.run("ip -o link show wg0").unwrap().split(':').next().unwrap().to_owned();
    let (before, supervisor) = (index(), supervisor(node));
    let mut last = running.process.unwrap();
    for deaths in 1..=3 {
        let begun = Instant::now();
        node.run(&format!("kill -KILL {last}")).unwrap();
        assert!(port_is_open(node, 7000), "nobody else gets the port meanwhile");
        let back =
            || Some(status(node)).filter(|now| now.state == State::Running && now.process != Some(last));
        let now = until(PATIENCE, "another device", back).unwrap();
        assert_eq!(request(node, "get=1\n\n").lines().last(), Some(""), "it answers");
        println!("after its death number {deaths} the device answered within {:?}", begun.elapsed());
        assert_eq!((now.restarts, index()), (deaths, before.clone()));
        assert_eq!(now.last_end.as_deref(), Some("the device was killed by SIGKILL"));
        last = now.process.unwrap();
    }

    // A second device that fails says why, and the first stays.
    let refused = run_device(node, "--persistent lo").unwrap_err();
    assert!(matches!(&refused, SupervisorError::Failed(why) if !why.is_empty()), "{refused}");
    let refused = run_device(node, "--take-over wg0").unwrap_err().to_string();
    assert!(refused.contains("take_over"), "{refused}");
    assert_eq!((status(node).state, status(node).process), (State::Running, Some(last)));

    let stopped = ask(node, Supervisor::stop).unwrap();
    assert_eq!((stopped.state, stopped.process), (State::Idle, None));
    assert_eq!(processes(node), [supervisor]);
    assert!(!has_socket(node) && has_interface(node), "a persistent interface stays");

    // Whoever deletes its interface has no use for it.
    run_device(node, "wg0").unwrap();
    node.run("ip link delete wg0").unwrap();
    let idle = || (status(node).state == State::Idle).then_some(());
    until(PATIENCE, "the device to end", idle).unwrap();
    // A start that fails is not repeated.
    let refused = run_device(node, "--threads many wg0").unwrap_err().to_string();
    assert!(refused.contains("invalid value 'many'"), "{refused}");
    assert_eq!(status(node).state, State::Idle);

    run_device(node, "wg0").unwrap();
    node.run(&format!("kill {supervisor}")).unwrap();
    let output = finish(engine, "`wireloom engine`", PATIENCE).unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{log}");
    for words in ["a signal asked for it", "the interface is up"] {
        assert!(log.contains(words), "the device's log is in it: {words:?} in {log}");
    }
    wait_until_gone(node);
    let left = || fs::read_dir("/run/wireloom").unwrap().flatten().map(|entry| entry.file_name());
    let left = node.host.space.inside(|| left().collect::<Vec<_>>()).unwrap();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("engine")), "{left:?}");
}

#[test]
fn a_supervisor_goes_on_when_nobody_reads_its_log() {
    let lab = node();
    let node = &lab.nodes[0];
    let mut engine = start(node);
    let log = engine.stderr.as_mut().unwrap();
    let filled = fill(log);
    let died = run_device(node, "--persistent wg0").unwrap().process;
    node.run(&format!("kill -KILL {}", died.unwrap())).unwrap();
    let back = || Some(status(node)).filter(|now| now.state == State::Running && now.process != died);
    until(PATIENCE, "another device", back).unwrap();

    log.read_exact(&mut vec![0; filled]).unwrap();
    ask(node, Supervisor::stop).unwrap();
    node.run(&format!("kill {}", supervisor(node))).unwrap();
    let output = finish(engine, "`wireloom engine`", PATIENCE).unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && log.contains(LOST), "{log}");
}

/// Nobody but the supervisor has the listening sockets then, and the interface that they belong to is gone.
#[test]
fn a_device_is_started_again_although_its_interface_was_deleted_or_renamed() {
    let lab = node();
    let node = &lab.nodes[0];
    let engine = start(node);
    let mut last = run_device(node, "--persistent wg0").unwrap().process.unwrap();
    for change in ["ip link delete wg0", "ip link set wg0 name other0"] {
        // It cannot see that the interface is gone, and end for that.
        node.run(&format!("kill -STOP {last}")).unwrap();
        node.run(change).unwrap();
        node.run(&format!("kill -KILL {last}")).unwrap();
        let back =
            || Some(status(node)).filter(|now| now.state == State::Running && now.process != Some(last));
        last = until(PATIENCE, "another device", back).unwrap().process.unwrap();
        assert!(has_interface(node), "after {change}");
        assert_eq!(request(node, "get=1\n\n"), "errno=0\n\n", "after {change}");
    }
    ask(node, Supervisor::stop).unwrap();
    node.run(&format!("kill {}", supervisor(node))).unwrap();
    assert!(finish(engine, "`wireloom engine`", PATIENCE).unwrap().status.success());
}

/// As an agent does after an upgrade of the program, and as the agent of another pod does beside this one.
#[test]
fn a_second_run_hands_over_and_so_does_the_run_of_another_supervisor() {
    const OTHER: &str = "/run/other/engine.sock";
    let lab = node();
    let node = &lab.nodes[0];
    let engine = start(node);
    let mut command = Command::new(wireloom());
    command.arg("engine").env("WIRELOOM_ENGINE_SOCKET", OTHER).stderr(Stdio::piped());
    let other = node.host.space.spawn(&mut command).unwrap();
    let at = |path: &'static str, what: fn(&Supervisor) -> Result<Status, SupervisorError>| {
        node.host.space.inside(|| what(&Supervisor::at(Path::new(path)))).unwrap()
    };
    until(PATIENCE, "the other supervisor", || at(OTHER, Supervisor::status).ok()).unwrap();
    let run: fn(&Supervisor) -> _ = |engine| engine.run(&["--persistent".into(), "wg0".into()], true);

    let mut last = at(ENGINE, run).unwrap().process;
    node.host.space.write("/run/key", &node.run("wg genkey").unwrap()).unwrap();
    node.run("wg set wg0 private-key /run/key listen-port 7000").unwrap();
    node.run("ip link set wg0 up").unwrap();
    let link = || node.run("ip -o link show wg0").unwrap();
    let state = || {
        let index = link().split(':').next().unwrap().to_owned();
        node.run("wg show wg0 dump").unwrap() + &index
    };
    let (before, link_before) = (state(), link());
    // On a slow machine the next one may be too late, and an agent asks again.
    let hand_over = |path| match at(path, run) {
        Err(error) if error.to_string().contains("does not hand it over") => None,
        outcome => Some(outcome.unwrap()),
    };
    for path in [ENGINE, OTHER, OTHER, ENGINE, ENGINE] {
        let running = until(PATIENCE, "a hand-over", || hand_over(path)).unwrap();
        assert!(running.state == State::Running && running.process != last, "{running:?}");
        // If the new device died at once, the next one would need all of them.
        assert_eq!(running.descriptors, 5, "they are stored before it is ready");
        assert_eq!(state(), before, "key, port and interface go over");
        last = running.process;
        // Both supervisors and this device; the one before is not started again.
        until(PATIENCE, "the device before to end", || (processes(node).len() == 3).then_some(())).unwrap();
    }
    assert_eq!(link(), link_before, "the interface is as before");
    // Nobody has kept a descriptor that the device has not.
    assert_eq!(at(ENGINE, Supervisor::status).unwrap().descriptors, 5);
    node.run("wg set wg0 listen-port 7001").unwrap();
    until(PATIENCE, "the port to be closed", || (!port_is_open(node, 7000)).then_some(())).unwrap();
    // A device that hangs is killed by the next one, which gets what the supervisor keeps.
    let index = link().split(':').next().unwrap().to_owned();
    node.run(&format!("kill -STOP {}", last.unwrap())).unwrap();
    let running = at(ENGINE, run).unwrap();
    assert!(running.state == State::Running && running.process != last, "{running:?}");
    let stored = || (at(ENGINE, Supervisor::status).unwrap().descriptors == 5).then_some(());
    until(PATIENCE, "the descriptors to be stored", stored).unwrap();
    assert_eq!(request(node, "get=1\n\n").lines().last(), Some(""), "it answers");
    assert_eq!(link().split(':').next(), Some(index.as_str()));
    let idle = at(OTHER, Supervisor::status).unwrap();
    assert_eq!((idle.state, idle.restarts), (State::Idle, 0));
    assert_eq!(idle.last_end.as_deref(), Some("another device has the interface"));
    assert_eq!(at(ENGINE, Supervisor::stop).unwrap().restarts, 0);
    for id in processes(node) {
        node.run(&format!("kill {id}")).unwrap();
    }
    for (child, name) in [(engine, "the supervisor"), (other, "the other supervisor")] {
        assert!(finish(child, name, PATIENCE).unwrap().status.success());
    }
}

/// A device that outlived its supervisor would hold the interface and the port, with nobody to end it.
#[test]
fn a_device_ends_with_a_killed_supervisor_and_the_next_one_starts_it_again() {
    let lab = node();
    let node = &lab.nodes[0];
    let mut engine = start(node);
    run_device(node, "--persistent wg0").unwrap();
    for _ in 0..2 {
        let device = status(node).process.unwrap();
        node.run(&format!("kill -KILL {}", supervisor(node))).unwrap();
        assert!(!finish(engine, "`wireloom engine`", PATIENCE).unwrap().status.success());
        until(PATIENCE, "the device to end", || processes(node).is_empty().then_some(())).unwrap();
        // It finds the sockets that the one before has left, too.
        engine = start(node);
        let back = || Some(status(node)).filter(|now| now.state == State::Running);
        let now = until(PATIENCE, "another device", back).unwrap();
        assert_eq!(
            (now.arguments, now.process == Some(device)),
            (vec!["--persistent".into(), "wg0".into()], false)
        );
        assert_eq!(request(node, "get=1\n\n"), "errno=0\n\n");
    }
    // Whoever released it does not want it again.
    ask(node, Supervisor::release).unwrap();
    node.run(&format!("kill -KILL {}", status(node).process.unwrap())).unwrap();
    let idle = || (status(node).state == State::Idle).then_some(());
    until(PATIENCE, "the supervisor to idle", idle).unwrap();
    node.run(&format!("kill -KILL {}", supervisor(node))).unwrap();
    assert!(!finish(engine, "`wireloom engine`", PATIENCE).unwrap().status.success());
    // What was given to another process is closed.
    let mut command = Command::new("sh");
    command.args(["-c", "exec 9</etc/passwd; exec \"$0\" engine"]).arg(wireloom());
    command.env("LISTEN_PID", "1").env("LISTEN_FDS", "7").stderr(Stdio::piped());
    let engine = node.host.space.spawn(&mut command).unwrap();
    until(PATIENCE, "the supervisor", || ask(node, Supervisor::status).ok()).unwrap();
    assert_eq!(status(node).state, State::Idle);
    let open = node.run(&format!("ls -l /proc/{}/fd", supervisor(node))).unwrap();
    assert!(open.contains(" 0 -> ") && !open.contains("/etc/passwd"), "{open}");
    node.run(&format!("kill {}", supervisor(node))).unwrap();
    assert!(finish(engine, "`wireloom engine`", PATIENCE).unwrap().status.success());
}

/// As on a host, where systemd starts the next supervisor. What waits for the device's death to be over is kept: the
/// packets in the interface's queue, and the port.
#[test]
fn the_next_supervisor_gets_the_descriptors_of_the_one_before_from_the_service_manager() {
    const PORT: u16 = 7000;
    let lab = Lab::new(&Layout { nodes: 2, pods: 0, ..Layout::default() }).unwrap();
    let (node, far) = (&lab.nodes[0], &lab.nodes[1]);
    let keys = [node, far].map(|node| KeyPair::generate(wireloom(), node).unwrap());
    let peer = Device::start(wireloom(), &far.host.space, "wg0", &[]).unwrap();
    let configure = |at: usize| {
        let (here, there) = ([node, far][at], [far, node][at]);
        here.host.space.write("/run/key", &keys[at].private).unwrap();
        let endpoint = there.host.addresses.v4;
        let peer = format!("peer {} allowed-ips 10.9.0.0/24 endpoint {endpoint}:{PORT}", keys[1 - at].public);
        here.run(&format!("wg set wg0 private-key /run/key listen-port {PORT} {peer}")).unwrap();
    };
    let address = |at: usize| {
        [node, far][at].run(&format!("ip address add 10.9.0.{}/24 dev wg0", at + 1)).unwrap();
        [node, far][at].run("ip link set wg0 up").unwrap();
    };
    configure(1);
    address(1);

    let mut manager = ServiceManager::on(node);
    let mut engine = manager.start();
    until(PATIENCE, "the supervisor", || ask(node, Supervisor::status).ok()).unwrap();
    assert!(manager.names().is_empty());
    run_device(node, "--persistent wg0").unwrap();
    configure(0);
    address(0);
    // Longer than anybody waits for ping, so that it does not give up before.
    let patience = at_this_pace(2 * PATIENCE).as_secs();
    node.run(&format!("ping -n -q -c 1 -W {patience} 10.9.0.2")).unwrap();
    let all = ["control", "handover", "tun-0", "udp4-0", "udp6-0"].map(str::to_owned).into();
    let kept = |manager: &mut ServiceManager<'_>| {
        until(PATIENCE, "the descriptors to be kept", || (manager.names() == all).then_some(())).unwrap();
    };
    // The inode of the port's socket, the interface's index, and that it has a reader.
    let what_stays = || {
        let sockets = node.run("cat /proc/net/udp").unwrap();
        let socket = sockets.lines().find(|line| line.contains(&format!(":{PORT:04X} "))).map(str::to_owned);
        let inode = socket.and_then(|line| line.split_whitespace().nth(9).map(str::to_owned));
        let link = node.run("ip -o link show wg0").unwrap();
        (inode, link.split(':').next().unwrap().to_owned(), link.contains("LOWER_UP"))
    };
    kept(&mut manager);
    let before = what_stays();
    assert!(before.0.is_some() && before.2, "{before:?}");
    for round in 0..2 {
        let device = status(node).process.unwrap();
        node.run(&format!("kill -KILL {}", supervisor(node))).unwrap();
        if round == 1 {
            // systemd kills what is left of a unit, unless it has ended by itself.
            let _ = node.run(&format!("kill -KILL {device}"));
        }
        assert!(!finish(engine, "`wireloom engine`", PATIENCE).unwrap().status.success());
        until(PATIENCE, "the device to end", || processes(node).is_empty().then_some(())).unwrap();
        assert_eq!(manager.names(), all);
        assert_eq!(what_stays(), before, "while nobody runs");
        let mut ping = Command::new("ping");
        let words = format!("-n -q -c 10 -i 0.02 -W {patience} 10.9.0.2");
        ping.args(words.split(' ')).stdout(Stdio::piped());
        let ping = node.host.space.spawn(&mut ping).unwrap();
        // Of a queue that the interface does not have.
        let odd = node.host.space.inside(|| UdpSocket::bind(("0.0.0.0", PORT + 1)).unwrap()).unwrap();
        manager.keep("udp4-7", odd);
        let begun = Instant::now();
        engine = manager.start();
        let back = || ask(node, Supervisor::status).ok().filter(|now| now.state == State::Running);
        let now = until(PATIENCE, "another device", back).unwrap();
        println!("{:?} after its start, the next supervisor's device was ready", begun.elapsed());
        assert_eq!((now.restarts, now.process == Some(device)), (1, false));
        assert_eq!(what_stays(), before);
        configure(0);
        let pings = String::from_utf8(finish(ping, "ping", PATIENCE).unwrap().stdout).unwrap();
        assert!(pings.contains(" 10 received"), "{pings}");
        kept(&mut manager);
        assert_eq!(what_stays(), before);
        until(PATIENCE, "the descriptors", || (status(node).descriptors == 5).then_some(())).unwrap();
        let closed = || (!port_is_open(node, PORT + 1)).then_some(());
        until(PATIENCE, "what the device does not know to be closed", closed).unwrap();
    }

    // What nobody wants, systemd has not either.
    let nothing = |manager: &mut ServiceManager<'_>| {
        until(PATIENCE, "nothing to be kept", || manager.names().is_empty().then_some(())).unwrap();
    };
    node.run(&format!("kill -KILL {}", supervisor(node))).unwrap();
    finish(engine, "`wireloom engine`", PATIENCE).unwrap();
    until(PATIENCE, "the device to end", || processes(node).is_empty().then_some(())).unwrap();
    node.run("rm /run/wireloom/engine.json").unwrap();
    engine = manager.start();
    until(PATIENCE, "the supervisor", || ask(node, Supervisor::status).ok()).unwrap();
    assert_eq!(status(node).state, State::Idle);
    nothing(&mut manager);
    // The supervisor closes its own copies once it has told systemd.
    until(PATIENCE, "all to be closed", || (!port_is_open(node, PORT) && !what_stays().2).then_some(()))
        .unwrap();
    run_device(node, "--persistent wg0").unwrap();
    kept(&mut manager);
    ask(node, Supervisor::stop).unwrap();
    assert!(manager.names().is_empty(), "it was told before the reply");
    run_device(node, "--persistent wg0").unwrap();
    // One that is asked to end does not know whether it is restarted.
    for is_stopped in [false, true] {
        configure(0);
        kept(&mut manager);
        let before = what_stays();
        until(PATIENCE, "the port", || (manager.inode("udp4-0") == before.0).then_some(())).unwrap();
        node.run(&format!("kill {}", supervisor(node))).unwrap();
        assert!(finish(engine, "`wireloom engine`", PATIENCE).unwrap().status.success());
        assert!(manager.names() == all && what_stays() == before, "{before:?}");
        if is_stopped {
            manager.close();
            // A program that another test starts just now has copies until it runs.
            let closed = || (!port_is_open(node, PORT) && !what_stays().2).then_some(());
            until(PATIENCE, "all to be closed", closed).unwrap();
        }
        engine = manager.start();
        until(PATIENCE, "the supervisor", || ask(node, Supervisor::status).ok()).unwrap();
        let state = if is_stopped { State::Idle } else { State::Running };
        until(PATIENCE, "its device", || (status(node).state == state).then_some(())).unwrap();
        assert!(is_stopped || what_stays() == before, "{before:?}");
    }
    nothing(&mut manager);
    node.run(&format!("kill {}", supervisor(node))).unwrap();
    assert!(finish(engine, "`wireloom engine`", PATIENCE).unwrap().status.success());
    drop(peer);
}
