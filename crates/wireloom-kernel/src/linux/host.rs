//! Which addresses this machine has, for its own record.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_route::link::InfoKind;
use wireloom_plan::own_record::{HostAddress, Place};

use super::Linux;
use crate::{
    error::{Attempt, Error},
    rtnetlink::{
        address,
        link::{self, Link},
        route,
    },
};

impl Linux {
    /// The addresses of this machine that others may know: not those of our interface, loopback and link-local ones,
    /// nor those that go by themselves (temporary, deprecated) or may be somebody else's (tentative).
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn host_addresses(&mut self) -> Result<BTreeSet<HostAddress>, Error> {
        let links = link::observe(&mut self.rtnetlink).attempt(|| "list the interfaces".into())?;
        let assigned = address::observe(&mut self.rtnetlink).attempt(|| "list the addresses".into())?;
        let tables = [route::MAIN].into();
        let onward = route::observe_onward(&mut self.rtnetlink, &tables)
            .attempt(|| "list the default routes".into())?;
        let by_index: BTreeMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
        let lasting =
            assigned.iter().filter(|it| it.usable && it.lasting && !it.address.addr().is_loopback());
        let addresses = lasting.filter_map(|it| {
            let link = by_index.get(&it.interface)?;
            let is_ours = link.name == self.interface;
            (!is_ours && !link.is_loopback).then(|| HostAddress {
                place: if onward.contains(&it.interface) { Place::DefaultRoute } else { place(link) },
                address: it.address,
                interface: link.name.clone(),
            })
        });
        Ok(addresses.collect())
    }
}

/// What an interface connects by its kind. Network cards have no kind; the kinds named here carry a host's or a
/// container's own traffic.
fn place(link: &Link) -> Place {
    match &link.kind {
        None
        | Some(
            InfoKind::Veth
            | InfoKind::Netkit
            | InfoKind::Vlan
            | InfoKind::Bond
            | InfoKind::MacVlan
            | InfoKind::IpVlan,
        ) => Place::Network,
        Some(InfoKind::Other(name)) if name == "team" => Place::Network,
        Some(_) => Place::Inside,
    }
}
