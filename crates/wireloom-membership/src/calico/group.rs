//! In which of its two API groups Calico keeps its objects.
//!
//! `crd.projectcalico.org/v1` is the old one. With it, an API server of Calico's may serve the same objects once more
//! as `projectcalico.org/v3`. From Calico 3.32 on, that group can be CRDs itself, and a `DatastoreMigration` copies the
//! objects from the old group to the new one (kube-controllers/pkg/apis/migration/v1/types.go of Calico).

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::store::Object;

/// One of Calico's API groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    /// `crd.projectcalico.org/v1`
    V1,
    /// `projectcalico.org/v3`
    V3,
}

impl Group {
    /// The name of the group, and its version.
    pub(crate) fn group_and_version(self) -> (&'static str, &'static str) {
        match self {
            Self::V1 => ("crd.projectcalico.org", "v1"),
            Self::V3 => ("projectcalico.org", "v3"),
        }
    }
}

/// How far the move from the old group to the new one is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Migration {
    /// Nobody moves anything.
    #[default]
    None,
    /// Objects are being copied, or copying failed. The old group counts, and nobody writes to it.
    Copying,
    /// All is copied. Calico's programs change over one by one, and write to the new group only.
    Copied,
}

impl Migration {
    /// What these DatastoreMigrations (by name) say; Calico looks at the one that is called `v1-to-v3`.
    pub(crate) fn of(objects: &BTreeMap<String, Object>) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct DatastoreMigration {
            status: Status,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Status {
            phase: String,
        }
        let Some(object) = objects.get("v1-to-v3") else { return Self::None };
        let parsed: DatastoreMigration = serde_json::from_str(&object.value).unwrap_or_default();
        match parsed.status.phase.as_str() {
            "Converged" | "Complete" => Self::Copied,
            _ => Self::Copying,
        }
    }
}

/// The group that counts, if the API server serves these. The old one, as long as it is there: what is served beside it
/// is a view of it, or a copy in the making. It goes when a migration that is complete is deleted. `None` without
/// Calico.
pub(crate) fn chosen(v1_is_served: bool, v3_is_served: bool, migration: Migration) -> Option<Group> {
    match (v1_is_served, v3_is_served) {
        (true, true) if migration == Migration::Copied => Some(Group::V3),
        (true, _) => Some(Group::V1),
        (false, true) => Some(Group::V3),
        (false, false) => None,
    }
}
