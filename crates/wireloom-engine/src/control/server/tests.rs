//! Clients of the control socket, and what becomes of its file.

use std::{
    fs::Permissions,
    io::BufReader,
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockAddr, Socket};
use tempfile::TempDir;

use super::*;
use crate::{
    control::{Errno, clients::MAX_CLIENTS},
    socket_file::ENDING,
};

/// A server, and a thread that answers its requests in place of an engine: a `get` with a line, a `set` with the listen
/// port as the error number.
struct Fixture {
    directory: TempDir,
    server: Server,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut server = Server::open(directory.path().join("run/wg0.sock")).expect("a socket");
        let inbox = server.start().expect("a server");
        thread::spawn(move || answer(&inbox));
        Self { directory, server }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("run/wg0.sock")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        stream
    }

    /// Sends these bytes on a new connection, and returns everything that is answered.
    fn send(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // The server may disconnect before it has read everything.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        // A reset may follow the last answer.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).expect("text")
    }

    fn ask(&self, stream: &mut UnixStream, request: &str) -> String {
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        let mut reader = BufReader::new(stream);
        while !answer.ends_with("\n\n") {
            assert_ne!(
                reader.read_line(&mut answer).expect("it answers"),
                0,
                "disconnected after {answer:?}"
            );
        }
        answer
    }
}

fn answer(inbox: &Inbox) {
    loop {
        let mut request = [PollFd::new(inbox.as_fd(), PollFlags::POLLIN)];
        poll(&mut request, PollTimeout::NONE).expect("a request");
        while let Some(call) = inbox.poll() {
            let reply = match call.request {
                Request::Set(set) => match set.listen_port {
                    None => Reply::Done,
                    Some(port) => Reply::Refused(Errno(port.into())),
                },
                Request::Get
                | Request::GetDrops
                | Request::GetHandover
                | Request::GetLink
                | Request::GetPaths => Reply::Lines(Zeroizing::new("fwmark=1\n".into())),
            };
            call.reply.send(reply);
        }
    }
}

#[test]
fn a_client_can_make_several_requests() {
    let fixture = Fixture::new();
    let mut stream = fixture.connect();
    assert_eq!(fixture.ask(&mut stream, "get=1\n\n"), "fwmark=1\nerrno=0\n\n");
    assert_eq!(fixture.ask(&mut stream, "set=1\nfwmark=1\n\n"), "errno=0\n\n");
    assert_eq!(fixture.ask(&mut stream, "set=1\nlisten_port=98\n\n"), "errno=-98\n\n");
    assert_eq!(fixture.ask(&mut stream, "get=1\n\n"), "fwmark=1\nerrno=0\n\n");
}

#[test]
fn a_refused_request_is_answered_at_its_end_and_the_next_one_is_served() {
    let fixture = Fixture::new();
    let mut stream = fixture.connect();
    let mistaken = format!("set=1\nlisten_port=none\n{}\n", "fwmark=1\n".repeat(10_000));
    assert_eq!(fixture.ask(&mut stream, &mistaken), "errno=-22\n\n");
    assert_eq!(fixture.ask(&mut stream, "get=1\nfwmark=1\n\n"), "errno=22\n\n");
    assert_eq!(fixture.ask(&mut stream, "set=1\n\n"), "errno=0\n\n");
}

#[test]
fn garbage_is_refused() {
    let fixture = Fixture::new();
    let huge_line = [b"set=1\nprivate_key=".as_slice(), &vec![b'f'; 1 << 20], b"\n\n"].concat();
    for (garbage, answer) in [
        (b"\n".as_slice(), "errno=-22\n\n"),
        (b"GET / HTTP/1.1\r\n\r\n", "errno=-22\n\n"),
        (&[0xff; 100_000], "errno=-22\n\n"),
        (&[b'\n'; 1000], "errno=-22\n\n"),
        (b"set=1\nprivate_key", "errno=-22\n\n"),
        (b"set=1\nfwmark=1", "errno=-22\n\n"),
        (b"set=1\nfwmark=1\n", "errno=-22\n\n"),
        (b"get=1", "errno=22\n\n"),
        (b"set=1\n\xff=1\n\n", "errno=-22\n\n"),
        (&huge_line, "errno=-22\n\n"),
        (b"", ""),
    ] {
        let shown = String::from_utf8_lossy(&garbage[..garbage.len().min(40)]);
        assert_eq!(fixture.send(garbage), answer, "{shown:?}");
    }
    assert_eq!(fixture.send(b"get=1\n\n"), "fwmark=1\nerrno=0\n\n");
}

