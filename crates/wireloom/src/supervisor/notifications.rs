//! What devices say in the protocol of systemd (sd_notify(3)), and the descriptors that they store (file descriptor
//! store in systemd.service(5)).

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixDatagram,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt::PassCred},
    unistd::Pid,
};
use wireloom_kernel::state::remove_if_there;

use super::descriptor::{Descriptor, receive};

/// The longest message (bytes): `NOTIFY_BUFFER_MAX` of systemd.
const LONGEST: usize = 4096;

/// The longest name of a descriptor, as with systemd (sd_pid_notify_with_fds(3)).
const LONGEST_NAME: usize = 255;

/// The socket that devices send to.
pub(super) struct Notifications {
    path: PathBuf,
    socket: UnixDatagram,
}

/// What a device says.
#[derive(Debug)]
pub(super) enum Message {
    /// It is ready.
    Ready,
    /// It stores a descriptor under this name.
    Store(String, Descriptor),
    /// It asks to drop what it stored under this name.
    Remove(String),
}

impl Notifications {
    /// Opens it. The process's umask is to forbid all others its use. Nobody else has the path: it stands beside the
    /// socket of the supervisor, which exists once.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        remove_if_there(path)?;
        let socket = UnixDatagram::bind(path)?;
        setsockopt(&socket, PassCred, &true)?;
        Ok(Self { path: path.into(), socket })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The next datagram: the process that sent it, and what it says. `None` when there is none.
    pub(super) fn receive(&self) -> io::Result<Option<(Pid, Vec<Message>)>> {
        let mut text = [0; LONGEST];
        loop {
            match receive(&self.socket, &mut text) {
                Ok(received) => {
                    // The kernel vouches for the number; 0 is a process that we cannot see.
                    let Some(sender) = received.sender.filter(|sender| *sender > 0) else { continue };
                    let messages = messages(&text[..received.length], received.descriptors);
                    return Ok(Some((Pid::from_raw(sender), messages)));
                }
                Err(Errno::EAGAIN) => return Ok(None),
                // More descriptors than a process may have; they are lost, and the datagram is gone.
                Err(Errno::ENOBUFS) => {
                    tracing::warn!("descriptors are lost: there are too many; see RLIMIT_NOFILE");
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Notifications {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Notifications {
    fn drop(&mut self) {
        let _ = remove_if_there(&self.path);
    }
}

/// What a datagram says: assignments, one a line. Those that we do not know are skipped, as sd_notify(3) demands.
fn messages(text: &[u8], descriptors: Vec<Descriptor>) -> Vec<Message> {
    let text = String::from_utf8_lossy(text);
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let is_set = |name| value(name) == Some("1");
    // A name that systemd does not take is as good as none.
    let name = value("FDNAME").filter(|name| is_name(name));
    let mut messages = Vec::new();
    if is_set("FDSTORE") {
        let name = name.unwrap_or("stored");
        messages.extend(descriptors.into_iter().map(|descriptor| Message::Store(name.into(), descriptor)));
    }
    if is_set("FDSTOREREMOVE") {
        messages.extend(name.map(|name| Message::Remove(name.into())));
    }
    if is_set("READY") {
        messages.push(Message::Ready);
    }
    messages
}

/// Whether systemd takes it for the name of a descriptor. They are joined by colons in `LISTEN_FDNAMES`.
fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii() && !byte.is_ascii_control() && byte != b':';
    !name.is_empty() && name.len() <= LONGEST_NAME && name.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use std::{io::IoSlice, os::fd::AsRawFd};

    use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

    use super::*;

    fn words(text: &str) -> Vec<String> {
        let said = messages(text.as_bytes(), Vec::new());
        said.iter().map(|message| format!("{message:?}")).collect()
    }

    #[test]
    fn what_is_not_known_is_skipped() {
        assert_eq!(words("READY=1\n"), ["Ready"]);
        assert_eq!(words("STATUS=READY=1\nMAINPID=1\nWATCHDOG=1"), [""; 0]);
        assert_eq!(words("READY=0"), [""; 0]);
        assert_eq!(words("FDSTOREREMOVE=1\nFDNAME=udp-0\nREADY=1"), ["Remove(\"udp-0\")", "Ready"]);
        for name in ["", "a:b", "a\tb", "ä", &"x".repeat(256)] {
            assert_eq!(words(&format!("FDSTOREREMOVE=1\nFDNAME={name}")), [""; 0], "{name:?}");
        }
        assert_eq!(words("FDSTORE=1\nFDNAME=udp"), [""; 0], "without a descriptor");
        assert_eq!(messages(b"\xff\xfe=1\nREADY=1", Vec::new()).len(), 1);
    }

    #[test]
    fn the_sender_is_known_and_descriptors_have_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.notify");
        std::fs::write(&path, "left behind").unwrap();
        let notifications = Notifications::open(&path).unwrap();
        assert!(notifications.receive().unwrap().is_none());
        let device = UnixDatagram::unbound().unwrap();
        device.connect(&path).unwrap();
        let numbers = [device.as_raw_fd(); 2];
        let rights = [ControlMessage::ScmRights(&numbers)];
        let text = [IoSlice::new(b"FDSTORE=1\nFDNAME=udp-4\n")];
        sendmsg::<UnixAddr>(device.as_raw_fd(), &text, &rights, MsgFlags::empty(), None).unwrap();
        device.send(b"READY=1").unwrap();
        let (sender, stored) = notifications.receive().unwrap().unwrap();
        assert_eq!(sender, Pid::this());
        assert!(
            matches!(&stored[..], [Message::Store(one, _), Message::Store(two, _)] if one == "udp-4" && two == one),
            "{stored:?}"
        );
        assert!(matches!(notifications.receive().unwrap().unwrap().1[..], [Message::Ready]));
        assert!(notifications.receive().unwrap().is_none());
        drop(notifications);
        assert!(!path.exists());
    }
}
