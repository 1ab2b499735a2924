//! Finds where the interface is that a descriptor leads to.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    nsid::{NsidAttribute, NsidMessage},
};
use wireloom_netlink::{Client, Protocol, Request};

use super::{
    TunState,
    descriptor::{interface_name, namespace_of},
    place::Place,
    rtnetlink,
};

/// The number of a namespace that has none (`NETNSA_NSID_NOT_ASSIGNED` of include/uapi/linux/net_namespace.h).
const NO_NUMBER: i32 = -1;

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
        let Some(name) = interface_name(file) else { return Ok(None) };
        let namespace = namespace_of(file)?;
        let number = if is_ours(&namespace)? { None } else { Some(number_of(&namespace)?) };
        let found = rtnetlink::find_by_name(&name, number)?;
        let is_same = |file| Ok::<_, io::Error>(namespace_of(file)?.metadata()?.ino());
        if found.is_some()
            && interface_name(file).is_some_and(|now| now == name)
            && is_same(file)? == namespace.metadata()?.ino()
        {
            return Ok(found);
        }
    }
    Err(io::Error::other("it moves all the time"))
}

/// How often the interface is looked for.
const ATTEMPTS: usize = 10;

/// Whether a network namespace is that of this process.
fn is_ours(namespace: &File) -> io::Result<bool> {
    let (this, ours) = (namespace.metadata()?, File::open("/proc/self/ns/net")?.metadata()?);
    Ok((this.dev(), this.ino()) == (ours.dev(), ours.ino()))
}

/// The number that our network namespace has for itself; `None` when it has none, as long as nobody gives it one
/// (`ip netns set`).
pub(super) fn own_number() -> Option<i32> {
    let ours = File::open("/proc/self/ns/net").ok()?;
    known_number(&mut Client::open(Protocol::Route).ok()?, &ours).ok().flatten()
}

/// The number that our network namespace has for another one. The kernel gives it one when an interface is moved there
/// (`__dev_change_net_namespace` in net/core/dev.c), but from where it was, which may be a third one.
fn number_of(namespace: &File) -> io::Result<i32> {
    let mut client = Client::open(Protocol::Route)?;
    if let Some(number) = known_number(&mut client, namespace)? {
        return Ok(number);
    }
    // Any number will do.
    let mut message = about(namespace);
    message.attributes.push(NsidAttribute::Id(NO_NUMBER));
    client.change(&Request { message: RouteNetlinkMessage::NewNsId(message), flags: 0 })?;
    known_number(&mut client, namespace)?
        .ok_or_else(|| io::Error::other("the kernel gives its network namespace no number"))
}

/// The number that our network namespace has for this one already.
fn known_number(client: &mut Client<RouteNetlinkMessage>, namespace: &File) -> io::Result<Option<i32>> {
    let RouteNetlinkMessage::NewNsId(reply) = client.get(&RouteNetlinkMessage::GetNsId(about(namespace)))?
    else {
        return Ok(None);
    };
    Ok(reply.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(number) if *number != NO_NUMBER => Some(*number),
        _ => None,
    }))
}

fn about(namespace: &File) -> NsidMessage {
    let mut message = NsidMessage::default();
    message.attributes.push(NsidAttribute::Fd(namespace.as_raw_fd() as u32));
    message
}
