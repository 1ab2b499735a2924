//! Messages, descriptors and processes, with the real kernel.

use std::{
    env,
    fs::File,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::{net::socketpair, process::Signal};
use tempfile::TempDir;

use super::*;
use crate::handover::{
    envelope::{Reason, Versions},
    holders::tests::holder,
    memory::{SecretFile, read_and_wipe},
};

const LIMIT: Duration = Duration::from_secs(10);

/// Two ends of a connection, of this process.
fn pair() -> (Connection, Connection) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (one, other) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a pair of sockets");
    (Connection::checked(one).expect("our own"), Connection::checked(other).expect("our own"))
}

/// The holders of no interface.
fn holders(directory: &TempDir) -> Holders {
    Holders::open(&directory.path().join("wg0.holders")).expect("it opens")
}

fn receive(connection: &Connection) -> (Message, Vec<OwnedFd>) {
    match connection.receive_until(Instant::now() + LIMIT).expect("a working socket") {
        Arrival::Message(message, descriptors) => (message, descriptors),
        other => panic!("no message: {other:?}"),
    }
}

#[test]
fn descriptors_go_over_in_portions_and_keep_their_roles() {
    let (giver, taker) = pair();
    let directory = tempfile::tempdir().expect("a directory");
    let files: Vec<_> = (0..600_u16)
        .map(|number| {
            let file = File::create_new(directory.path().join(number.to_string())).expect("a file");
            file.set_len(number.into()).expect("a length");
            file
        })
        .collect();
    let role = |number: u16| match number {
        0..200 => Role::TunQueue(number),
        _ => Role::Udp { queue: number, v6: number.is_multiple_of(2) },
    };
    let sent: Vec<_> = files.iter().zip(0..).map(|(file, number)| (role(number), file.as_fd())).collect();
    giver.send_descriptors(&sent).expect("they are sent");

    let mut number = 0;
    for expected in [253, 253, 94] {
        let (Message::Descriptors(roles), descriptors) = receive(&taker) else { panic!("no descriptors") };
        assert_eq!(descriptors.len(), expected);
        for (received, descriptor) in roles.into_iter().zip(descriptors) {
            let flags = rustix::io::fcntl_getfd(&descriptor).expect("flags");
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "a program that is started gets it");
            assert_eq!(received, role(number));
            let len = File::from(descriptor).metadata().expect("a file").len();
            assert_eq!(len, u64::from(number));
            number += 1;
        }
    }
    assert_eq!(number, 600);
    assert!(matches!(taker.receive().expect("a working socket"), Arrival::Nothing));
}

#[test]
fn the_state_goes_over_in_memory() {
    let (giver, taker) = pair();
    let secret = SecretFile::new(b"keys").expect("memory");
    giver.send(&Message::Copy { len: secret.len() }, &[secret.as_fd()]).expect("it is sent");
    let (Message::Copy { len }, mut descriptors) = receive(&taker) else { panic!("no copy") };
    let state = read_and_wipe(descriptors.pop().expect("the memory"), len).expect("it arrives");
    assert_eq!(*state, b"keys");
}

