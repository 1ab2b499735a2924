//! All interfaces of the machine, and which of them lead to other machines by their kind.

use std::collections::BTreeSet;

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        InfoBridge, InfoData, InfoKind, InfoPortKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo,
        LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
    },
};
use wireloom_plan::routing::Family;

use super::Rtnetlink;
use crate::error::Cause;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Whether it leads to other machines by its kind. The others may do so too, if routes say so.
    pub(crate) leads_out: bool,
    /// Whether it leads to this machine alone: `lo`.
    pub(crate) is_loopback: bool,
    /// The index of the interface to which it hands all that it receives: a bridge, a bond, a team.
    pub(crate) port_of: Option<u32>,
    /// `None` for network cards and `lo`.
    pub(crate) kind: Option<InfoKind>,
    /// Whether an XDP program is on it.
    pub(crate) xdp: bool,
    /// The families whose packets a bridge shows to the firewall, whatever the sysctls say.
    pub(crate) filtered: BTreeSet<Family>,
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
    let (mut xdp, mut filtered) = (false, BTreeSet::new());
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value.clone()),
            LinkAttribute::Controller(index) => controller = Some(*index),
            LinkAttribute::Xdp(attributes) => xdp = attributes.iter().any(has_program),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(value) => kind = Some(value),
                        LinkInfo::PortKind(value) => port_kind = Some(value),
                        LinkInfo::Data(InfoData::Bridge(settings)) => {
                            filtered = settings.iter().filter_map(filters).collect();
                        }
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
    // It connects a virtual machine, unless routes or addresses say otherwise.
    let is_tap = kind == Some(&InfoKind::Tun) && header.link_layer_type == LinkLayerType::Ether;
    // A VRF's ports keep what they receive.
    let takes_all = matches!(port_kind, Some(InfoPortKind::Bridge | InfoPortKind::Bond | InfoPortKind::Team));
    Some(Link {
        index: header.index,
        name: name?,
        leads_out: !loopback && !is_tap && leads_out(kind),
        is_loopback: loopback,
        port_of: controller.filter(|_| takes_all),
        kind: kind.cloned(),
        xdp,
        filtered,
    })
}

fn has_program(attribute: &LinkXdp) -> bool {
    matches!(attribute, LinkXdp::Attached(mode) if *mode != XdpAttached::None)
}

/// The family whose packets a bridge with this setting shows to the firewall.
fn filters(setting: &InfoBridge) -> Option<Family> {
    match setting {
        InfoBridge::NfCallIpTables(true) => Some(Family::V4),
        InfoBridge::NfCallIp6Tables(true) => Some(Family::V6),
        _ => None,
    }
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
    use netlink_packet_core::{Emitable, Parseable};

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

    #[test]
    fn a_tap_connects_a_virtual_machine() {
        let mut message = LinkMessage::default();
        message.header.link_layer_type = LinkLayerType::Ether;
        message.attributes = vec![
            LinkAttribute::IfName("vnet0".into()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Tun)]),
        ];
        assert!(!decode(&message).unwrap().leads_out);
    }

    #[test]
    fn programs_and_the_settings_of_bridges_are_read() {
        let read = |attribute: LinkAttribute| {
            let mut message = LinkMessage::default();
            message.attributes = vec![LinkAttribute::IfName("br0".into()), attribute];
            // As the kernel writes it.
            let mut bytes = vec![0; message.buffer_len()];
            message.emit(&mut bytes);
            decode(&LinkMessage::parse(bytes.as_slice()).unwrap()).unwrap()
        };
        let xdp = |mode| read(LinkAttribute::Xdp(vec![LinkXdp::Attached(mode), LinkXdp::ProgId(7)])).xdp;
        assert!(!xdp(XdpAttached::None));
        for mode in
            [XdpAttached::Driver, XdpAttached::SocketBuffer, XdpAttached::Hardware, XdpAttached::Multiple]
        {
            assert!(xdp(mode), "{mode:?}");
        }
        let bridge = |settings: Vec<InfoBridge>| {
            let data = LinkInfo::Data(InfoData::Bridge(settings));
            read(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge), data])).filtered
        };
        let settings = vec![InfoBridge::NfCallIpTables(false), InfoBridge::NfCallIp6Tables(true)];
        assert_eq!(bridge(settings), [Family::V6].into());
        assert_eq!(bridge(vec![InfoBridge::NfCallIpTables(true)]), [Family::V4].into());
    }
}