#[test]
fn silent_and_trickling_clients_give_way_to_newcomers() {
    let fixture = Fixture::new();
    // It has had an answer, so that it has waited for less long than those before it.
    let mut silent: Vec<_> = (0..MAX_CLIENTS - 1).map(|_| fixture.connect()).collect();
    let mut served = fixture.connect();
    assert_eq!(fixture.ask(&mut served, "get=1\n\n"), "fwmark=1\nerrno=0\n\n");
    let trickling = Arc::new(AtomicBool::new(true));
    let tricklers: Vec<_> = silent
        .iter()
        .map(|stream| (stream.try_clone().expect("a descriptor"), Arc::clone(&trickling)))
        .map(|(mut stream, trickling)| {
            thread::spawn(move || {
                while trickling.load(Ordering::Relaxed) && stream.write_all(b"set=1\n").is_ok() {
                    thread::sleep(Duration::from_millis(1));
                }
            })
        })
        .collect();
    // More newcomers than there are places, one after the other and at once.
    for _ in 0..2 * MAX_CLIENTS {
        assert_eq!(fixture.send(b"get=1\n\n"), "fwmark=1\nerrno=0\n\n");
    }
    thread::scope(|scope| {
        for _ in 0..MAX_CLIENTS / 2 {
            scope.spawn(|| {
                let mut newcomer = fixture.connect();
                assert_eq!(fixture.ask(&mut newcomer, "get=1\n\n"), "fwmark=1\nerrno=0\n\n");
            });
        }
    });
    trickling.store(false, Ordering::Relaxed);
    tricklers.into_iter().for_each(|trickler| trickler.join().expect("it ends"));
    assert_eq!(silent[0].read(&mut [0]).unwrap_or(0), 0, "the one that waited longest was disconnected");
    assert_eq!(fixture.ask(&mut served, "get=1\n\n"), "fwmark=1\nerrno=0\n\n", "it had not waited for long");
}

#[test]
fn a_request_that_is_too_long_is_refused_and_the_next_one_is_served() {
    let fixture = Fixture::new();
    let mut stream = fixture.connect();
    let line = format!("public_key={}\n", "ab".repeat(32));
    let most = usize::try_from(MAX_REQUEST).expect("it fits") / line.len();
    for (lines, answer) in [(most + 1, "errno=-7\n\n"), (most - 1, "errno=0\n\n")] {
        let request = format!("set=1\n{}\n", line.repeat(lines));
        assert_eq!(fixture.ask(&mut stream, &request), answer);
    }
}

#[test]
fn a_request_and_a_reply_have_a_deadline_however_they_are_cut() {
    let patience = Duration::from_millis(50);
    let pair = || UnixStream::pair().expect("two sockets");
    let (near, mut far) = pair();
    let trickler = thread::spawn(move || {
        while far.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
    });
    let mut timed = Timed::new(&near);
    timed.begin(patience);
    let endless = io::copy(&mut WipedReader::new(timed), &mut io::sink()).expect_err("there is no end");
    assert_eq!(endless.kind(), io::ErrorKind::TimedOut);
    drop(near);
    trickler.join().expect("it ends");

    // A client that sends nothing, one that reads nothing, and one that reads a little at a time.
    let (near, far) = pair();
    let mut timed = Timed::new(&near);
    timed.begin(patience);
    assert_eq!(timed.read(&mut [0]).expect_err("nothing comes").kind(), io::ErrorKind::TimedOut);
    for reads in [false, true] {
        let done = Arc::new(AtomicBool::new(!reads));
        let (mut far, told) = (far.try_clone().expect("a descriptor"), Arc::clone(&done));
        let reader = thread::spawn(move || {
            while !told.load(Ordering::Relaxed) && far.read(&mut [0; 16]).is_ok() {
                thread::sleep(Duration::from_millis(1));
            }
        });
        timed.begin(patience);
        let stuck = timed.write_all(&vec![0; 64 << 20]).expect_err("it does not fit");
        assert_eq!(stuck.kind(), io::ErrorKind::TimedOut);
        done.store(true, Ordering::Relaxed);
        reader.join().expect("it ends");
    }
}

#[test]
fn only_the_owner_has_access_to_directory_and_socket() {
    let fixture = Fixture::new();
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o7777;
    assert_eq!(mode(&fixture.path()), 0o700);
    assert_eq!(mode(fixture.path().parent().expect("a directory")), 0o700);
}

#[test]
fn a_directory_that_others_can_write_to_is_refused_and_stays_as_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let run = directory.path().join("run");
    fs::create_dir(&run).expect("a directory");
    let path = run.join("wg0.sock");
    for (mode, is_refused) in
        [(0o777, true), (0o1777, true), (0o770, true), (0o702, true), (0o755, false), (0o700, false)]
    {
        fs::set_permissions(&run, Permissions::from_mode(mode)).expect("ours");
        match Server::open(path.clone()) {
            Ok(_) => assert!(!is_refused, "{mode:o}"),
            Err(error) => {
                let advice = format!("run `chmod go-w {}`", run.display());
                assert!(is_refused && error.to_string().contains(&advice), "{mode:o}: {error}");
            }
        }
        assert_eq!(fs::read_dir(&run).expect("there").count(), 0, "no socket is left behind");
        let now = fs::metadata(&run).expect("there").permissions().mode() & 0o7777;
        assert_eq!(now, mode);
    }
}

