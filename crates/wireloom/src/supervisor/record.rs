//! What the next supervisor is to know if this one is killed: the device that ran.

use std::{fs, io, path::PathBuf};

use wireloom_kernel::{
    state::{read_file, remove_if_there},
    supervisor::Request,
};

/// The file that has the request for the device, in a directory that only our user can write to.
pub(super) struct Record {
    path: PathBuf,
    /// The arguments that are in it.
    kept: Option<Vec<String>>,
}

impl Record {
    /// Opens it. Also returns the arguments of the device that ran when the supervisor before was killed.
    pub(super) fn open(path: PathBuf) -> (Self, Option<Vec<String>>) {
        let found = match read_file(&path) {
            Ok(found) => found.and_then(|text| serde_json::from_slice(&text).ok()),
            Err(error) => {
                tracing::warn!("cannot read {}: {error}", path.display());
                None
            }
        };
        let arguments = match found {
            Some(Request::Run { arguments, .. }) => Some(arguments),
            _ => None,
        };
        (Self { path, kept: arguments.clone() }, arguments)
    }

    /// Has it say which device is wanted. It outlives this process, not a power cut, so that no disk is waited for.
    pub(super) fn keep(&mut self, wanted: Option<&[String]>) {
        if self.kept.as_deref() == wanted {
            return;
        }
        if let Err(error) = self.write(wanted) {
            tracing::warn!("cannot write {}: {error}", self.path.display());
        }
        self.kept = wanted.map(<[String]>::to_vec);
    }

    fn write(&self, wanted: Option<&[String]>) -> io::Result<()> {
        let Some(arguments) = wanted else { return remove_if_there(&self.path) };
        let request = Request::Run { arguments: arguments.to_vec(), take_over: false };
        let unfinished = self.path.with_extension("unfinished");
        fs::write(&unfinished, serde_json::to_vec(&request)?)?;
        fs::rename(&unfinished, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_supervisor_reads_what_this_one_wanted_last() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.json");
        let open = || Record::open(path.clone());
        let (mut record, found) = open();
        assert_eq!(found, None);
        let arguments = vec!["--persistent".to_owned(), "wg0".to_owned()];
        record.keep(Some(&arguments));
        assert_eq!(open().1.as_ref(), Some(&arguments));
        // It is tried, and not wanted until it is ready.
        let (mut record, _) = open();
        record.keep(None);
        assert!(fs::read_dir(directory.path()).unwrap().next().is_none());
        record.keep(Some(&arguments));
        assert_eq!(open().1, Some(arguments));
        for nonsense in ["", "{\"stop\":{}}", "{\"run\":{\"arguments\":[1]}}"] {
            fs::write(&path, nonsense).unwrap();
            assert_eq!(open().1, None, "{nonsense}");
        }
    }
}
