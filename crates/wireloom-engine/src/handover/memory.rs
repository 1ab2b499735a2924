//! The state on its way from one process to the other: memory without a name, which is overwritten when it has been
//! read.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use nix::{
    errno::Errno,
    sys::memfd::{MFdFlags, memfd_create},
};
use zeroize::Zeroizing;

/// The longest state in bytes. 100,000 peers with three sessions each need less.
const MAX_STATE: u64 = 1 << 30;
/// How much is overwritten at once, in bytes.
const WIPE: usize = 64 << 10;

/// A file in memory, overwritten with zeros on drop: whoever else has it open finds nothing any more.
pub(crate) struct SecretFile {
    file: File,
    len: u64,
}

impl SecretFile {
    /// A file with these contents.
    ///
    /// # Errors
    /// When there is no memory for it; a later attempt may succeed.
    pub(crate) fn new(contents: &[u8]) -> io::Result<Self> {
        let file = File::from(create()?);
        // From here on a failure wipes what was written.
        let mut secret = Self { file, len: contents.len() as u64 };
        secret.file.write_all(contents)?;
        Ok(secret)
    }

    /// How many bytes it has.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }
}

impl AsFd for SecretFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        if let Err(error) = wipe(&self.file, self.len) {
            tracing::warn!("cannot overwrite the state that was handed over: {error}");
        }
    }
}

/// Reads the `len` bytes of a file that another process has sent, and overwrites them with zeros, also when reading
/// fails.
///
/// It is read, not mapped: the sender can cut the file off, and a process that touches a page that is no more dies.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when it is longer than 1 GiB, [`io::ErrorKind::UnexpectedEof`] when it is shorter
/// than `len`. Otherwise the system's error. The attempt is over.
pub(crate) fn read_and_wipe(file: OwnedFd, len: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    if len > MAX_STATE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the state is longer than 1 GiB"));
    }
    let secret = SecretFile { file: File::from(file), len };
    // Before the memory is reserved: a length that nothing stands behind costs nothing.
    if secret.file.metadata()?.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut contents = Zeroizing::new(vec![0; len as usize]);
    secret.file.read_exact_at(&mut contents, 0)?;
    Ok(contents)
}

fn create() -> io::Result<OwnedFd> {
    // nix does not know this one, which Linux has since 6.3. Without it the kernel may warn, or refuse
    // (`vm.memfd_noexec`).
    let never_run = MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    let name = c"wireloom-handover";
    match memfd_create(name, MFdFlags::MFD_CLOEXEC | never_run) {
        Err(Errno::EINVAL) => memfd_create(name, MFdFlags::MFD_CLOEXEC),
        outcome => outcome,
    }
    .map_err(Into::into)
}

/// Overwrites the first `len` bytes, as far as the file has them.
fn wipe(file: &File, len: u64) -> io::Result<()> {
    let zeros = vec![0; WIPE];
    let end = len.min(file.metadata()?.len());
    let mut at = 0;
    while at < end {
        let part = (end - at).min(WIPE as u64);
        file.write_all_at(&zeros[..part as usize], at)?;
        at += part;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().expect("a file").len() as usize];
        file.read_exact_at(&mut bytes, 0).expect("it can be read");
        bytes
    }

    fn duplicate(secret: &SecretFile) -> OwnedFd {
        secret.as_fd().try_clone_to_owned().expect("a duplicate")
    }

    #[test]
    fn what_was_read_is_gone_for_all_who_have_the_file() {
        let sent: Vec<u8> = (0..3 * WIPE + 7).map(|number| number as u8 | 1).collect();
        let secret = SecretFile::new(&sent).expect("memory");
        let witness = File::from(duplicate(&secret));
        let received = read_and_wipe(duplicate(&secret), secret.len()).expect("it arrives");
        assert_eq!(*received, sent);
        assert!(contents(&witness).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_sender_that_gives_up_overwrites_it() {
        let secret = SecretFile::new(&[7; 100]).expect("memory");
        let witness = File::from(duplicate(&secret));
        drop(secret);
        assert_eq!(contents(&witness), [0; 100]);
    }

    #[test]
    fn a_file_that_was_cut_off_is_an_error_and_what_is_left_is_overwritten() {
        let secret = SecretFile::new(&[7; 100]).expect("memory");
        let witness = File::from(duplicate(&secret));
        secret.file.set_len(60).expect("it is cut");
        let error = read_and_wipe(duplicate(&secret), 100).expect_err("it is too short");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(contents(&witness), [0; 60]);
    }

    #[test]
    fn a_length_without_bytes_is_an_error() {
        let file = || OwnedFd::from(File::open("/dev/null").expect("it is there"));
        assert_eq!(
            read_and_wipe(file(), MAX_STATE + 1).expect_err("it is too long").kind(),
            io::ErrorKind::InvalidData
        );
        assert_eq!(
            read_and_wipe(file(), MAX_STATE).expect_err("it is too short").kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
