//! `creating`: the interface that an agent is just creating.

use std::io;

use wireloom_plan::settings::is_interface_name;

use super::{
    StateDir,
    record::{Record, RecordError},
};

pub(super) const CREATING: Record<String> = Record {
    file: "creating",
    if_lost: "an interface that a killed agent was just creating may be left, which `ip link delete` removes",
    parse: |text| match str::from_utf8(text) {
        Ok(interface) if is_interface_name(interface) => Ok(interface.to_owned()),
        _ => Err("it holds no interface name".into()),
    },
    format: |interface| Ok(interface.as_bytes().to_vec()),
};

impl StateDir {
    /// Records that an interface is being created, for the next agent in case this one is killed before it has
    /// marked the interface as ours.
    ///
    /// # Errors
    /// The operating system's error.
    pub(crate) fn begin_creating(&self, interface: &str) -> io::Result<()> {
        self.create()?;
        CREATING.write(&self.path, &interface.to_owned())
    }

    /// The name of the interface that a killed agent was creating.
    ///
    /// # Errors
    /// [`RecordError`]
    pub(crate) fn creating(&self) -> Result<Option<String>, RecordError> {
        CREATING.read(&self.path)
    }

    /// Records that the interface is created and marked.
    ///
    /// # Errors
    /// The operating system's error.
    pub(crate) fn end_creating(&self) -> io::Result<()> {
        CREATING.remove(&self.path)
    }
}
