use std::{fs::Permissions, io::BufReader, os::unix::fs::PermissionsExt};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;

use super::*;

/// A server whose requests a thread answers as an engine would: a `get` with a line, a `set` with the
/// port that it names as its error number.
struct Fixture {
    directory: TempDir,
    server: Server,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let server = Server::open(directory.path().join("run/wg0.sock")).expect("a socket");
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

    /// Says this and no more, and returns all that is said to it.
    fn say(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // It may hang up before it has heard all.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut said = Vec::new();
        // A reset after its last word is no silence.
        let _ = stream.read_to_end(&mut said);
        String::from_utf8(said).expect("text")
    }

    fn ask(&self, stream: &mut UnixStream, request: &str) -> String {
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut said = String::new();
        let mut reader = BufReader::new(stream);
        while !said.ends_with("\n\n") {
            assert_ne!(reader.read_line(&mut said).expect("it answers"), 0, "hung up after {said:?}");
        }
        said
    }
}

fn answer(inbox: &Inbox) {
    loop {
        let mut bell = [PollFd::new(inbox.as_fd(), PollFlags::POLLIN)];
        poll(&mut bell, PollTimeout::NONE).expect("a bell");
        while let Some(call) = inbox.poll() {
            let reply = match call.request {
                Request::Set(set) => match set.listen_port {
                    None => Reply::Done,
                    Some(port) => Reply::Refused(Errno(port.into())),
                },
                Request::Get | Request::GetDrops | Request::GetLink => {
                    Reply::Lines(Zeroizing::new("fwmark=1\n".into()))
                }
            };
            call.reply.send(reply);
        }
    }
}

#[test]
fn answers_one_request_after_the_other() {
    let fixture = Fixture::new();
    let mut stream = fixture.connect();
    assert_eq!(fixture.ask(&mut stream, "get=1\n\n"), "fwmark=1\nerrno=0\n\n");
    assert_eq!(fixture.ask(&mut stream, "set=1\nfwmark=1\n\n"), "errno=0\n\n");
    assert_eq!(fixture.ask(&mut stream, "set=1\nlisten_port=98\n\n"), "errno=-98\n\n");
    assert_eq!(fixture.ask(&mut stream, "get=1\n\n"), "fwmark=1\nerrno=0\n\n");
}

#[test]
fn a_mistake_is_told_at_the_end_of_the_request_and_the_next_one_is_heard() {
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
        assert_eq!(fixture.say(garbage), answer, "{shown:?}");
    }
    assert_eq!(fixture.say(b"get=1\n\n"), "fwmark=1\nerrno=0\n\n");
}

#[test]
fn slow_and_silent_clients_keep_nobody_waiting() {
    let fixture = Fixture::new();
    let mut slow: Vec<_> = (0..MAX_CLIENTS - 1).map(|_| fixture.connect()).collect();
    for stream in &mut slow {
        stream.write_all(b"set=1\nfwma").expect("it reads");
    }
    let mut quick = fixture.connect();
    assert_eq!(fixture.ask(&mut quick, "get=1\n\n"), "fwmark=1\nerrno=0\n\n");
    assert_eq!(fixture.say(b"get=1\n\n"), "", "one too many is turned away");
    assert_eq!(fixture.ask(&mut slow[0], "rk=1\n\n"), "errno=0\n\n");
    drop(slow);
    drop(quick);
    let begun = Instant::now();
    while fixture.say(b"get=1\n\n").is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10), "places are free again once clients leave");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn directory_and_socket_are_the_owners_alone() {
    let fixture = Fixture::new();
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o7777;
    assert_eq!(mode(&fixture.path()), 0o700);
    assert_eq!(mode(fixture.path().parent().expect("a directory")), 0o700);
}

#[test]
fn a_live_socket_is_left_alone() {
    let fixture = Fixture::new();
    let second = Server::open(fixture.path());
    assert!(matches!(second, Err(OpenControlError::InUse(path)) if path == fixture.path()));
    assert_eq!(fixture.say(b"get=1\n\n"), "fwmark=1\nerrno=0\n\n");
}

#[test]
fn a_stale_socket_is_replaced_but_no_other_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("wg0.sock");
    drop(UnixListener::bind(&path).expect("a socket"));
    drop(Server::open(path.clone()).expect("the stale socket gives way"));
    fs::write(&path, "precious").expect("a file");
    assert!(matches!(Server::open(path.clone()), Err(OpenControlError::Failed { .. })));
    assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("run"), "").expect("a file in the way");
    let opened = Server::open(directory.path().join("run/wg0.sock"));
    assert!(matches!(opened, Err(OpenControlError::Failed { .. })));
}

#[test]
fn the_socket_goes_with_the_server() {
    let fixture = Fixture::new();
    let path = fixture.path();
    drop(fixture.server);
    assert!(!path.exists());
}

#[test]
fn removing_or_replacing_the_socket_is_noticed() {
    let fixture = Fixture::new();
    assert!(fixture.server.is_in_place());
    fs::set_permissions(fixture.path(), Permissions::from_mode(0o600)).expect("ours");
    assert!(fixture.server.is_in_place(), "another mode is no removal");
    fs::remove_file(fixture.path()).expect("ours");
    let mut watch = [PollFd::new(fixture.server.watch(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut watch, PollTimeout::from(10_000_u16)), Ok(1), "the watch tells");
    assert!(!fixture.server.is_in_place());
    let successor = UnixListener::bind(fixture.path()).expect("free");
    assert!(!fixture.server.is_in_place(), "it is another's now");
    drop(fixture.server);
    assert!(fs::symlink_metadata(fixture.directory.path().join("run/wg0.sock")).is_ok(), "and stays");
    drop(successor);
}

#[test]
fn a_reader_gives_up_on_who_says_little_at_a_time() {
    let mut reader = WipedReader::new(io::repeat(b'x'));
    reader.deadline = Instant::now() + Duration::from_millis(50);
    let endless = io::copy(&mut reader, &mut io::sink()).expect_err("there is no end");
    assert_eq!(endless.kind(), io::ErrorKind::TimedOut);
}
