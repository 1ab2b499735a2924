//! Follows the state of the interface by rtnetlink(7).

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use wireloom_netlink::{Messages, Protocol, Received, Subscription};

use super::{
    TunEvent, TunState,
    locate::{self, is_here, locate},
    place::Place,
    rtnetlink::{interface, state},
};

/// `RTNLGRP_LINK` of rtnetlink(7): the group that gets the changes of every interface.
const LINK_GROUP: u32 = 1;
/// Room for notifications that wait to be read, in bytes: what the kernel gives a socket by default
/// (`net.core.rmem_default`). When it is full, the monitor asks for the current state instead.
const RECEIVE_BUFFER: usize = 208 << 10;

/// Follows the state of one interface, also into other network namespaces.
///
/// An index names an interface only as long as it is in its namespace: afterwards, another one may get it. So what
/// follows a message that the interface has gone is not taken for its own, and where it is now is learnt from its
/// descriptor, which always leads to it.
pub(super) struct InterfaceMonitor {
    notifications: Subscription,
    /// The notifications of all namespaces, from when the interface leaves ours. It is opened in advance, because that
    /// needs a privilege; absent where the process never had it.
    of_all: Option<Subscription>,
    /// Whether these are the notifications of all namespaces. Where we do not see when the interface comes up, it
    /// counts as up.
    follows_all: bool,
    /// `None` when it is not known where the interface is.
    place: Option<Place>,
    /// The number that our namespace has for itself, once it has one.
    own_number: Option<i32>,
}

impl InterfaceMonitor {
    /// Begins to follow the interface with this index in our namespace. The current state is the first event.
    pub(super) fn open(index: u32) -> io::Result<Self> {
        let monitor = Self::at(Some(Place { namespace: None, index }))?;
        monitor.request_state()?;
        Ok(monitor)
    }

    /// Begins to follow the interface that a descriptor leads to, wherever it is. `mtu` is its last known one. The
    /// current state is the first event.
    pub(super) fn follow(file: &File, mtu: usize) -> io::Result<Self> {
        let mut monitor = Self::at(None)?;
        if monitor.find(file, mtu)? == TunEvent::Gone {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the interface does not exist any more"));
        }
        monitor.request_state()?;
        Ok(monitor)
    }

    fn at(place: Option<Place>) -> io::Result<Self> {
        let notifications = Subscription::open(Protocol::Route, &[LINK_GROUP], RECEIVE_BUFFER)?;
        notifications.set_nonblocking(true)?;
        let of_all = Subscription::open(Protocol::Route, &[], RECEIVE_BUFFER).and_then(|mut of_all| {
            of_all.set_nonblocking(true)?;
            of_all.listen_to_all_namespaces()?;
            Ok(of_all)
        });
        let of_all = of_all.inspect_err(|error| {
            tracing::debug!("the interface cannot be followed into other network namespaces: {error}");
        });
        Ok(Self { notifications, of_all: of_all.ok(), follows_all: false, place, own_number: None })
    }

    /// Where the interface is, if that is known.
    pub(super) fn place(&self) -> Option<Place> {
        self.place
    }

    /// Whether the interface is in our namespace.
    pub(super) fn is_here(&self) -> bool {
        self.place.is_some_and(|place| place.namespace.is_none())
    }

    /// Asks for the current state. The answer is an event.
    fn request_state(&self) -> io::Result<()> {
        let Some(place) = self.place else { return Ok(()) };
        self.notifications.request(RouteNetlinkMessage::GetLink(interface(place)))
    }

