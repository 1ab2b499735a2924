//! What an interface gives to its machine, in the judgement of `tcpdump`.

use std::{
    io::{IoSliceMut, Seek as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt, socket,
        sockopt,
    },
};
use wireloom_lab::{Space, require};

/// `PACKET_OUTGOING` of `include/uapi/linux/if_packet.h`: what the machine itself sends may lack its
/// checksum still.
const OUTGOING: u8 = 4;
/// Milliseconds after which the listener looks whether it is over.
const POLL_MS: u8 = 100;

/// What the first bytes of a frame are (<https://www.tcpdump.org/linktypes.html>).
#[derive(Clone, Copy)]
pub(crate) enum LinkType {
    /// An IP header.
    Raw = 101,
    Ethernet = 1,
}

/// Listens until it is told to stop.
pub(crate) struct Listener {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Vec<u8>>>,
}

impl Listener {
    /// Hears what comes in on an interface from now on.
    pub(crate) fn start(space: &Space, interface: &str) -> Self {
        let (socket, index) = space
            .inside(|| {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                let socket =
                    socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
                (socket, if_nametoindex(interface).unwrap())
            })
            .unwrap();
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &(256 << 20));
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let thread = thread::spawn(move || {
            let mut frames = Vec::new();
            let mut buffer = vec![0; 1 << 17];
            loop {
                // Looked at first: what has come by then is still heard.
                let last = stop.load(Ordering::Relaxed);
                loop {
                    let mut parts = [IoSliceMut::new(&mut buffer)];
                    match recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut parts, None, MsgFlags::empty()) {
                        Ok(message) => {
                            let here = |from: &LinkAddr| {
                                from.ifindex() == index as usize && from.pkttype() != OUTGOING
                            };
                            let length = message.bytes;
                            if message.address.is_some_and(|from| here(&from)) {
                                frames.push(buffer[..length].to_vec());
                            }
                        }
                        Err(Errno::EAGAIN) => break,
                        Err(error) => panic!("cannot capture: {error}"),
                    }
                }
                if last {
                    return frames;
                }
                let _ =
                    poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], PollTimeout::from(POLL_MS));
            }
        });
        Self { over, thread }
    }

    pub(crate) fn stop(self) -> Vec<Vec<u8>> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// The lines in which `tcpdump` finds fault with a frame.
pub(crate) fn faults(frames: &[Vec<u8>], link_type: LinkType) -> Vec<String> {
    require(&["tcpdump", "unshare"]).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    // <https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-06.html>, sections 4 and 5.
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let mut bytes = words(&[0xa1b2_c3d4, 2 | 4 << 16, 0, 0, 1 << 18, link_type as u32]);
    for frame in frames {
        let length = frame.len() as u32;
        bytes.extend(words(&[0, 0, length, length]));
        bytes.extend(frame);
    }
    file.write_all(&bytes).unwrap();
    file.rewind().unwrap();
    // As nobody: as root it would become another user, whom a user namespace does not have.
    let mut command = Command::new("unshare");
    command.args(["--user", "--", "tcpdump", "-n", "-vv", "-r", "-"]).stdin(Stdio::from(file));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let packets = text.lines().filter(|line| !line.starts_with(char::is_whitespace)).count();
    assert_eq!(packets, frames.len(), "tcpdump tells of each frame");
    let faulty = |line: &&str| {
        ["bad cksum", "bad udp cksum", "(incorrect", "truncated", "[|", "invalid"]
            .iter()
            .any(|sign| line.contains(sign))
    };
    text.lines().filter(faulty).map(str::to_owned).collect()
}
