//! Which interfaces lead to other machines.

use std::collections::{BTreeMap, BTreeSet};

use wireloom_plan::{routing::Rule, sysctl::UnderlaySysctl};

use super::Linux;
use crate::{
    error::{Attempt, Error},
    rtnetlink::{link::Link, route},
    sysctl,
};

impl Linux {
    /// Those other than ours that lead to other machines by their kind, because they carry one of this node's own
    /// addresses (`with_own`, by index), or because a default route leads out of them; and
    /// the bridges with such a port. By name, with `rp_filter` of each.
    pub(super) fn observe_outward(
        &mut self,
        rules: &[Rule],
        with_own: &BTreeSet<u32>,
        mut links: Vec<Link>,
    ) -> Result<BTreeMap<String, u8>, Error> {
        links.retain(|link| link.name != self.interface);
        let by_port: BTreeSet<u32> =
            links.iter().filter(|link| link.leads_out).filter_map(|link| link.port_of).collect();
        // A bridge, not its ports, receives the packets.
        links.retain(|link| link.port_of.is_none());
        let leads_out =
            |link: &Link| link.leads_out || with_own.contains(&link.index) || by_port.contains(&link.index);
        let (mut outward, others): (Vec<Link>, Vec<Link>) = links.into_iter().partition(leads_out);
        if !others.is_empty() {
            // The tables that are in use. Ours has routes out of our interface only, and may have thousands.
            let mut tables: BTreeSet<u32> = rules.iter().map(|rule| rule.table).collect();
            tables.extend([route::MAIN, route::DEFAULT]);
            tables.retain(|table| ![0, self.table, route::LOCAL].contains(table));
            let onward = route::observe_onward(&mut self.rtnetlink, &tables)
                .attempt(|| "list the default routes".into())?;
            outward.extend(others.into_iter().filter(|link| onward.contains(&link.index)));
        }
        let names = outward.into_iter().map(|link| link.name).filter(|name| can_be_quoted(name));
        // Absent when the interface was removed this moment.
        names
            .map(|name| Ok((name.clone(), sysctl::read(&name, UnderlaySysctl::RpFilter)?.unwrap_or(0))))
            .collect()
    }
}

/// Whether nft can be given the name: its strings have no way to write a quotation mark.
fn can_be_quoted(name: &str) -> bool {
    !name.contains('"')
}
