//! What the next supervisor is to know if this one is killed or restarted: the device that ran.

use std::{fs, io, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use wireloom_kernel::state::{read_file, remove_if_there};

/// How long after a failure it is written again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The file that says which device is wanted, in a directory that only our user can write to.
pub(super) struct Record {
    path: PathBuf,
    /// What is in it.
    kept: Option<Wanted>,
    /// It says what is wanted. Otherwise it cannot be read, or could not be written.
    is_right: bool,
}

/// A device that is wanted. Versions after this one may add fields, which are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wanted {
    /// Its arguments.
    pub(super) arguments: Vec<String>,
    /// The supervisor was asked to end, to be stopped or to be restarted.
    #[serde(default, rename = "ended", skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_ended: bool,
}

impl Record {
    /// Opens it. Also returns the device that ran when the supervisor before ended.
    pub(super) fn open(path: PathBuf) -> (Self, Option<Wanted>) {
        let found = read_file(&path)
            .and_then(|text| Ok(text.map(|text| serde_json::from_slice(&text)).transpose()?));
        let is_right = found.is_ok();
        let found = found.unwrap_or_else(|error| {
            tracing::warn!("cannot read {}, so no device is started again: {error}", path.display());
            None
        });
        (Self { path, kept: found.clone(), is_right }, found)
    }

    /// Has it say which device is wanted. It outlives this process, not a power cut, so that no disk is waited for.
    /// If that fails, it is due again after [`Self::until_retry`].
    pub(super) fn keep(&mut self, wanted: Option<Wanted>) {
        if self.is_right && self.kept == wanted {
            return;
        }
        match self.write(wanted.as_ref()) {
            Ok(()) => (self.kept, self.is_right) = (wanted, true),
            Err(error) => {
                if self.is_right {
                    tracing::warn!("cannot write {}: {error}", self.path.display());
                }
                self.is_right = false;
            }
        }
    }

    /// How long to wait at most before it is written again; `None`: it says what is wanted.
    pub(super) fn until_retry(&self) -> Option<Duration> {
        (!self.is_right).then_some(RETRY_AFTER)
    }

    fn write(&self, wanted: Option<&Wanted>) -> io::Result<()> {
        let Some(wanted) = wanted else { return remove_if_there(&self.path) };
        let unfinished = self.path.with_extension("unfinished");
        fs::write(&unfinished, serde_json::to_vec(wanted)?)?;
        fs::rename(&unfinished, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(arguments: &[&str]) -> Option<Wanted> {
        Some(Wanted { arguments: arguments.iter().map(|&word| word.to_owned()).collect(), is_ended: false })
    }

    #[test]
    fn the_next_supervisor_reads_what_this_one_wanted_last() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.json");
        let open = || Record::open(path.clone());
        let (mut record, found) = open();
        assert_eq!(found, None);
        let device = wanted(&["--persistent", "wg0"]);
        record.keep(device.clone());
        assert_eq!(open().1, device);
        // It is tried, and not wanted until it is ready.
        let (mut record, _) = open();
        record.keep(None);
        assert!(fs::read_dir(directory.path()).unwrap().next().is_none());
        record.keep(device.clone());
        assert_eq!(open().1, device);
        let ended = device.map(|device| Wanted { is_ended: true, ..device });
        record.keep(ended.clone());
        assert_eq!(open().1, ended);
        fs::write(&path, "{\"arguments\":[\"wg0\"],\"later\":{}}").unwrap();
        assert_eq!(open().1, wanted(&["wg0"]), "of a version after this one");
        for nonsense in ["", "{\"stop\":{}}", "{\"arguments\":[1]}"] {
            fs::write(&path, nonsense).unwrap();
            let (mut record, found) = open();
            assert_eq!(found, None, "{nonsense}");
            record.keep(None);
            assert!(!path.exists(), "it is not there for the next one");
        }
    }

    #[test]
    fn what_could_not_be_written_is_written_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.json");
        let (mut record, _) = Record::open(path.clone());
        let (one, other) = (wanted(&["wg0"]), wanted(&["wg1"]));
        record.keep(one.clone());
        let in_the_way = directory.path().join("engine.unfinished");
        fs::create_dir(&in_the_way).unwrap();
        record.keep(other.clone());
        assert_eq!((record.until_retry(), Record::open(path.clone()).1), (Some(RETRY_AFTER), one.clone()));
        fs::remove_dir(&in_the_way).unwrap();
        record.keep(other.clone());
        assert_eq!((record.until_retry(), Record::open(path.clone()).1), (None, other));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        record.keep(None);
        assert_eq!(record.until_retry(), Some(RETRY_AFTER));
        fs::remove_dir(&path).unwrap();
        record.keep(None);
        assert_eq!(record.until_retry(), None);
        record.keep(one.clone());
        assert_eq!(Record::open(path).1, one);
    }
}
