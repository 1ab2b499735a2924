//! A device hands its interface over to a new process, and nobody notices; whoever dies or hangs meanwhile, somebody
//! serves, and no nonce is used twice.

use std::{
    fs,
    io::{IoSlice, IoSliceMut},
    net::IpAddr,
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    cmsg_space,
    sys::{
        signal::Signal,
        socket::{
            self, AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
            UnixAddr, recvmsg, sendmsg, socket,
        },
    },
    unistd::close,
};
use wireloom_lab::{
    Addresses, FAMILIES, Lab, Layout, Node, NonceReport, Nonces, Numbered, PATIENCE, Pinger, Place, Stream,
    at_this_pace, device::Device, finish, until,
};
use wireloom_plan::routing::Family;
use wireloom_types::exit_status::HANDED_OVER;

use crate::{
    fixtures::{
        background::while_repeating,
        device::{node, process, processes, request},
        link::{LINK, Link},
        tunnel::{Program, Tunnel, inner, ping},
    },
    wireloom,
};

/// Hand-overs, one after the other.
const ROUNDS: usize = 10;
/// Answers to pings between two of them.
const ANSWERS: usize = 3;
/// Between two pings, and between two requests to the control socket. All that is sent meanwhile is so little that it
/// fits into the device's queues (500 packets) and socket (212,992 bytes) while a busy machine leaves a device, or the
/// kernel's own thread for packets, without a processor for seconds.
const INTERVAL: Duration = Duration::from_millis(40);
/// Numbered datagrams a second, and their length in bytes.
const RATE: u32 = 50;
const DATAGRAM: usize = 64;

#[test]
fn nobody_notices_with_one_queue() {
    nobody_notices(&Tunnel::established_with(Program::Wireloom).lab, true);
}

#[test]
fn nobody_notices_with_several_queues() {
    nobody_notices(&Tunnel::established_with(Program::WireloomThreads).lab, false);
}

#[test]
fn nobody_notices_on_a_link_with_one_queue() {
    // The control thread sends a link's multicast packets, maybe before packets of the queue that were sealed earlier.
    nobody_notices(&link("--peer-lookup gateway --source-check off --threads 1").lab, false);
}

#[test]
fn nobody_notices_on_a_link_with_several_queues() {
    nobody_notices(&link("--peer-lookup gateway --source-check off --threads 4").lab, false);
}

fn link(options: &'static str) -> Link {
    let mut link = Link::without_devices(Layout { pods: 0, ..Layout::default() });
    link.start(Family::V4, |_| options);
    link.settle();
    link
}

/// What a node's end of the tunnel has inside.
fn end(node: &Node, place: usize) -> Place {
    let [IpAddr::V4(v4), IpAddr::V6(v6)] = inner(place) else { panic!("one of each family") };
    Place { name: node.name.clone(), space: node.host.space.clone(), addresses: Addresses { v4, v6 } }
}

/// What must be the same after a hand-over, and what must not become less.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    /// The interface's index and queues, its port, keys, endpoints and allowed-IPs.
    same: Vec<String>,
    /// Of each peer: the time of the last handshake, the bytes received and sent.
    grows: Vec<u64>,
}

impl Shown {
    fn of(node: &Node) -> Self {
        let link = node.run("ip -o link show wg0").unwrap();
        let dump = node.run("wg show wg0 dump").unwrap();
        let mut lines = dump.lines();
        let index = link.split(':').next().unwrap();
        let mut same = vec![index.to_owned(), lines.next().unwrap().to_owned()];
        let mut grows = Vec::new();
        for line in lines {
            let fields: Vec<_> = line.split('\t').collect();
            // PUBLIC-KEY PRESHARED-KEY ENDPOINT ALLOWED-IPS LATEST-HANDSHAKE RECEIVED SENT KEEPALIVE
            same.extend(fields[..4].iter().chain(&fields[7..]).map(|&field| field.to_owned()));
            grows.extend(fields[4..7].iter().map(|number| number.parse::<u64>().unwrap()));
        }
        Self { same, grows }
    }

    #[track_caller]
    fn assert_goes_on(&self, before: &Self) {
        assert_eq!(self.same, before.same);
        let goes_on = self.grows.iter().zip(&before.grows).all(|(after, before)| after >= before);
        assert!(goes_on, "{self:?}, before {before:?}");
    }
}

