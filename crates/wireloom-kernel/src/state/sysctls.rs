//! `sysctls.json`: the values of sysctls before we changed them.

use std::{collections::BTreeMap, io};

use wireloom_plan::{settings::is_interface_name, sysctl::UnderlaySysctl};

use super::{
    StateDir,
    record::{Record, RecordError, from_json},
};

pub(super) const SYSCTLS: Record<SavedSysctls> = Record {
    file: "sysctls.json",
    if_lost: "the values from before the first start, which it held, are not restored; check \
              net.ipv4.conf.*.{rp_filter,src_valid_mark,send_redirects}",
    parse: |text| {
        let saved: SavedSysctls = from_json(text)?;
        match saved.keys().find(|interface| !is_interface_name(interface)) {
            Some(other) => Err(format!("{other:?} is not an interface name")),
            None => Ok(saved),
        }
    },
    format: |saved| Ok(serde_json::to_vec_pretty(saved)?),
};

/// The values of sysctls before their first change, by interface.
pub(crate) type SavedSysctls = BTreeMap<String, BTreeMap<UnderlaySysctl, u8>>;

impl StateDir {
    /// The values of sysctls before we changed them.
    ///
    /// # Errors
    /// [`RecordError`]
    pub(crate) fn saved_sysctls(&self) -> Result<SavedSysctls, RecordError> {
        Ok(SYSCTLS.read(&self.path)?.unwrap_or_default())
    }

    /// Saves them; they are on disk when it returns.
    ///
    /// # Errors
    /// The operating system's error.
    pub(crate) fn save_sysctls(&self, saved: &SavedSysctls) -> io::Result<()> {
        if saved.is_empty() {
            return SYSCTLS.remove(&self.path);
        }
        self.create()?;
        SYSCTLS.write(&self.path, saved)
    }
}
