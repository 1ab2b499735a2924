//! The flowtables of nftables, in all tables: the connections that they have taken over do not pass the forward hook.

use wireloom_plan::bypass::{Device, FlowTable};

use super::netlink::{self, Generation, attribute, first_attribute, nested, text};
use crate::error::Cause;

/// Reads the flowtables, and remembers them.
#[derive(Default)]
pub(crate) struct FlowTables {
    /// The last observation, and the generation of nftables in which it was made.
    seen: Option<(Generation, Vec<FlowTable>)>,
}

impl FlowTables {
    /// Asks for them only when something of nftables has changed.
    pub(crate) fn observe(&mut self) -> Result<Vec<FlowTable>, Cause> {
        const GET_FLOWTABLE: u16 = 23;
        // Read first: any later change leads to another generation.
        let Some(generation) = netlink::generation()? else { return Ok(Vec::new()) };
        match &self.seen {
            Some((seen, tables)) if *seen == generation => Ok(tables.clone()),
            _ => {
                let dumped = netlink::dump(GET_FLOWTABLE)?;
                let tables: Vec<FlowTable> = dumped.iter().filter_map(|payload| decode(payload)).collect();
                self.seen = Some((generation, tables.clone()));
                Ok(tables)
            }
        }
    }
}

/// `NFTA_FLOWTABLE_…`: the family is in the header, the table's name in the first attribute. `None` without a name.
pub(super) fn decode(payload: &[u8]) -> Option<FlowTable> {
    const NAME: u16 = 2;
    const HOOK: u16 = 3;
    // NFPROTO_… of include/uapi/linux/netfilter.h: the only families that may have flowtables.
    let family = match payload.first()? {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        _ => return None,
    };
    Some(FlowTable {
        family: family.to_owned(),
        table: name_of(first_attribute(payload)?),
        name: name_of(attribute(payload, NAME)?),
        devices: attribute(payload, HOOK).into_iter().flat_map(devices).collect(),
    })
}

/// `NFTA_FLOWTABLE_HOOK_DEVS`
fn devices(hook: &[u8]) -> impl Iterator<Item = Device> {
    const DEVICES: u16 = 3;
    let lists = nested(hook).filter(|(kind, _)| *kind == DEVICES);
    lists.flat_map(|(_, list)| nested(list)).filter_map(|(kind, name)| device(kind, name))
}

/// `NFTA_DEVICE_NAME` and `NFTA_DEVICE_PREFIX`. Linux 6.16 and 6.17 have no attribute for prefixes: there, a name
/// without a closing zero is one.
fn device(kind: u16, name: &[u8]) -> Option<Device> {
    match kind {
        1 if name.ends_with(b"\0") => Some(Device::Name(name_of(name))),
        1 | 2 => Some(Device::Prefix(name_of(name))),
        _ => None,
    }
}

fn name_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(text(bytes)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((4 + value.len() as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// What `nf_tables_fill_flowtable_info` of net/netfilter/nf_tables_api.c writes.
    fn flow_table(family: u8, devices: &[(u16, &[u8])]) -> Vec<u8> {
        const NESTED: u16 = 1 << 15;
        let devices: Vec<u8> = devices.iter().flat_map(|(kind, name)| attribute(*kind, name)).collect();
        let (number, priority) = (0_u32.to_be_bytes(), (-5_i32).to_be_bytes());
        let hook = [attribute(1, &number), attribute(2, &priority), attribute(3 | NESTED, &devices)].concat();
        let mut payload = vec![family, 0, 0, 0];
        for (kind, value) in [
            (1, &b"filter\0"[..]),
            (2, b"fast\0"),
            (5, &2_u64.to_be_bytes()),
            (4, &1_u32.to_be_bytes()),
            (7, &0_u32.to_be_bytes()),
            (3 | NESTED, &hook),
        ] {
            payload.extend(attribute(kind, value));
        }
        payload
    }

    #[test]
    fn a_flowtable_is_read_with_its_devices() {
        for (family, word) in [(1, "inet"), (2, "ip"), (10, "ip6")] {
            let names: [(u16, &[u8]); 4] = [(1, b"eth0\0"), (1, b"cali"), (2, b"veth\0"), (9, b"?\0")];
            let devices =
                [Device::Name("eth0".into()), Device::Prefix("cali".into()), Device::Prefix("veth".into())];
            let expected = FlowTable {
                family: word.into(),
                table: "filter".into(),
                name: "fast".into(),
                devices: devices.into(),
            };
            assert_eq!(decode(&flow_table(family, &names)), Some(expected));
        }
        assert_eq!(decode(&flow_table(7, &[])), None, "no such family");
        assert!(decode(&flow_table(1, &[])).unwrap().devices.is_empty());
    }

    #[test]
    fn a_truncated_message_is_no_panic() {
        let whole = flow_table(1, &[(1, b"eth0\0")]);
        for cut in 0..whole.len() {
            let read = decode(&whole[..cut]);
            assert!(read.is_none_or(|read| read.devices.len() <= 1));
        }
    }
}