/// Hands the first node's interface over again and again, under a stream, pings, datagrams, and requests to its control
/// socket. With one queue messages leave in the order of their counters (`in_order`).
#[track_caller]
pub(crate) fn nobody_notices(lab: &Lab, in_order: bool) {
    let [near, far] = [0, 1].map(|place| &lab.nodes[place]);
    let [here, there] = [end(near, 0), end(far, 1)];
    let nonces = Nonces::watch(lab.underlay()).unwrap();
    let pingers = FAMILIES.map(|family| Pinger::start(&here, &there, family, INTERVAL).unwrap());
    let stream = Stream::start(&here, &there, Family::V6).unwrap();
    let numbered = Numbered::start(&there, &here, Family::V4, RATE, DATAGRAM).unwrap();
    let before = Shown::of(near);
    let mut pauses = Vec::new();
    let hand_overs = || {
        let mut device = Device::take_over(wireloom(), &near.host.space, "wg0", &[]).unwrap();
        for _ in 1..ROUNDS {
            let answered = pingers[0].answered();
            let more = || (pingers[0].answered() >= answered + ANSWERS).then_some(());
            until(PATIENCE, "answers to pings", more).unwrap();
            pauses.push(device.hand_over().unwrap());
        }
        device
    };
    let ask = || {
        let answer = request(near, "get=1\n\n");
        // The process that ends closes what it has not answered.
        assert!(answer.is_empty() || answer.ends_with("errno=0\n\n"), "{answer:?}");
        sleep(INTERVAL);
    };
    let (_, device) = while_repeating(ask, hand_overs);
    let pings = pingers.map(|pinger| pinger.stop().unwrap());
    let numbered = numbered.stop().unwrap();
    let stream = stream.stop().unwrap();
    Shown::of(near).assert_goes_on(&before);
    // Before the port is closed, which the kernel reports to who sends to it.
    let NonceReport { messages, twice, backwards, plaintext, .. } = nonces.report().unwrap();
    // The only one.
    process(near);
    drop(device);
    println!("packets waited {pauses:?}");
    println!("{pings:?}\n{numbered:?}\n{stream:?}");
    assert!(pings.iter().all(|report| report.lost == 0), "{pings:?}");
    assert_eq!((numbered.lost, numbered.twice), (0, 0), "{numbered:?}");
    assert!(stream.intact && stream.received == stream.sent, "{stream:?}");
    assert!(messages > 0);
    assert_eq!((twice, plaintext), (0, 0));
    assert!(!in_order || backwards == 0, "{backwards} of {messages} messages left late");
}

/// A process that has just taken a node's interface over, and would serve it in link mode if there were nobody.
fn device(node: &Node) -> Device {
    let arguments: Vec<_> = LINK.split(' ').collect();
    let device = Device::take_over(wireloom(), &node.host.space, "wg0", &arguments).unwrap();
    until(PATIENCE, "the process before to end", || (processes(node).len() == 1).then_some(())).unwrap();
    device
}

/// Waits until the first node has reached the second one again.
#[track_caller]
fn works_again(link: &Link) {
    until(PATIENCE, "an answer to a ping", || ping(link.node(0), inner(1)[0]).then_some(())).unwrap();
}

/// Connects to the hand-over socket of a node's interface.
fn connect(node: &Node) -> OwnedFd {
    let connected = node.host.space.inside(|| {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        socket::connect(socket.as_raw_fd(), &UnixAddr::new("/run/wireloom/wg0.handover")?)?;
        Ok::<_, nix::Error>(socket)
    });
    connected.unwrap().unwrap()
}

#[test]
fn processes_that_connect_and_say_nothing_or_nonsense_change_nothing() {
    let link = link(LINK);
    let near = link.node(0);
    let mut device = device(near);
    let nonces = Nonces::watch(link.lab.underlay()).unwrap();
    let pinger = Pinger::start(&end(near, 0), &end(link.node(1), 1), Family::V4, INTERVAL).unwrap();
    let before = Shown::of(near);
    drop(connect(near));
    let nonsense = connect(near);
    // It may be refused before, because the first one has not gone yet.
    let _ = socket::send(nonsense.as_raw_fd(), b"give it to me", MsgFlags::MSG_NOSIGNAL);
    drop(connect(near));
    device.hand_over().unwrap();
    Shown::of(near).assert_goes_on(&before);
    assert_eq!(pinger.stop().unwrap().lost, 0);
    assert_eq!(nonces.report().unwrap().twice, 0);
}

