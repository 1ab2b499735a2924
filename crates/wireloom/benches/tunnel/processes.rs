//! The cost of a tunnel: processor time and memory.

use std::{collections::BTreeSet, fs, io, time::Duration};

use anyhow::Context as _;
use wireloom_lab::Space;

use crate::measuring::machine::ticks;

/// Some processes of a machine.
#[derive(Debug, Clone)]
pub(crate) struct Processes {
    space: Space,
    ids: BTreeSet<u32>,
}

impl Processes {
    pub(crate) fn none(space: &Space) -> Self {
        Self { space: space.clone(), ids: BTreeSet::new() }
    }

    /// All processes of a machine.
    pub(crate) fn all(space: &Space) -> anyhow::Result<Self> {
        let names =
            || -> io::Result<Vec<_>> { fs::read_dir("/proc")?.map(|entry| Ok(entry?.file_name())).collect() };
        let ids = space.inside(names)??.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
        Ok(Self { space: space.clone(), ids })
    }

    pub(crate) fn without(mut self, others: &Self) -> Self {
        self.ids.retain(|id| !others.ids.contains(id));
        self
    }

    /// The processor time that they have used so far, in user mode and in the kernel.
    pub(crate) fn cpu_time(&self) -> anyhow::Result<Duration> {
        let mut sum = 0;
        for stat in self.read("stat")? {
            // proc(5): the second field, the name, may have spaces; utime and stime are the 14th and 15th.
            let fields =
                stat.rsplit_once(')').map(|(_, fields)| fields).context("/proc/PID/stat has no name")?;
            for field in fields.split_whitespace().skip(11).take(2) {
                sum += field.parse::<u64>().context("/proc/PID/stat is not as proc(5) has it")?;
            }
        }
        ticks(sum)
    }

    /// Bytes of resident memory.
    pub(crate) fn memory(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for status in self.read("status")? {
            let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kibibytes = resident.and_then(|text| text.trim().strip_suffix(" kB"));
            let kibibytes = kibibytes.context("/proc/PID/status has no VmRSS")?;
            sum +=
                kibibytes.trim().parse::<u64>().context("/proc/PID/status is not as proc(5) has it")? << 10;
        }
        Ok(sum)
    }

    fn read(&self, file: &str) -> anyhow::Result<Vec<String>> {
        let texts = self.space.inside(|| {
            self.ids
                .iter()
                .map(|id| fs::read_to_string(format!("/proc/{id}/{file}")))
                .collect::<io::Result<_>>()
        })?;
        texts.context("a process of the tunnel has ended")
    }
}
