//! All interfaces of the machine, and which of them lead to other machines by their kind.

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        InfoKind, InfoPortKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType,
        LinkMessage,
    },
};

use super::Rtnetlink;
use crate::error::Cause;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Whether it leads to other machines by its kind. The others may do so too, if routes say so.
    pub(crate) leads_out: bool,
    /// The index of the interface to which it hands all that it receives: a bridge, a bond, a team.
    pub(crate) port_of: Option<u32>,
}

pub(crate) fn observe(netlink: &mut Rtnetlink) -> Result<Vec<Link>, Cause> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let dumped = netlink.dump(&RouteNetlinkMessage::GetLink(request))?;
    let links = dumped.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(message) => decode(message),
        _ => None,
    });
    Ok(links.collect())
}

/// `None` for a message without a name.
pub(crate) fn decode(message: &LinkMessage) -> Option<Link> {
    let (mut name, mut controller, mut kind, mut port_kind) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value.clone()),
            LinkAttribute::Controller(index) => controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(value) => kind = Some(value),
                        LinkInfo::PortKind(value) => port_kind = Some(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let header = &message.header;
    let loopback =
        header.flags.contains(LinkFlags::Loopback) || header.link_layer_type == LinkLayerType::Loopback;
    // A VRF's ports keep what they receive.
    let takes_all = matches!(port_kind, Some(InfoPortKind::Bridge | InfoPortKind::Bond | InfoPortKind::Team));
    Some(Link {
        index: header.index,
        name: name?,
        leads_out: !loopback && leads_out(kind),
        port_of: controller.filter(|_| takes_all),
    })
}

/// Network cards have no kind. Everything else leads to other machines except for what ends on this one: the kinds that
/// connect containers, and those that connect nothing.
fn leads_out(kind: Option<&InfoKind>) -> bool {
    !matches!(
        kind,
        Some(
            InfoKind::Veth
                | InfoKind::Netkit
                | InfoKind::Bridge
                | InfoKind::Dummy
                | InfoKind::Ifb
                | InfoKind::Nlmon
                | InfoKind::Vrf
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(kind: Option<InfoKind>, flags: LinkFlags) -> Link {
        let mut message = LinkMessage::default();
        message.header.flags = flags;
        message.attributes.push(LinkAttribute::IfName("eth0".into()));
        let infos = kind.map(|kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
        message.attributes.extend(infos);
        decode(&message).unwrap()
    }

    #[test]
    fn cards_and_tunnels_lead_out_and_what_connects_containers_does_not() {
        let up = LinkFlags::Up;
        assert!(link(None, up).leads_out, "a network card");
        assert!(!link(None, up | LinkFlags::Loopback).leads_out, "lo");
        for kind in [
            InfoKind::Vxlan,
            InfoKind::Geneve,
            InfoKind::GreTun,
            InfoKind::IpIp,
            InfoKind::Wireguard,
            InfoKind::Tun,
            InfoKind::Vlan,
            InfoKind::Bond,
            InfoKind::Other("of the future".into()),
        ] {
            assert!(link(Some(kind.clone()), up).leads_out, "{kind:?}");
        }
        for kind in [InfoKind::Veth, InfoKind::Bridge, InfoKind::Dummy, InfoKind::Ifb, InfoKind::Netkit] {
            assert!(!link(Some(kind.clone()), up).leads_out, "{kind:?}");
        }
    }
}
