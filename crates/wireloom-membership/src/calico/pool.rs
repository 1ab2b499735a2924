//! IPPools: the ranges that addresses of pods come from.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::Deserialize;

use super::affinity::cidr;
use crate::{Complaint, store::Object};

#[derive(Deserialize)]
struct IpPool {
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    cidr: String,
    #[serde(default)]
    allowed_uses: Option<Vec<String>>,
}

/// The pools that pods have addresses from by these IPPools (by name), and what of them is left out. A disabled one
/// gives no new addresses, but those that it gave stay in use.
pub(crate) fn pools(objects: &BTreeMap<String, Object>) -> (BTreeSet<IpNet>, BTreeSet<Complaint>) {
    let (mut pools, mut complaints) = (BTreeSet::new(), BTreeSet::new());
    for (name, object) in objects {
        match pool(&object.value) {
            Ok(pool) => pools.extend(pool),
            Err(why) => {
                let what = format!("this IPPool of Calico is left out: {why}");
                complaints.insert(Complaint { record: name.clone(), what });
            }
        }
    }
    (pools, complaints)
}

/// `None`: pods get no addresses from it.
fn pool(value: &str) -> Result<Option<IpNet>, String> {
    let IpPool { spec } = serde_json::from_str(value).map_err(|error| error.to_string())?;
    // "If not specified or empty, defaults to ["Tunnel", "Workload"]" (api/pkg/apis/projectcalico/v3/ippool.go).
    let uses = spec.allowed_uses.unwrap_or_default();
    let is_for_pods = uses.is_empty() || uses.iter().any(|one| one == "Workload");
    if is_for_pods { cidr(&spec.cidr).map(Some) } else { Ok(None) }
}