#[test]
fn a_socket_that_another_process_serves_is_left_alone() {
    let fixture = Fixture::new();
    let second = Server::open(fixture.path());
    assert!(matches!(second, Err(OpenControlError::InUse(path)) if path == fixture.path()));
    assert_eq!(fixture.send(b"get=1\n\n"), "fwmark=1\nerrno=0\n\n");
}

#[test]
fn a_process_that_hangs_is_not_waited_for_for_long() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("wg0.sock");
    let address = SockAddr::unix(&path).expect("a path");
    let hanging = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
    hanging.bind(&address).expect("a free path");
    hanging.listen(0).expect("it is bound");
    // Its queue is full.
    let _first = UnixStream::connect(&path).expect("there is room for one");
    assert!(matches!(Server::open(path), Err(OpenControlError::InUse(_))));
}

#[test]
fn a_socket_whose_process_is_about_to_end_is_waited_for() {
    let Fixture { directory, server } = Fixture::new();
    let path = directory.path().join("run/wg0.sock");
    let ending = thread::spawn(move || {
        thread::sleep(ENDING / 10);
        drop(server);
    });
    drop(Server::open(path).expect("it ends"));
    ending.join().expect("it has ended");
}

#[test]
fn a_stale_socket_is_replaced_but_not_a_file_of_another_kind() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("wg0.sock");
    drop(UnixListener::bind(&path).expect("a socket"));
    drop(Server::open(path.clone()).expect("the stale socket gives way"));
    fs::write(&path, "precious").expect("a file");
    assert!(matches!(Server::open(path.clone()), Err(OpenControlError::Failed { .. })));
    assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
}

#[test]
fn a_directory_that_cannot_be_created_is_an_error() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("run"), "").expect("a file in the way");
    let opened = Server::open(directory.path().join("run/wg0.sock"));
    assert!(matches!(opened, Err(OpenControlError::Failed { .. })));
}

#[test]
fn the_socket_is_removed_with_the_server() {
    let fixture = Fixture::new();
    let path = fixture.path();
    drop(fixture.server);
    assert!(!path.exists());
}

#[test]
fn removal_and_replacement_of_the_socket_are_noticed() {
    let fixture = Fixture::new();
    assert!(fixture.server.is_in_place());
    fs::set_permissions(fixture.path(), Permissions::from_mode(0o600)).expect("ours");
    assert!(fixture.server.is_in_place(), "a change of its mode is not a removal");
    fs::remove_file(fixture.path()).expect("ours");
    let mut watch = [PollFd::new(fixture.server.watch(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut watch, PollTimeout::from(10_000_u16)), Ok(1), "the watch is readable");
    assert!(!fixture.server.is_in_place());
    let successor = UnixListener::bind(fixture.path()).expect("free");
    assert!(!fixture.server.is_in_place(), "the file is another one");
    drop(fixture.server);
    assert!(
        fs::symlink_metadata(fixture.directory.path().join("run/wg0.sock")).is_ok(),
        "the other file is left alone"
    );
    drop(successor);
}

#[test]
fn a_socket_that_was_not_taken_over_in_the_end_stays_its_servers() {
    let fixture = Fixture::new();
    for _ in 0..2 {
        let duplicate = fixture.server.as_fd().try_clone_to_owned().expect("a descriptor");
        drop(Server::take_over(&fixture.path(), duplicate).expect("it is a listening socket"));
        assert!(fixture.server.is_in_place());
        assert_eq!(fixture.send(b"set=1\nlisten_port=7\n\n"), "errno=-7\n\n");
    }
}

#[test]
fn while_nobody_accepts_clients_wait_for_whoever_does_next() {
    let mut fixture = Fixture::new();
    fixture.server.pause();
    let mut waits = fixture.connect();
    waits.write_all(b"set=1\nlisten_port=7\n\n").expect("it is queued");
    let duplicate = fixture.server.as_fd().try_clone_to_owned().expect("a descriptor");
    let mut next = Server::take_over(&fixture.path(), duplicate).expect("it is a listening socket");
    let inbox = next.start().expect("a server");
    thread::spawn(move || answer(&inbox));
    let mut reply = [0; 10];
    waits.read_exact(&mut reply).expect("the next one answers");
    assert_eq!(reply, *b"errno=-7\n\n");
    fixture.server.leave();
    drop(fixture.server);
    assert!(next.is_in_place(), "what another process has taken over is not removed");
}
