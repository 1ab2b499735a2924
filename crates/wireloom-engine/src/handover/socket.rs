//! The hand-over socket: one datagram a message, with its descriptors (`SOCK_SEQPACKET`, `SCM_RIGHTS`; unix(7)).

use std::{
    fs, io,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    time::Instant,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{getsockopt, sockopt},
        stat::{Mode, fchmod},
    },
    unistd::{geteuid, getpid},
};
use rustix::{
    cmsg_space,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
        accept_with, bind, connect, listen, recvmsg, sendmsg, socket_with, sockopt as options,
    },
    process::Pid,
};
use socket2::Type;

use super::{
    envelope::{MAX_DESCRIPTORS, MAX_MESSAGE, Message, Role},
    holders::Holders,
    peer::{Peer, wait_readable},
};
use crate::socket_file::make_way;

/// How many takers can wait to be accepted. Each is refused at once, or served.
const BACKLOG: i32 = 16;

/// The listening socket. Its file stays when this is dropped, because it may be another process's by then:
/// [`Self::remove`] removes it.
pub(crate) struct Listener {
    path: PathBuf,
    /// The device and inode of the socket's file. Another process may put a file of the same name in its place.
    identity: Option<(u64, u64)>,
    socket: OwnedFd,
}

impl Listener {
    /// Makes the socket, accessible by its owner only. `None` when another process serves it.
    ///
    /// # Errors
    /// When the system refuses, others can put files in its directory, or the file there is not a socket.
    pub(crate) fn open(path: PathBuf) -> io::Result<Option<Self>> {
        if !make_way(&path, Type::SEQPACKET)? {
            return Ok(None);
        }
        let socket = new_socket()?;
        // The file gets the mode that the socket has (`unix_bind_bsd` in net/unix/af_unix.c).
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
        bind(&socket, &SocketAddrUnix::new(&path)?)?;
        Self::from_fd(socket, path).map(Some)
    }

    /// Takes over a listening socket: one that came with [`Role::Handover`], after *Commit*, or that a supervisor kept.
    /// From now on those who connect see this process as its server.
    ///
    /// # Errors
    /// When it is not such a socket.
    pub(crate) fn from_fd(socket: OwnedFd, path: PathBuf) -> io::Result<Self> {
        if options::socket_domain(&socket)? != AddressFamily::UNIX
            || options::socket_type(&socket)? != SocketType::SEQPACKET
        {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a hand-over socket"));
        }
        // For one that listens already, this changes whom `Connection::peer` names (`init_peercred` in `unix_listen`,
        // net/unix/af_unix.c).
        listen(&socket, BACKLOG)?;
        let flags = rustix::io::fcntl_getfd(&socket)?;
        rustix::io::fcntl_setfd(&socket, flags | rustix::io::FdFlags::CLOEXEC)?;
        let identity = fs::symlink_metadata(&path).ok().map(|file| (file.dev(), file.ino()));
        Ok(Self { path, identity, socket })
    }

