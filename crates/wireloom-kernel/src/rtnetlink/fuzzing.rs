//! Doors for `fuzz/`.

use std::net::IpAddr;

use netlink_packet_route::{
    RouteNetlinkMessage, address::AddressMessage, link::LinkMessage, neighbour::NeighbourMessage,
    route::RouteMessage, rule::RuleMessage,
};
use wireloom_netlink::Messages;
use wireloom_plan::{
    health::PolicyRule,
    routing::{Route, Rule},
};
use wireloom_types::LinkAddress;

use super::{address, classifier, interface, link, neighbour, netconf, route, rule, way};
use crate::Interest;

/// Whether notifications are worth a look at the kernel.
#[must_use]
pub fn concern(interest: &Interest, messages: Messages<'_>) -> bool {
    interest.holds_any(messages)
}

/// Reads a message as whatever it may be an answer to, and forgets what it says.
pub fn read(message: &RouteNetlinkMessage) {
    match message {
        RouteNetlinkMessage::NewRoute(message) => {
            let _ = (route::onward(message), route::direct(message), way::decode(message));
        }
        RouteNetlinkMessage::NewTrafficFilter(message) | RouteNetlinkMessage::NewQueueDiscipline(message) => {
            let _ = (classifier::place(message), classifier::program(message));
        }
        _ => {}
    }
}

/// Reads settings of an interface. Returns whether they concern us.
#[must_use]
pub fn settings(payload: &[u8]) -> bool {
    netconf::decode(payload).is_some()
}

/// Reads a rule.
#[must_use]
pub fn rule(message: &RuleMessage) -> Option<PolicyRule> {
    rule::decode_any(message)
}

/// The message that asks for a rule.
#[must_use]
pub fn rule_request(rule: &Rule) -> RuleMessage {
    rule::encode(rule)
}

/// Reads a route. `interface` is the index of ours.
#[must_use]
pub fn route(message: &RouteMessage, interface: u32) -> Option<Route> {
    route::decode(message, Some(interface))
}

/// The message that asks for a route; `None` for one that we never write.
#[must_use]
pub fn route_request(route: &Route, interface: u32) -> Option<RouteMessage> {
    route::encode(route, 1, Some(interface)).ok()
}

/// The name and the index of an interface.
#[must_use]
pub fn link(message: &LinkMessage) -> Option<(String, u32)> {
    let _ = interface::decode(message);
    link::decode(message).map(|link| (link.name, link.index))
}

/// An address, as it stands in front of its prefix length.
#[must_use]
pub fn address(message: &AddressMessage) -> Option<IpAddr> {
    address::decode(message).map(|assigned| assigned.address.addr())
}

/// A neighbour of ours.
#[must_use]
pub fn neighbour(message: &NeighbourMessage) -> Option<(IpAddr, LinkAddress)> {
    neighbour::decode(message)
}