    /// The next event that concerns the interface, to which the descriptor leads. `mtu` is its last known one.
    pub(super) fn poll(&mut self, file: &File, mtu: usize) -> io::Result<Option<TunEvent>> {
        loop {
            let is_here = self.is_here();
            let seen = match self.notifications.receive() {
                Ok(Received::Messages(messages)) => newest(self.place, &mut self.own_number, messages),
                // Events were lost because we were slow: the present state makes up for them. Before Linux 5.0 nobody
                // can say where the interface is; it is most likely where it was.
                Ok(Received::Overrun) if is_here && locate(file).is_err() => Some(Seen::Unknown),
                Ok(Received::Overrun) => Some(Seen::HasGone),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            match seen {
                None => {}
                Some(Seen::Unknown) => self.request_state()?,
                Some(Seen::State(state)) => return Ok(Some(TunEvent::State(state))),
                Some(Seen::HasGone) => return self.find(file, mtu).map(Some),
            }
        }
    }

    /// Looks where the interface is, and how.
    fn find(&mut self, file: &File, mtu: usize) -> io::Result<TunEvent> {
        // Before it looks, so that no change after the look is missed.
        if !is_here(file)
            && let Some(mut of_all) = self.of_all.take()
        {
            of_all.join(LINK_GROUP)?;
            self.notifications = of_all;
            self.follows_all = true;
        }
        match locate(file) {
            Ok(Some((place, state))) => {
                let can_follow = place.namespace.is_none() || self.follows_all;
                self.place = Some(place);
                Ok(TunEvent::State(TunState { up: state.up || !can_follow, ..state }))
            }
            Ok(None) => Ok(TunEvent::Gone),
            Err(error) => {
                tracing::warn!(
                    "cannot see the interface in its new network namespace, so it counts as up: {error}"
                );
                self.place = None;
                Ok(TunEvent::State(TunState { up: true, mtu }))
            }
        }
    }
}

impl AsFd for InterfaceMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notifications.as_fd()
    }
}

/// What messages say about the interface at a place.
enum Seen {
    State(TunState),
    /// It may have changed.
    Unknown,
    /// It is not there any more; later messages are about another one.
    HasGone,
}

/// The newest of what messages say about the interface at this place.
fn newest(place: Option<Place>, own_number: &mut Option<i32>, messages: Messages<'_>) -> Option<Seen> {
    let Place { namespace, index } = place?;
    // The answer to a request comes from our own namespace, whichever it is about.
    let is_from_there = is_from(messages.namespace(), namespace, own_number, locate::own_number);
    let mut newest = None;
    // An unreadable message ends the datagram.
    for message in messages.map_while(Result::ok) {
        match message.parse().ok() {
            Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)))
                if is_from_there && link.header.index == index =>
            {
                newest = state(&link).map(Seen::State).or(newest);
            }
            // Not that it left a bridge, which is a message of that family.
            Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)))
                if is_from_there
                    && link.header.index == index
                    && link.header.interface_family == AddressFamily::Unspec =>
            {
                return Some(Seen::HasGone);
            }
            // The answer to `request_state` when the interface is gone.
            Some(NetlinkPayload::Error(error)) if error.raw_code() == -libc::ENODEV => {
                return Some(Seen::HasGone);
            }
            _ => {}
        }
    }
    newest
}

/// Whether news that came from one namespace are about one that ours has this number for.
///
/// Both are `None` for our own. But that may have a number for itself, like any other, and whether its news carry that
/// depends on the kernel (Linux 6.18 leaves it out). Once it has one, it keeps it.
fn is_from(
    from: Option<i32>,
    namespace: Option<i32>,
    own_number: &mut Option<i32>,
    ask: impl FnOnce() -> Option<i32>,
) -> bool {
    match from {
        Some(number) if namespace.is_none() => {
            if own_number.is_none() {
                *own_number = ask();
            }
            *own_number == Some(number)
        }
        from => from == namespace,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_of_our_own_namespace_may_carry_a_number() {
        let mut own = None;
        let never = || panic!("there is no need to ask");
        assert!(is_from(None, None, &mut own, never) && is_from(Some(3), Some(3), &mut own, never));
        assert!(!is_from(None, Some(3), &mut own, never) && !is_from(Some(4), Some(3), &mut own, never));
        assert!(!is_from(Some(3), None, &mut own, || None), "it has none so far");
        assert!(is_from(Some(5), None, &mut own, || Some(5)));
        assert!(is_from(Some(5), None, &mut own, never) && !is_from(Some(3), None, &mut own, never));
    }
}