#[test]
fn a_message_with_the_wrong_number_of_descriptors_is_an_error() {
    let (giver, taker) = pair();
    let file = File::open("/dev/null").expect("it is there");
    let cases: [(Message, &[BorrowedFd<'_>]); 3] = [
        (Message::Copy { len: 1 }, &[]),
        (Message::Copy { len: 0 }, &[file.as_fd()]),
        (Message::Descriptors(vec![Role::Control]), &[file.as_fd(), file.as_fd()]),
    ];
    for (message, descriptors) in cases {
        giver.send(&message, descriptors).expect("it is sent");
        let error = taker.receive().expect_err("it is wrong");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{message:?}");
    }
}

#[test]
fn descriptors_that_belong_to_no_message_are_closed() {
    let (giver, taker) = pair();
    let (reader, writer) = io::pipe().expect("a pipe");
    giver.send(&Message::Ready, &[writer.as_fd()]).expect("it is sent");
    drop(writer);
    let (message, descriptors) = receive(&taker);
    assert_eq!((message, descriptors.len()), (Message::Ready, 0));
    // It would wait if the other end were open.
    assert_eq!(io::read_to_string(reader).expect("a working pipe"), "");
}

/// The kernel reports that we were not heard before it gives us what was sent.
#[test]
fn a_commit_is_received_although_the_giver_ended_without_reading() {
    let (giver, taker) = pair();
    taker.send(&Message::Ready, &[]).expect("it is sent");
    giver.send(&Message::Commit, &[]).expect("it is sent");
    drop(giver);
    assert_eq!(receive(&taker).0, Message::Commit);
    // A program that another test starts just now has copies until it runs.
    let arrival = taker.receive_until(Instant::now() + LIMIT).expect("a working socket");
    assert!(matches!(arrival, Arrival::Gone));
    taker.send(&Message::Ready, &[]).expect_err("nobody is there");
}

#[test]
fn what_is_sent_to_nobody_is_an_error() {
    let (giver, taker) = pair();
    drop(taker);
    // As above.
    let deadline = Instant::now() + LIMIT;
    let error = loop {
        match giver.send(&Message::Commit, &[]) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => break error,
            _ => thread::sleep(Duration::from_millis(1)),
        }
        assert!(Instant::now() < deadline, "nobody is there");
    };
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_wait_ends_at_its_deadline() {
    let (_giver, taker) = pair();
    let begun = Instant::now();
    let arrival = taker.receive_until(begun + Duration::from_millis(20)).expect("a working socket");
    assert!(matches!(arrival, Arrival::Nothing));
    assert!(begun.elapsed() >= Duration::from_millis(20));
}

#[test]
fn a_taker_connects_and_both_talk() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("inner/wg0.handover");
    assert!(Connection::connect(&path).expect("no error").is_none(), "nobody listens");
    let listener = Listener::open(path.clone()).expect("it opens").expect("it is free");
    let file = fs::symlink_metadata(&path).expect("it is there");
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    assert!(listener.accept().expect("no error").is_none());

    let taker = Connection::connect(&path).expect("no error").expect("it is served");
    let giver = listener.accept().expect("no error").expect("a taker");
    let hello = Message::TakerHello(Versions { oldest: 1, newest: 1 });
    taker.send(&hello, &[]).expect("it is sent");
    assert_eq!(receive(&giver).0, hello);
    let refused = Message::Refused(Reason::new("busy"));
    giver.send(&refused, &[]).expect("it is sent");
    assert_eq!(receive(&taker).0, refused);
    assert!(taker.peer(&holders(&directory)).is_err(), "it would end itself");

    listener.remove();
    assert!(!path.exists());
}

#[test]
fn only_one_process_serves_a_socket_and_a_stale_one_is_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("wg0.handover");
    let first = Listener::open(path.clone()).expect("it opens").expect("it is free");
    assert!(Listener::open(path.clone()).expect("no error").is_none(), "it is taken");
    // Killed.
    drop(first);
    let second = Listener::open(path.clone()).expect("it opens").expect("it is free");
    // Another one's by now.
    fs::remove_file(&path).expect("it is there");
    fs::write(&path, "").expect("a file");
    second.remove();
    assert!(path.exists());
    assert!(Listener::open(path).is_err(), "it is not a socket");
}

