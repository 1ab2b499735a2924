//! Where an interface is: in which network namespace, and under which index.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    nsid::{NsidAttribute, NsidMessage},
};
use wireloom_netlink::{Client, Protocol, Request};

use super::{TunState, linux, rtnetlink};

/// `TUNGETDEVNETNS` of include/uapi/linux/if_tun.h: `_IO('T', 227)`. Linux has it since 5.0.
const TUNGETDEVNETNS: libc::Ioctl = 0x54e3;

/// The number of a namespace that has none (`NETNSA_NSID_NOT_ASSIGNED` of include/uapi/linux/net_namespace.h).
const NO_NUMBER: i32 = -1;

/// Where an interface is. Nothing else is there as long as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The number that our network namespace has for the interface's; `None` when that is our own.
    pub(super) namespace: Option<i32>,
    pub(super) index: u32,
}

/// Whether the interface that a descriptor leads to is in our network namespace.
pub(super) fn is_here(file: &File) -> bool {
    namespace_of(file).and_then(|namespace| is_ours(&namespace)).unwrap_or_default()
}

/// Finds the interface that a descriptor leads to, and its state; `None` when it does not exist any more.
///
/// # Errors
/// The kernel is older than Linux 5.0, or refuses.
pub(super) fn locate(file: &File) -> io::Result<Option<(Place, TunState)>> {
    // It may be renamed, or moved once more, in between.
    for _ in 0..ATTEMPTS {
        let Some(name) = linux::interface_name(file) else { return Ok(None) };
        let namespace = namespace_of(file)?;
        let number = if is_ours(&namespace)? { None } else { Some(number_of(&namespace)?) };
        let found = rtnetlink::find_by_name(&name, number)?;
        let is_same = |file| Ok::<_, io::Error>(namespace_of(file)?.metadata()?.ino());
        if found.is_some()
            && linux::interface_name(file).is_some_and(|now| now == name)
            && is_same(file)? == namespace.metadata()?.ino()
        {
            return Ok(found);
        }
    }
    Err(io::Error::other("it moves all the time"))
}

/// How often the interface is looked for.
const ATTEMPTS: usize = 10;

/// The network namespace of the interface.
#[expect(unsafe_code, reason = "neither nix nor the standard library know this ioctl")]
fn namespace_of(file: &File) -> io::Result<File> {
    // SAFETY: TUNGETDEVNETNS takes no argument.
    let namespace = unsafe { libc::ioctl(file.as_raw_fd(), TUNGETDEVNETNS) };
    if namespace < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(namespace) }.into())
}

/// Whether a network namespace is that of this process.
fn is_ours(namespace: &File) -> io::Result<bool> {
    let (this, ours) = (namespace.metadata()?, File::open("/proc/self/ns/net")?.metadata()?);
    Ok((this.dev(), this.ino()) == (ours.dev(), ours.ino()))
}

/// The number that our network namespace has for another one. The kernel gives it one when an interface is moved there
/// (`__dev_change_net_namespace` in net/core/dev.c), but from where it was, which may be a third one.
fn number_of(namespace: &File) -> io::Result<i32> {
    let about = |number: Option<i32>| {
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(namespace.as_raw_fd() as u32));
        message.attributes.extend(number.map(NsidAttribute::Id));
        message
    };
    let mut client = Client::open(Protocol::Route)?;
    let ask = RouteNetlinkMessage::GetNsId(about(None));
    let number = |reply: RouteNetlinkMessage| match reply {
        RouteNetlinkMessage::NewNsId(reply) => {
            reply.attributes.iter().find_map(|attribute| match attribute {
                NsidAttribute::Id(number) if *number != NO_NUMBER => Some(*number),
                _ => None,
            })
        }
        _ => None,
    };
    if let Some(number) = number(client.get(&ask)?) {
        return Ok(number);
    }
    // Any number will do.
    let message = RouteNetlinkMessage::NewNsId(about(Some(NO_NUMBER)));
    client.change(&Request { message, flags: 0 })?;
    number(client.get(&ask)?)
        .ok_or_else(|| io::Error::other("the kernel gives its network namespace no number"))
}
