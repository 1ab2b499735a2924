//! A packet socket on every interface of the underlay, with a large buffer.

use std::{
    io::{ErrorKind, IoSliceMut},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use nix::{
    cmsg_space,
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg,
        setsockopt, socket, sockopt,
    },
};

use crate::{Error, Result, Space};

/// `PACKET_OUTGOING` of `include/uapi/linux/if_packet.h`. The bridge sends out of one cable what came in by another,
/// so every packet is seen once more as an outgoing one.
const OUTGOING: u8 = 4;

/// Bytes of the socket's receive buffer. Root of the machine gets all of them, other users what
/// `net.core.rmem_max` allows.
const BUFFER: usize = 256 << 20;

/// How long a wait for frames lasts, in milliseconds: so often its caller can look whether it is over.
const POLL_MS: u8 = 100;

/// The socket.
#[derive(Debug)]
pub(super) struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens it in the underlay's namespace ([`Lab::underlay`](crate::Lab::underlay)).
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel refuses.
    pub(super) fn open(underlay: &Space) -> Result<Self> {
        underlay
            .open("open a packet socket", || {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
                setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)
                    .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &BUFFER))?;
                setsockopt(&socket, sockopt::RxqOvfl, &1)?;
                Ok::<_, Errno>(socket)
            })
            .map(Self)
    }

    /// Waits until there are frames, or a moment has passed.
    pub(super) fn wait(&self) {
        let mut sockets = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut sockets, PollTimeout::from(POLL_MS));
    }

    /// Calls `each` with all frames that there are, cut to the length of `buffer`; without outgoing copies.
    ///
    /// # Errors
    /// [`Error::Io`] when the socket fails; [`Error::Overflow`] when its buffer was too small.
    pub(super) fn receive(&self, buffer: &mut [u8], mut each: impl FnMut(&[u8])) -> Result<()> {
        loop {
            match self.receive_one(buffer) {
                Ok(Some(length)) => each(&buffer[..length]),
                Ok(None) => {}
                Err(Error::Io { source, .. }) if source.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Receives one frame; `None` when it is an outgoing copy.
    fn receive_one(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        let mut control = cmsg_space!(u32);
        let mut buffer = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::empty();
        let received = recvmsg::<LinkAddr>(self.0.as_raw_fd(), &mut buffer, Some(&mut control), flags);
        let message = match received {
            Ok(message) => message,
            // ENETDOWN: a cable was removed. Packets from the others still come.
            Err(Errno::EINTR | Errno::ENETDOWN) => return Ok(None),
            Err(error) => return Err(Error::io("read the capture")(error)),
        };
        for control in message.cmsgs().map_err(Error::io("read the capture"))? {
            if let ControlMessageOwned::RxqOvfl(packets) = control {
                return Err(Error::Overflow { packets });
            }
        }
        let outgoing = message.address.is_some_and(|from| from.pkttype() == OUTGOING);
        Ok((!outgoing).then_some(message.bytes))
    }
}
