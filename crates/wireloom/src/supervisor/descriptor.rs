//! Descriptors that came over a socket, and sending them on.

use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsRawFd, RawFd},
};

use nix::{
    cmsg_space,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, UnixCredentials, recvmsg, sendmsg,
    },
    unistd::close,
};

/// The most descriptors that the kernel sends in one message (`SCM_MAX_FD` in include/net/scm.h).
const AT_ONCE: usize = 253;

/// A descriptor that nobody else in this process has. It is closed on drop.
#[derive(Debug)]
pub(super) struct Descriptor(RawFd);

impl Descriptor {
    /// One that was left to this process by its number, and that nothing else in it knows of.
    pub(super) fn left(number: RawFd) -> Self {
        Self(number)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        let _ = close(self.0);
    }
}

/// A message that was received.
pub(super) struct Received {
    /// Its length in bytes. A longer message was cut off.
    pub(super) length: usize,
    /// The process that sent it, if the socket asks for that: 0 when it is in another PID namespace.
    pub(super) sender: Option<i32>,
    /// The descriptors that came with it.
    pub(super) descriptors: Vec<Descriptor>,
}

/// Receives a message without waiting. A program that this process starts does not get its descriptors.
pub(super) fn receive(socket: &impl AsRawFd, into: &mut [u8]) -> nix::Result<Received> {
    let numbers = receive_with(socket, into, MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT)?;
    let descriptors = numbers.2.into_iter().map(Descriptor).collect();
    Ok(Received { length: numbers.0, sender: numbers.1, descriptors })
}

/// Receives as many descriptors, to be left to the program that this process becomes, and returns their numbers. The
/// kernel gives the lowest free ones, in order.
pub(super) fn receive_to_pass_on(socket: &impl AsRawFd, count: usize) -> nix::Result<Vec<RawFd>> {
    let mut all = Vec::new();
    while all.len() < count {
        let (length, _, numbers) = receive_with(socket, &mut [0], MsgFlags::empty())?;
        if length == 0 {
            break;
        }
        all.extend(numbers);
    }
    Ok(all)
}

fn receive_with(
    socket: &impl AsRawFd,
    into: &mut [u8],
    flags: MsgFlags,
) -> nix::Result<(usize, Option<i32>, Vec<RawFd>)> {
    let mut space = cmsg_space!([RawFd; AT_ONCE], UnixCredentials);
    let mut parts = [IoSliceMut::new(into)];
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let (mut sender, mut numbers) = (None, Vec::new());
    for part in message.cmsgs()? {
        match part {
            ControlMessageOwned::ScmRights(more) => numbers.extend(more),
            ControlMessageOwned::ScmCredentials(credentials) => sender = Some(credentials.pid()),
            _ => {}
        }
    }
    Ok((message.bytes, sender, numbers))
}

/// Sends descriptors, in messages of one byte each.
pub(super) fn send(socket: &impl AsRawFd, descriptors: &[&Descriptor]) -> nix::Result<()> {
    descriptors.chunks(AT_ONCE).try_for_each(|portion| send_with(socket, &[0], portion, MsgFlags::empty()))
}

/// Sends a message without waiting, with a descriptor or without.
pub(super) fn send_at_once(
    socket: &impl AsRawFd,
    text: &str,
    descriptor: Option<&Descriptor>,
) -> nix::Result<()> {
    send_with(socket, text.as_bytes(), descriptor.as_slice(), MsgFlags::MSG_DONTWAIT)
}

fn send_with(
    socket: &impl AsRawFd,
    text: &[u8],
    descriptors: &[&Descriptor],
    flags: MsgFlags,
) -> nix::Result<()> {
    let numbers: Vec<RawFd> = descriptors.iter().map(|descriptor| descriptor.0).collect();
    let rights = (!numbers.is_empty()).then_some(ControlMessage::ScmRights(&numbers));
    let flags = flags | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(text)], rights.as_slice(), flags, None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::Read,
        os::{
            fd::IntoRawFd,
            unix::net::{UnixDatagram, UnixStream},
        },
    };

    use super::*;

    #[test]
    fn descriptors_arrive_with_the_message_and_are_closed_on_drop() {
        let (near, far) = UnixDatagram::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let numbers = [writer.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&numbers)];
        let text = [IoSlice::new(b"FDSTORE=1")];
        sendmsg::<UnixAddr>(near.as_raw_fd(), &text, &rights, MsgFlags::empty(), None).unwrap();
        drop(writer);
        let mut into = [0; 64];
        let received = receive(&far, &mut into).unwrap();
        assert_eq!(&into[..received.length], b"FDSTORE=1");
        assert_eq!((received.descriptors.len(), received.sender), (1, None));
        let name = format!("/proc/self/fdinfo/{}", received.descriptors[0].0);
        let info = std::fs::read_to_string(name).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        assert!(i32::from_str_radix(flags.trim(), 8).unwrap() & nix::libc::O_CLOEXEC != 0, "{info}");
        drop(received);
        assert_eq!(reader.read(&mut into).unwrap(), 0, "the writing end is closed");
        assert_eq!(receive(&far, &mut into).map(|_| ()), Err(nix::errno::Errno::EAGAIN));
    }

    #[test]
    fn more_descriptors_than_one_message_takes_arrive_in_order() {
        let (near, far) = UnixStream::pair().unwrap();
        let (sizes, files): (Vec<u64>, Vec<File>) = (0..2 * AT_ONCE as u64 + 7)
            .map(|size| {
                let file = tempfile::tempfile().unwrap();
                file.set_len(size).unwrap();
                (size, file)
            })
            .unzip();
        let descriptors: Vec<Descriptor> =
            files.into_iter().map(|file| Descriptor(file.into_raw_fd())).collect();
        send(&near, &descriptors.iter().collect::<Vec<_>>()).unwrap();
        let passed_on: Vec<_> =
            receive_to_pass_on(&far, sizes.len()).unwrap().into_iter().map(Descriptor).collect();
        let found: Vec<u64> = passed_on
            .iter()
            .map(|descriptor| std::fs::metadata(format!("/proc/self/fd/{}", descriptor.0)).unwrap().len())
            .collect();
        assert_eq!(found, sizes);
        drop(near);
        assert_eq!(receive_to_pass_on(&far, 1), Ok(Vec::new()), "the other end is gone");
    }
}
