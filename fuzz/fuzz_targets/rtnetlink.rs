//! rtnetlink: whatever a datagram of the kernel holds, its messages are read or refused; and of a rule, or a route of
//! ours, the request for it is read as the same one.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use netlink_packet_core::{Emitable as _, NetlinkPayload, Parseable as _};
use netlink_packet_route::{RouteNetlinkMessage, route::RouteMessage, rule::RuleMessage};
use wireloom_kernel::{Interest, fuzzing::rtnetlink};
use wireloom_netlink::fuzzing::{messages, refusal};
use wireloom_plan::health::Action;

/// The index of our interface.
const INTERFACE: u32 = 7;

static INTEREST: LazyLock<Interest> = LazyLock::new(|| Interest {
    interface: "wg0".into(),
    table: 1,
    underlays: ["eth0".into()].into(),
    own_port: 1,
    ..Interest::default()
});

fn check_rule(message: &RuleMessage) {
    let Some(found) = rtnetlink::rule(message).filter(|found| found.action == Action::Lookup) else { return };
    let request = rtnetlink::rule_request(&found.rule);
    let mut bytes = vec![0; request.buffer_len()];
    request.emit(&mut bytes);
    // An attribute that no kernel writes, such as one that is too short, may be unreadable.
    let Ok(read) = RuleMessage::parse(bytes.as_slice()) else { return };
    let again = rtnetlink::rule(&read).expect("a rule that looks up a table").rule;
    // The host parts of prefixes are not written, and a mark without a mask is none.
    let exact =
        [found.rule.from, found.rule.other.to].into_iter().flatten().all(|prefix| prefix == prefix.trunc());
    if exact && found.rule.mask != 0 && found.rule.other.attributes.is_empty() {
        assert_eq!(again, found.rule);
    }
}

fn check_route(message: &RouteMessage) {
    let Some(route) = rtnetlink::route(message, INTERFACE) else { return };
    // The host part of the destination is not written.
    let exact = route.destination == route.destination.trunc();
    let Some(request) = rtnetlink::route_request(&route, INTERFACE).filter(|_| exact) else { return };
    let mut bytes = vec![0; request.buffer_len()];
    request.emit(&mut bytes);
    let read = RouteMessage::parse(bytes.as_slice()).expect("our own message");
    assert_eq!(rtnetlink::route(&read, INTERFACE), Some(route));
}

fuzz_target!(|datagram: &[u8]| {
    let _ = rtnetlink::concern(&INTEREST, messages(datagram));
    for message in messages(datagram) {
        let Ok(message) = message else { break };
        let _ = refusal(&message, i32::from(message.header.flags)).to_string();
        let _ = rtnetlink::settings(message.payload());
        let Ok(NetlinkPayload::InnerMessage(message)) = message.parse::<RouteNetlinkMessage>() else {
            continue;
        };
        rtnetlink::read(&message);
        match &message {
            RouteNetlinkMessage::NewRule(message) => check_rule(message),
            RouteNetlinkMessage::NewRoute(message) => check_route(message),
            RouteNetlinkMessage::NewLink(message) => drop(rtnetlink::link(message)),
            RouteNetlinkMessage::NewAddress(message) => {
                let _ = rtnetlink::address(message);
            }
            RouteNetlinkMessage::NewNeighbour(message) => {
                let _ = rtnetlink::neighbour(message);
            }
            _ => {}
        }
    }
});
