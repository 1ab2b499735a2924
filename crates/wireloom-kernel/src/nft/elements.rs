//! The elements of sets, as `nft --json` lists them.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde_json::Value;
use wireloom_plan::{
    address_range::AddressRange,
    firewall::{GuardSet, Guarded, Source},
};

use super::{
    guard_sets,
    rules::{REFUSED, SOURCES_V4, SOURCES_V6},
    table::Table,
};

/// Reads the elements of a set into the table. `None` when one is none of ours, such as one that expires.
pub(super) fn read(set: &str, elements: &[Value], table: &mut Table) -> Option<()> {
    if set == REFUSED.name {
        for element in elements {
            let (peer, packets) = counted(element)?;
            table.refusals.peers.insert(peer.as_str()?.parse().ok()?, packets);
        }
    } else if set == SOURCES_V4.name || set == SOURCES_V6.name {
        let sources: Option<Vec<Source>> = elements.iter().map(source).collect();
        table.sources.extend(sources?);
    } else {
        let (of, _) = guard_sets::all().find(|(_, known)| known.name == set)?;
        let mut unread = BTreeMap::new();
        let counters = match of {
            GuardSet::RefusedOut => Some(&mut table.guard_counters.outgoing),
            GuardSet::RefusedIn => Some(&mut table.guard_counters.incoming),
            GuardSet::Own | GuardSet::Pools | GuardSet::Nodes | GuardSet::Exempt | GuardSet::Tolerated => {
                None
            }
        };
        let counts = counters.is_some();
        let counters = counters.unwrap_or(&mut unread);
        for element in elements {
            let (value, packets) = if counts { counted(element)? } else { (element, 0) };
            let addresses = addresses(value)?;
            counters.insert(addresses, packets);
            table.guarded.insert(Guarded { set: of, addresses });
        }
    }
    Some(())
}

/// `{"elem": {"val": VALUE, "counter": {"packets": NUMBER, …}}}`
fn counted(element: &Value) -> Option<(&Value, u64)> {
    Some((element.pointer("/elem/val")?, element.pointer("/elem/counter/packets")?.as_u64()?))
}

/// `{"concat": [LINK ADDRESS, ADDRESSES]}`
fn source(element: &Value) -> Option<Source> {
    let [peer, range] = element.get("concat")?.as_array()?.as_slice() else { return None };
    Some(Source { peer: peer.as_str()?.parse().ok()?, addresses: addresses(range)? })
}

/// `ADDRESS`, `{"prefix": {"addr": ADDRESS, "len": LENGTH}}` or `{"range": [ADDRESS, ADDRESS]}`
fn addresses(value: &Value) -> Option<AddressRange> {
    let address = |value: &Value| value.as_str()?.parse().ok();
    if let Some(prefix) = value.get("prefix") {
        let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
        Some(IpNet::new(address(prefix.get("addr")?)?, length).ok()?.into())
    } else if let Some(range) = value.get("range") {
        AddressRange::new(address(range.get(0)?)?, address(range.get(1)?)?)
    } else {
        Some(AddressRange::from(address(value)?))
    }
}