    /// The next taker. `None` when none waits.
    ///
    /// # Errors
    /// A shortage of descriptors or memory, which may pass.
    pub(crate) fn accept(&self) -> io::Result<Option<Connection>> {
        loop {
            let socket = match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => socket,
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
                Err(error) => return Err(error.into()),
            };
            match Connection::checked(socket) {
                Ok(connection) => return Ok(Some(connection)),
                Err(error) => tracing::warn!("a connection to the hand-over socket was refused: {error}"),
            }
        }
    }

    /// Removes the socket's file, unless it is another process's by now. Not after *Commit*.
    pub(crate) fn remove(self) {
        let now = fs::symlink_metadata(&self.path).ok().map(|file| (file.dev(), file.ino()));
        if now.is_some() && now == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl AsFd for Listener {
    /// Readable when [`Listener::accept`] has a connection. It is what is sent with [`Role::Handover`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// What has come from the other side.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A message with its descriptors: as many as [`Message::Descriptors`] has roles; one for [`Message::Copy`] and
    /// [`Message::Changes`], or none when their length is 0; none for all others.
    Message(Message, Vec<OwnedFd>),
    /// The other side has closed the connection or ended. Nothing comes after this.
    Gone,
    /// Nothing, until the time was up.
    Nothing,
}

/// A connection between a giver and a taker. Dropping it closes it.
pub(crate) struct Connection {
    socket: OwnedFd,
}

impl Connection {
    /// Connects to whoever has the interface. `None` when nobody listens.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when too many wait there already; a later attempt may succeed.
    /// [`io::ErrorKind::PermissionDenied`] when the socket is that of another user. Otherwise the system's error.
    pub(crate) fn connect(path: &Path) -> io::Result<Option<Self>> {
        let socket = new_socket()?;
        match connect(&socket, &SocketAddrUnix::new(path)?) {
            Ok(()) => Self::checked(socket).map(Some),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Refuses a peer that is neither root nor our own user.
    fn checked(socket: OwnedFd) -> io::Result<Self> {
        let uid = getsockopt(&socket, sockopt::PeerCredentials)?.uid();
        if uid != 0 && uid != geteuid().as_raw() {
            let message = format!("the process there belongs to the user {uid}");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        Ok(Self { socket })
    }

    /// Sends a message, without waiting. Once it has returned, the message is in the other side's queue, also if that
    /// closes the connection or this process ends.
    ///
    /// # Errors
    /// The message was not sent, and no part of it. The attempt is over.
    pub(crate) fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let datagram = message.encode();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match sendmsg(&self.socket, &[IoSlice::new(&datagram)], &mut control, flags) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends descriptors with their roles, in as many messages as they need.
    ///
    /// # Errors
    /// The attempt is over.
    pub(crate) fn send_descriptors(&self, descriptors: &[(Role, BorrowedFd<'_>)]) -> io::Result<()> {
        for portion in descriptors.chunks(MAX_DESCRIPTORS) {
            let (roles, descriptors): (Vec<_>, Vec<_>) = portion.iter().copied().unzip();
            self.send(&Message::Descriptors(roles), &descriptors)?;
        }
        Ok(())
    }

    /// What has come, without waiting.
    ///
    /// # Errors
    /// As [`Self::receive_until`].
    pub(crate) fn receive(&self) -> io::Result<Arrival> {
        let mut datagram = [0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let (len, flags, descriptors) = loop {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let into = &mut [IoSliceMut::new(&mut datagram)];
            match recvmsg(&self.socket, into, &mut control, RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => {
                    let descriptors: Vec<_> = control.drain().filter_map(descriptors).flatten().collect();
                    break (received.bytes, received.flags, descriptors);
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(Arrival::Nothing),
                // The other side has closed without reading all that we sent. This is said once, before what it has
                // sent (`unix_release_sock` in net/unix/af_unix.c), which may be *Commit*.
                Err(rustix::io::Errno::CONNRESET | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        // No message is empty.
        if len == 0 {
            return Ok(Arrival::Gone);
        }
        let wrong = |message| io::Error::new(io::ErrorKind::InvalidData, message);
        if flags.contains(ReturnFlags::CTRUNC) {
            return Err(wrong("descriptors were lost: raise the limit of open files of this process"));
        }
        if flags.contains(ReturnFlags::TRUNC) {
            return Err(wrong("a message is too long"));
        }
        let message = Message::decode(&datagram[..len])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let expected = match &message {
            Message::Descriptors(roles) => roles.len(),
            Message::Copy { len } | Message::Changes { len, .. } => usize::from(*len > 0),
            _ => return Ok(Arrival::Message(message, Vec::new())),
        };
        if descriptors.len() != expected {
            return Err(wrong("a message came with the wrong number of descriptors"));
        }
        Ok(Arrival::Message(message, descriptors))
    }

    /// What has come, or comes until `deadline`.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when the other side does not keep to the protocol, or descriptors were lost
    /// because this process may not open more. Otherwise the system's error. The attempt is over in any case.
    pub(crate) fn receive_until(&self, deadline: Instant) -> io::Result<Arrival> {
        loop {
            match self.receive()? {
                Arrival::Nothing => {}
                arrival => return Ok(arrival),
            }
            if !wait_readable(self.socket.as_fd(), deadline)? {
                return Ok(Arrival::Nothing);
            }
        }
    }

    /// The process at the other end; `None` when it has ended. Seen from a taker, it is the one that serves the socket.
    /// Before Linux 6.5 it is `None` also when it is not among the holders, which say then whom to kill.
    ///
    /// # Errors
    /// When the system refuses, or that process is in a PID namespace that this one does not see.
    pub(crate) fn peer(&self, holders: &Holders) -> io::Result<Option<Peer>> {
        let pid = getsockopt(&self.socket, sockopt::PeerCredentials)?.pid();
        if pid == getpid().as_raw() {
            return Err(io::Error::other("this process serves the hand-over socket itself"));
        }
        match getsockopt(&self.socket, sockopt::PeerPidfd) {
            Ok(pidfd) => Ok(Some(Peer { pidfd })),
            // What kernels say about one that has been waited for differs (`pidfd_prepare` in kernel/fork.c).
            Err(Errno::ESRCH | Errno::EINVAL | Errno::ENODATA) => Ok(None),
            // Before Linux 6.5.
            Err(Errno::ENOPROTOOPT) => {
                let pid = Pid::from_raw(pid).ok_or_else(|| {
                    io::Error::other("cannot see the process there: share its PID namespace (hostPID)")
                })?;
                holders.by_number(pid)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Connection {
    /// Readable when [`Connection::receive`] has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The descriptors of a control message.
fn descriptors(message: RecvAncillaryMessage<'_>) -> Option<impl Iterator<Item = OwnedFd>> {
    match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