/// What a taker of a later release says first: that it reads version 99 of the state, and no other.
const LATER: &[u8] = b"WLHO\x01\0\0\0\x08\0\0\0\x63\0\0\0\x63\0\0\0";

/// Machines may be too slow for what a giver or taker waits for some milliseconds or seconds. So often they may try.
const TRIES: usize = 5;

/// Passes the next message on from one end of a hand-over to the other, with its descriptors. False when there is none:
/// an end has closed its connection.
fn pass_on(from: &UnixStream, to: &UnixStream, instead: Option<&[u8]>) -> bool {
    let mut bytes = [0; 4096];
    let mut space = cmsg_space!([RawFd; 253]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(from.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
    let of = |part| match part {
        ControlMessageOwned::ScmRights(descriptors) => descriptors,
        _ => Vec::new(),
    };
    let (len, descriptors): (_, Vec<RawFd>) =
        (message.bytes, message.cmsgs().unwrap().flat_map(of).collect());
    let parts = [IoSlice::new(instead.unwrap_or(&bytes[..len]))];
    let rights = (!descriptors.is_empty()).then_some(ControlMessage::ScmRights(&descriptors));
    let flags = MsgFlags::MSG_NOSIGNAL;
    let passed =
        len > 0 && sendmsg::<UnixAddr>(to.as_raw_fd(), &parts, rights.as_slice(), flags, None).is_ok();
    descriptors.into_iter().for_each(|descriptor| close(descriptor).unwrap());
    passed
}

/// Between two releases that have no version of the state in common, the interface and the port go over.
#[test]
fn without_a_common_version_sessions_are_made_anew_on_the_same_interface() {
    // The giver waits 50 ms for an answer that goes by way of this process.
    assert!((0..TRIES).any(|_| one_hands_over_to_a_later_release()), "each time a message came too late");
}

/// False when a message came too late.
fn one_hands_over_to_a_later_release() -> bool {
    const SOCKET: &str = "/run/wireloom/wg0.handover";
    const ASIDE: &str = "/run/wireloom/wg0.aside";
    let link = link(LINK);
    let near = link.node(0);
    let mut device = device(near);
    let nonces = Nonces::watch(link.lab.underlay()).unwrap();
    let index = || near.run("ip -o link show wg0").unwrap().split(':').next().unwrap().to_owned();
    let before = index();
    // The taker connects to us, and we to the giver.
    let listener = near.host.space.inside(|| {
        fs::rename(SOCKET, ASIDE).unwrap();
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        socket::bind(listener.as_raw_fd(), &UnixAddr::new(SOCKET)?)?;
        socket::listen(&listener, Backlog::new(1)?)?;
        Ok::<_, nix::Error>(UnixListener::from(listener))
    });
    let listener = listener.unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    let next = device.begin_hand_over().unwrap();
    let (taker, _) = until(PATIENCE, "the taker to connect", || listener.accept().ok()).unwrap();
    near.host.space.inside(|| fs::rename(ASIDE, SOCKET).unwrap()).unwrap();
    let giver = UnixStream::from(connect(near));
    for end in [&taker, &giver] {
        end.set_nonblocking(false).unwrap();
        end.set_read_timeout(Some(at_this_pace(PATIENCE))).unwrap();
    }
    // Hello, Descriptors, Copy; Prepared; Changes; Ready; Commit.
    let passed = pass_on(&taker, &giver, Some(LATER))
        && [false, false, false, true, false, true, false].into_iter().all(|to_giver| {
            let (from, to) = if to_giver { (&taker, &giver) } else { (&giver, &taker) };
            pass_on(from, to, None)
        });
    if !passed {
        return false;
    }
    let anew = || next.said().contains("sessions are made anew").then_some(());
    until(PATIENCE, "the taker to serve", anew).unwrap();
    assert_eq!(next.pause(), None, "packets still wait");
    link.configure(0);
    device.become_taker(next).unwrap();
    works_again(&link);
    assert_eq!(index(), before);
    let NonceReport { twice, plaintext, .. } = nonces.report().unwrap();
    assert_eq!((twice, plaintext), (0, 0));
    true
}

/// Nobody would have the interface otherwise.
#[test]
fn a_process_that_is_told_to_end_leaves_the_interface_where_it_is() {
    // It kills a process that does not answer for 8 s.
    assert!((0..TRIES).any(|_| one_is_told_to_end()), "each time the signal came too late");
}

/// False when the signal may have come too late.
fn one_is_told_to_end() -> bool {
    const TERMINATE: u64 = 1 << (Signal::SIGTERM as u64 - 1);
    const SOON: Duration = Duration::from_secs(6);
    let link = link(LINK);
    let near = link.node(0);
    let device = device(near);
    let serves = process(near);
    device.signal(Signal::SIGSTOP).unwrap();
    let begun = Instant::now();
    let mut next = device.begin_hand_over().unwrap();
    // Before, the signal ends every process.
    let is_blocked = |id: &u32| {
        let status = near.run(&format!("cat /proc/{id}/status")).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
        u64::from_str_radix(blocked, 16).unwrap() & TERMINATE != 0
    };
    let waits = || processes(near).into_iter().find(|id| *id != serves).filter(is_blocked).map(drop);
    until(PATIENCE, "the next one to block the signal", waits).unwrap();
    next.signal(Signal::SIGTERM).unwrap();
    until(PATIENCE, "the next one to end", || next.has_ended().then_some(())).unwrap();
    if begun.elapsed() > SOON {
        return false;
    }
    assert!(next.said().contains("told to end"), "{}", next.said());
    device.signal(Signal::SIGCONT).unwrap();
    assert_eq!(process(near), serves);
    works_again(&link);
    true
}

#[test]
fn a_process_that_has_taken_over_serves_although_who_started_it_is_gone() {
    let link = link(LINK);
    let near = link.node(0);
    let mut device = device(near);
    let before = Shown::of(near);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(wireloom());
    command.args(["device", "--foreground", "--detach-when-ready", "--take-over"]).args(LINK.split(' '));
    let taker = near.host.space.spawn(command.arg("wg0").stdin(Stdio::null()).stdout(writer)).unwrap();
    until(PATIENCE, "the process before to end", || device.has_ended().then_some(())).unwrap();
    works_again(&link);
    Shown::of(near).assert_goes_on(&before);
    near.run(&format!("kill {}", process(near))).unwrap();
    assert!(finish(taker, "the process that has taken over", PATIENCE).unwrap().status.success());
    // A process that has just opened it would hold a lock that nobody sees.
    near.run("ls /run/wireloom/wg0.holders").unwrap();
}

#[test]
fn after_a_process_that_hangs_or_dies_the_next_one_serves_the_same_interface() {
    let link = link(LINK);
    let near = link.node(0);
    let mut device = device(near);
    let nonces = Nonces::watch(link.lab.underlay()).unwrap();
    let index = || near.run("ip -o link show wg0").unwrap().split(':').next().unwrap().to_owned();
    let before = index();

    device.signal(Signal::SIGSTOP).unwrap();
    let mut next = device.begin_hand_over().unwrap();
    until(PATIENCE, "the process that hangs to be killed", || device.has_ended().then_some(())).unwrap();
    until(PATIENCE, "the next one to answer", || near.run("wg show wg0").ok()).unwrap();
    link.configure(0);
    works_again(&link);

    next.hand_over().unwrap();
    works_again(&link);
    drop(next);
    let arguments: Vec<_> = LINK.split(' ').collect();
    let _afresh = Device::start(wireloom(), &near.host.space, "wg0", &arguments).unwrap();
    link.configure(0);
    works_again(&link);
    assert_eq!(index(), before);
    let NonceReport { twice, plaintext, .. } = nonces.report().unwrap();
    assert_eq!((twice, plaintext), (0, 0));
}

/// Its supervisor starts it again while another process takes over, or has done so. That one may be in a PID namespace
/// that it does not see.
#[test]
fn a_device_that_got_descriptors_leaves_the_interface_to_the_process_that_has_it() {
    let lab = node();
    let node = &lab.nodes[0];
    let _device = Device::start(wireloom(), &node.host.space, "wg0", &["--persistent"]).unwrap();
    let serves = process(node);
    let script = "exec 3</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=control
                  exec \"$0\" device --foreground wg0";
    for program in [&["sh"][..], &["unshare", "--pid", "--fork", "sh"]] {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).args(["-c", script]).arg(wireloom());
        let output = node.host.space.output(&mut command).unwrap();
        assert_eq!(output.status.code(), Some(i32::from(HANDED_OVER)), "{program:?}: {output:?}");
    }
    assert_eq!((process(node), request(node, "get=1\n\n")), (serves, "errno=0\n\n".into()));
}
