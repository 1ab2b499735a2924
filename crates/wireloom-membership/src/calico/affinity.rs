//! BlockAffinities: which blocks of addresses belong to which host.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::Deserialize;

use crate::{Complaint, store::Object};

/// A block of addresses, and the host that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Block {
    pub(crate) host: String,
    pub(crate) cidr: IpNet,
}

#[derive(Deserialize)]
struct BlockAffinity {
    spec: Spec,
}

#[derive(Deserialize)]
struct Spec {
    node: String,
    cidr: String,
    #[serde(default)]
    state: String,
    /// Absent in objects of Calico before 3.30, which knew hosts only.
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    deleted: Deleted,
}

/// `"true"` in `crd.projectcalico.org/v1`, `true` in `projectcalico.org/v3`.
#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Deleted {
    Bool(bool),
    Text(String),
    #[default]
    Absent,
}

/// The blocks that hosts have by these BlockAffinities (by name), and what of them is left out. With `host`, those of
/// this host alone.
pub(crate) fn blocks_of(
    host: Option<&str>,
    affinities: &BTreeMap<String, Object>,
) -> (BTreeSet<Block>, BTreeSet<Complaint>) {
    let (mut blocks, mut complaints) = (BTreeSet::new(), BTreeSet::new());
    for (name, object) in affinities {
        match block(&object.value) {
            Ok(Some(block)) if host.is_none_or(|host| host == block.host) => {
                blocks.insert(block);
            }
            Ok(_) => {}
            Err(why) => {
                let what = format!("this BlockAffinity of Calico is left out: {why}");
                complaints.insert(Complaint { record: name.clone(), what });
            }
        }
    }
    (blocks, complaints)
}

/// `None`: no host may use the block by this affinity (yet, or any more).
fn block(value: &str) -> Result<Option<Block>, String> {
    let BlockAffinity { spec } = serde_json::from_str(value).map_err(|error| error.to_string())?;
    let is_host = spec.kind.as_deref().is_none_or(|kind| matches!(kind, "" | "host"));
    let is_deleted = match &spec.deleted {
        Deleted::Bool(deleted) => *deleted,
        Deleted::Text(deleted) => deleted == "true",
        Deleted::Absent => false,
    };
    if !is_host || is_deleted || spec.state != "confirmed" {
        return Ok(None);
    }
    Ok(Some(Block { cidr: cidr(&spec.cidr)?, host: spec.node }))
}

/// A CIDR without host bits.
pub(super) fn cidr(text: &str) -> Result<IpNet, String> {
    match text.parse::<IpNet>() {
        Ok(cidr) if cidr == cidr.trunc() => Ok(cidr),
        Ok(cidr) => Err(format!("its CIDR {cidr} has host bits set")),
        Err(_) => Err(format!("{text:?} is not a CIDR")),
    }
}