#[test]
fn the_next_process_goes_on_with_the_listening_socket() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("wg0.handover");
    let old = Listener::open(path.clone()).expect("it opens").expect("it is free");
    let waiting = Connection::connect(&path).expect("no error").expect("it is served");
    let duplicate = old.as_fd().try_clone_to_owned().expect("a duplicate");
    drop(old);
    let new = Listener::from_fd(duplicate, path.clone()).expect("it is such a socket");
    let accepted = new.accept().expect("no error").expect("the taker that waited");
    waiting.send(&Message::Ready, &[]).expect("it is sent");
    assert_eq!(receive(&accepted).0, Message::Ready);
    new.remove();
    assert!(!path.exists());

    let stream =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("a socket");
    let error = Listener::from_fd(stream, path).err().expect("it is of another kind");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_process_that_hangs_is_killed_and_seen_dead() {
    let mut child = Command::new("sleep").arg("60").stdout(Stdio::piped()).spawn().expect("sleep");
    let pid = Pid::from_child(&child);
    let peer = Peer::open(pid).expect("no error").expect("it lives");
    assert!(!peer.has_ended().expect("no error"));
    // Stopped processes end, too.
    rustix::process::kill_process(pid, Signal::STOP).expect("it is ours");
    peer.kill_and_wait(LIMIT).expect("it ends");
    assert!(peer.has_ended().expect("no error"));
    // Its end of the pipe is closed already: nothing of it is left.
    let mut pipe = child.stdout.take().expect("a pipe");
    nix::fcntl::fcntl(pipe.as_fd(), nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
        .expect("a flag");
    assert_eq!(io::Read::read(&mut pipe, &mut [0; 1]).expect("the end"), 0);
    child.wait().expect("it was ours");
    peer.kill_and_wait(LIMIT).expect("it has ended already");
    assert!(Peer::open(pid).expect("no error").is_none());
}

/// As a supervisor may have the socket listen for hours after the device's death.
#[test]
fn a_number_that_is_another_process_s_by_now_names_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let holders = holders(&directory);
    let mut stranger = Command::new("sleep").arg("60").spawn().expect("sleep");
    let mut device = holder(&directory.path().join("wg0.holders"));
    let named = |child: &Child| holders.by_number(Pid::from_child(child)).expect("no error");
    assert!(named(&stranger).is_none());
    assert!(named(&device).is_some());
    for child in [&mut stranger, &mut device] {
        child.kill().expect("it lives");
        child.wait().expect("it was ours");
        assert!(named(child).is_none());
    }
}

/// Makes the test below another process, which takes over the listening socket that is its standard input.
const LISTENS: &str = "WIRELOOM_TEST_LISTENS";

#[test]
fn another_process() {
    let Some(path) = env::var_os(LISTENS) else { return };
    let socket = io::stdin().as_fd().try_clone_to_owned().expect("a duplicate");
    let listener = Listener::from_fd(socket, path.into()).expect("it is such a socket");
    println!("listens");
    // Hangs until it is killed, or the test has ended.
    while listener.accept().expect("no error").is_none() {
        wait_readable(listener.as_fd(), Instant::now() + LIMIT).expect("no error");
    }
    thread::sleep(LIMIT);
}

/// Who connects must not kill a process that has given the socket away, or has its number by now.
#[test]
fn who_takes_the_socket_over_is_named_from_then_on_and_can_be_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("wg0.handover");
    let old = Listener::open(path.clone()).expect("it opens").expect("it is free");
    let early = Connection::connect(&path).expect("no error").expect("it is served");
    let holders = holders(&directory);
    assert!(early.peer(&holders).is_err(), "it is this process");
    let mut child = Command::new(env::current_exe().expect("this program"))
        .args(["--exact", "handover::socket::tests::another_process", "--nocapture"])
        .env(LISTENS, &path)
        .stdin(old.as_fd().try_clone_to_owned().expect("a duplicate"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(old);
    let output = BufReader::new(child.stdout.take().expect("a pipe"));
    assert!(output.lines().any(|line| line.expect("a line").contains("listens")));

    let late = Connection::connect(&path).expect("no error").expect("it is served");
    let peer = late.peer(&holders).expect("no error").expect("it lives");
    assert!(!peer.has_ended().expect("no error"));
    peer.kill_and_wait(LIMIT).expect("it ends");
    assert!(!child.wait().expect("it was ours").success());
    for connection in [early, late] {
        assert!(matches!(connection.receive_until(Instant::now() + LIMIT).expect("no error"), Arrival::Gone));
    }
    assert!(Connection::connect(&path).expect("no error").is_none(), "nobody listens");
}
