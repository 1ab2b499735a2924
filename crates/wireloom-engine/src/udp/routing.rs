//! Questions to routing, by rtnetlink(7).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use nix::libc;
use wireloom_netlink::{Client, Protocol};

/// The most questions about refused datagrams in a [`WINDOW`]: each takes a few microseconds. Whoever can have our
/// datagrams refused can cause as many as there are datagrams.
const QUESTIONS_MAX: usize = 64;
const WINDOW: Duration = Duration::from_millis(100);

/// The datagrams of one port, as routing sees them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) port: u16,
    /// Their firewall mark; 0 for none.
    pub(super) mark: u32,
}

/// Asks how routing treats datagrams.
pub(super) struct Routing(Client<RouteNetlinkMessage>);

impl Routing {
    pub(super) fn open() -> io::Result<Self> {
        Client::open(Protocol::Route).map(Self)
    }

    /// The interface that a datagram leaves by: one from this source address, or from one that routing chooses. `None`
    /// when there is no route for it.
    pub(super) fn interface(
        &mut self,
        to: SocketAddr,
        source: Option<IpAddr>,
        origin: Origin,
    ) -> Option<u32> {
        let mut request = RouteMessage::default();
        let is_v4 = to.is_ipv4();
        let bits = if is_v4 { 32 } else { 128 };
        request.header.address_family = if is_v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        request.header.destination_prefix_length = bits;
        request.attributes = vec![
            RouteAttribute::Destination(route_address(to.ip())),
            RouteAttribute::Mark(origin.mark),
            RouteAttribute::IpProto(libc::IPPROTO_UDP as u8),
            RouteAttribute::Sport(origin.port),
            RouteAttribute::Dport(to.port()),
        ];
        if let Some(source) = source {
            request.header.source_prefix_length = bits;
            request.attributes.push(RouteAttribute::Source(route_address(source)));
        }
        let answer = self.0.get(&RouteNetlinkMessage::GetRoute(request));
        let Ok(RouteNetlinkMessage::NewRoute(route)) = answer else { return None };
        route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(interface) => Some(*interface),
            _ => None,
        })
    }
}

/// Finds out why datagrams are refused.
///
/// What a socket reports when it is told to send may have been raised by ICMP, for an earlier datagram to anybody
/// (`sk_err`). Only routing itself knows whether it minds a source address.
#[derive(Default)]
pub(super) struct Refusals {
    routing: Option<Routing>,
    window: Option<Instant>,
    asked: usize,
}

impl Refusals {
    /// Whether routing has a way to the destination, but none from this address of ours. False when too many questions
    /// were asked lately.
    pub(super) fn are_for_the_source(&mut self, to: SocketAddr, source: IpAddr, origin: Origin) -> bool {
        let now = Instant::now();
        if self.window.is_none_or(|window| now.duration_since(window) >= WINDOW) {
            (self.window, self.asked) = (Some(now), 0);
        }
        self.asked += 1;
        if self.asked > QUESTIONS_MAX {
            return false;
        }
        if self.routing.is_none() {
            self.routing = Routing::open().ok();
        }
        self.routing.as_mut().is_some_and(|routing| {
            routing.interface(to, Some(source), origin).is_none()
                && routing.interface(to, None, origin).is_some()
        })
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin { port: 51820, mark: 0 };

    #[test]
    fn routing_minds_a_source_address_that_is_not_ours_and_none_that_is() {
        let to = SocketAddr::from(([127, 0, 0, 1], 9));
        assert_eq!(Routing::open().unwrap().interface(to, None, ORIGIN), Some(1));
        let mut refusals = Refusals::default();
        assert!(!refusals.are_for_the_source(to, [127, 0, 0, 1].into(), ORIGIN));
        // TEST-NET-1 of RFC 5737.
        assert!(refusals.are_for_the_source(to, [192, 0, 2, 1].into(), ORIGIN));
    }

    #[test]
    fn questions_about_refused_datagrams_are_bounded() {
        let to = SocketAddr::from(([127, 0, 0, 1], 9));
        let mut refusals = Refusals::default();
        let begun = Instant::now();
        let mut ask = || refusals.are_for_the_source(to, [192, 0, 2, 1].into(), ORIGIN);
        let answered = (0..3 * QUESTIONS_MAX).filter(|_| ask()).count();
        let windows = 1 + (begun.elapsed().as_millis() / WINDOW.as_millis()) as usize;
        assert!((1..=QUESTIONS_MAX * windows).contains(&answered), "{answered}");
    }
}
