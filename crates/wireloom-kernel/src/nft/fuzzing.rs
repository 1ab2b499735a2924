//! Doors for `fuzz/`.

use wireloom_plan::{
    bypass::FlowTable,
    health::{DroppingChain, MarkUser},
};

use super::{flow_tables, listing, netlink, others::Others, saved};

/// Reads a listing of our table, and returns the script that makes the table that it stands for; `None` when the table
/// holds anything but what we write.
#[must_use]
pub fn script_of_listing(json: &[u8], interface: &str) -> Option<String> {
    let table = listing::parse(json, interface);
    let firewall = table.firewall.as_ref().filter(|firewall| !firewall.altered)?;
    Some(saved::script_of(&table, firewall, interface))
}

/// Whether a saved script is taken for one that an agent wrote.
#[must_use]
pub fn is_saved_script(script: String) -> bool {
    saved::Scripts::of(script).is_some()
}

/// What is found in the payloads of chains that the kernel lists.
#[must_use]
pub fn others(chains: &[Vec<u8>]) -> (Vec<DroppingChain>, Vec<MarkUser>) {
    let Others { droppers, mark_users } = Others::of(chains);
    (droppers.into_iter().collect(), mark_users.into_iter().collect())
}

/// The flowtable in a payload.
#[must_use]
pub fn flow_table(payload: &[u8]) -> Option<FlowTable> {
    flow_tables::decode(payload)
}

/// The first attribute of a payload, by which tables are told apart.
#[must_use]
pub fn first_attribute(payload: &[u8]) -> Option<&[u8]> {
    netlink::first_attribute(payload)
}
