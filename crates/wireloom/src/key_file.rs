//! The files of the private key and of the mesh's preshared key: readable by their owner only, never shown. The private
//! key's is made when absent.

use std::{
    fmt,
    fs::{File, FileType},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::{fcntl::OFlag, unistd::geteuid};
use wireloom_kernel::random_key;
use wireloom_types::{KeyError, PresharedKey, PrivateKey, check_directory};
use zeroize::Zeroizing;

/// What is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// This node's private key.
    Private,
    /// The key that all nodes of the mesh share.
    Preshared,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Private => "private key",
            Self::Preshared => "preshared key",
        })
    }
}

impl Kind {
    /// What to do about something else in its place.
    fn instead(self) -> &'static str {
        match self {
            Self::Private => ", or name another one in private_key_file",
            Self::Preshared => "",
        }
    }

    /// The command that makes one.
    fn command(self) -> &'static str {
        match self {
            Self::Private => "wireloom key generate",
            Self::Preshared => "wireloom key preshared",
        }
    }
}

/// Why there is no usable key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file cannot be read or made; `action` says which.
    #[error("cannot {action} the {kind} {}: {cause}", path.display())]
    Io { kind: Kind, action: &'static str, path: PathBuf, cause: io::Error },
    /// There is no preshared key.
    #[error(
        "the preshared key {}, which the mesh names, does not exist; put the key of the other nodes there, readable by \
         root only, or make one with `wireloom key preshared`",
        path.display()
    )]
    Absent { path: PathBuf },
    /// Users other than its owner can read or write the file.
    #[error(
        "the {kind} {} is accessible to other users (mode {mode:03o}); run `chmod 600 {}`, and consider \
         making a new key",
        path.display(), path.display()
    )]
    Open { kind: Kind, path: PathBuf, mode: u32 },
    /// Another user than ours or root owns the file.
    #[error(
        "the {kind} {} belongs to the user with number {owner}, who knows it; make a new key, owned by root",
        path.display()
    )]
    Foreign { kind: Kind, path: PathBuf, owner: u32 },
    /// Others can replace the file.
    #[error(
        "the {kind} {} is in a directory that another user owns or can write to, who can replace it; move it to one \
         that only root can write to, such as /etc/wireguard",
        path.display()
    )]
    Directory { kind: Kind, path: PathBuf },
    /// There is no regular file, so it is not opened: that could wait for the other end of a FIFO, and may do anything
    /// to a device.
    #[error(
        "the {kind} {} is {found}, not a file; put a regular file there{}",
        path.display(), kind.instead()
    )]
    NotAFile { kind: Kind, path: PathBuf, found: &'static str },
    /// A new key must not replace what is there.
    #[error(
        "{} exists already, and stays as it is; name another file, or keep its key: `wireloom key public < {}` prints \
         the public one",
        path.display(), path.display()
    )]
    Taken { path: PathBuf },
    /// The file holds something else.
    #[error("{} holds no {kind}; write one with `{}`", path.display(), kind.command())]
    Malformed { kind: Kind, path: PathBuf },
}

/// Reads this node's private key; `None` when there is no file.
pub(crate) fn read(path: &Path) -> Result<Option<PrivateKey>, Error> {
    read_key(path, Kind::Private, PrivateKey::from_base64)
}

/// Reads the preshared key of the mesh. That of zeros is none (`wg` and the protocol use it for "no preshared key").
pub(crate) fn read_preshared(path: &Path) -> Result<PresharedKey, Error> {
    let key = read_key(path, Kind::Preshared, PresharedKey::from_base64)?;
    let key = key.ok_or_else(|| Error::Absent { path: path.to_owned() })?;
    if key.is_zero() {
        return Err(Error::Malformed { kind: Kind::Preshared, path: path.to_owned() });
    }
    Ok(key)
}

fn read_key<K>(path: &Path, kind: Kind, parse: fn(&str) -> Result<K, KeyError>) -> Result<Option<K>, Error> {
    let failed = |cause| Error::Io { kind, action: "read", path: path.to_owned(), cause };
    match std::fs::metadata(path) {
        Ok(metadata) => refuse_other_than_file(path, kind, metadata.file_type())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    // It may become a FIFO meanwhile.
    let opened = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    refuse_other_than_file(path, kind, metadata.file_type())?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::Open { kind, path: path.to_owned(), mode });
    }
    if ![0, geteuid().as_raw()].contains(&metadata.uid()) {
        return Err(Error::Foreign { kind, path: path.to_owned(), owner: metadata.uid() });
    }
    refuse_open_directory(path, kind)?;
    // A key is 44 characters and a line end; anything much longer is not a key.
    let mut text = Zeroizing::new(String::with_capacity(128));
    let malformed = || Error::Malformed { kind, path: path.to_owned() };
    match file.take(127).read_to_string(&mut text) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(malformed()),
        read => read.map_err(failed)?,
    };
    parse(text.trim()).map(Some).map_err(|_| malformed())
}

fn refuse_other_than_file(path: &Path, kind: Kind, found: FileType) -> Result<(), Error> {
    let found = match found {
        found if found.is_file() => return Ok(()),
        found if found.is_dir() => "a directory",
        found if found.is_fifo() => "a FIFO",
        found if found.is_socket() => "a socket",
        found if found.is_block_device() => "a block device",
        _ => "a character device",
    };
    Err(Error::NotAFile { kind, path: path.to_owned(), found })
}

/// Refuses a file that others can replace by theirs. In a directory with the sticky bit, such as Kubernetes' volumes of
/// secrets, nobody can replace files of others (unlink(2), `EPERM`).
fn refuse_open_directory(path: &Path, kind: Kind) -> Result<(), Error> {
    let directory = directory_of(path);
    let failed = |cause| Error::Io { kind, action: "read the directory of", path: path.to_owned(), cause };
    let found = std::fs::metadata(directory).map_err(failed)?;
    let others = if found.mode() & 0o1000 == 0 { 0 } else { 0o022 };
    check_directory(directory, found.uid(), found.mode() & !others, geteuid().as_raw())
        .map_err(|_| Error::Directory { kind, path: path.to_owned() })
}

/// The directory that a file is in.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if directory.as_os_str().is_empty() => Path::new("."),
        directory => directory.unwrap_or(Path::new("/")),
    }
}

/// Reads the key, or makes one when there is no file.
pub(crate) fn read_or_create(path: &Path) -> Result<PrivateKey, Error> {
    match read(path)? {
        Some(key) => Ok(key),
        None => create(path),
    }
}

/// Renames the key's file, so that there is none, and returns its new name. An older one of that name stays, too.
pub(crate) fn set_aside(path: &Path) -> Result<PathBuf, Error> {
    let failed = |cause| Error::Io { kind: Kind::Private, action: "set aside", path: path.to_owned(), cause };
    let named = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".old{number}"));
        PathBuf::from(name)
    };
    let free = (1..).map(named).find(|name| !name.exists());
    let aside = free.ok_or_else(|| failed(io::ErrorKind::AlreadyExists.into()))?;
    std::fs::rename(path, &aside).map_err(failed)?;
    Ok(aside)
}

/// Makes a key. Its file appears whole or not at all, and never replaces one that is there.
pub(crate) fn create(path: &Path) -> Result<PrivateKey, Error> {
    let failed = |cause| Error::Io { kind: Kind::Private, action: "create", path: path.to_owned(), cause };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory_of(path)).map_err(failed)?;
    refuse_open_directory(path, Kind::Private)?;
    write_new(path).map_err(|cause| match cause.kind() {
        io::ErrorKind::AlreadyExists => Error::Taken { path: path.to_owned() },
        _ => failed(cause),
    })
}

fn write_new(path: &Path) -> io::Result<PrivateKey> {
    let directory = directory_of(path);
    let key = random_key()?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    writeln!(file, "{}", *key.expose_base64())?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path)?;
    File::open(directory)?.sync_all()?;
    tracing::info!("made a private key in {}", path.display());
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    #[test]
    fn an_absent_key_is_made_once_and_readable_by_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sub/wg0.key");
        assert!(read(&path).unwrap().is_none());
        let key = read_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_or_create(&path).unwrap().public_key(), key.public_key());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_new_key_does_not_replace_one_that_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys/wg0.key");
        let key = create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        let error = create(&path).unwrap_err().to_string();
        assert!(error.contains("exists already, and stays as it is"), "{error}");
        assert_eq!(read(&path).unwrap().unwrap().public_key(), key.public_key());
    }

    #[test]
    fn a_key_that_is_set_aside_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wg0.key");
        for number in 1..3 {
            let key = read_or_create(&path).unwrap();
            let aside = set_aside(&path).unwrap();
            assert_eq!(aside, directory.path().join(format!("wg0.key.old{number}")));
            assert_eq!(read(&aside).unwrap().unwrap().public_key(), key.public_key());
            assert!(read(&path).unwrap().is_none());
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wg0.key");
        read_or_create(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let error = read(&path).unwrap_err().to_string();
        let path = path.display();
        assert_eq!(
            error,
            format!(
                "the private key {path} is accessible to other users (mode 640); run `chmod 600 {path}`, and \
                 consider making a new key"
            )
        );
    }

    #[test]
    fn a_key_that_others_can_replace_or_own_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wg0.key");
        let make = |mode| fs::set_permissions(directory.path(), Permissions::from_mode(mode)).unwrap();
        make(0o777);
        let error = read_or_create(&path).unwrap_err().to_string();
        assert!(error.contains("move it to one that only root can write to"), "{error}");
        assert!(!path.exists());
        make(0o755);
        read_or_create(&path).unwrap();
        make(0o770);
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("move it to one that only root can write to"), "{error}");
        // Where nobody can replace the files of others.
        make(0o1777);
        assert!(read(&path).unwrap().is_some());
        // Only root can give a file away.
        if std::os::unix::fs::chown(&path, Some(65_533), None).is_ok() {
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("belongs to the user with number 65533, who knows it"), "{error}");
        }
    }

    #[test]
    fn what_is_no_file_in_place_of_the_key_is_named_and_not_opened() {
        use nix::sys::stat::{Mode, SFlag, mknod};

        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("directory")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), Mode::S_IRUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let mut cases = vec![("directory", "a directory"), ("fifo", "a FIFO"), ("socket", "a socket")];
        for (link, to) in [("to-device", "/dev/zero"), ("to-fifo", "fifo"), ("to-directory", "directory")] {
            std::os::unix::fs::symlink(to, at(link)).unwrap();
        }
        cases.extend([("to-device", "a character device"), ("to-fifo", "a FIFO")]);
        cases.push(("to-directory", "a directory"));
        // A loop device without a driver behind it: opening it would fail, and looking at it does not. Needs root.
        if mknod(&at("block"), SFlag::S_IFBLK, Mode::S_IRUSR, nix::sys::stat::makedev(7, 200)).is_ok() {
            cases.push(("block", "a block device"));
        }
        for (name, kind) in cases {
            let path = at(name);
            let shown = path.display();
            for error in [read(&path).unwrap_err(), read_or_create(&path).unwrap_err()] {
                let expected = format!(
                    "the private key {shown} is {kind}, not a file; put a regular file there, or name another one \
                     in private_key_file"
                );
                assert_eq!(error.to_string(), expected);
            }
        }
    }

    #[test]
    fn a_file_without_a_key_is_refused_and_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wg0.key");
        for content in [&b"not-a-key"[..], b"", b"\xff\xfe", &[b'A'; 4096]] {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            let error = read_or_create(&path).unwrap_err().to_string();
            let expected =
                format!("{} holds no private key; write one with `wireloom key generate`", path.display());
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn a_preshared_key_is_read_and_what_is_none_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mesh.psk");
        let shown = path.display();
        let absent = format!(
            "the preshared key {shown}, which the mesh names, does not exist; put the key of the other nodes there, \
             readable by root only, or make one with `wireloom key preshared`"
        );
        assert_eq!(read_preshared(&path).unwrap_err().to_string(), absent);
        let key = PresharedKey::from_bytes([7; 32]);
        let none = PresharedKey::from_bytes([0; 32]).expose_base64();
        fs::write(&path, format!("{}\n", *key.expose_base64())).unwrap();
        let open = read_preshared(&path).unwrap_err().to_string();
        assert!(open.starts_with(&format!("the preshared key {shown} is accessible to other users (mode ")));
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read_preshared(&path).unwrap(), key);
        for content in [none.as_str(), "", "not-a-key", &key.expose_base64()[..43]] {
            fs::write(&path, content).unwrap();
            let expected = format!("{shown} holds no preshared key; write one with `wireloom key preshared`");
            assert_eq!(read_preshared(&path).unwrap_err().to_string(), expected);
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let expected =
            format!("the preshared key {shown} is a directory, not a file; put a regular file there");
        assert_eq!(read_preshared(&path).unwrap_err().to_string(), expected);
    }
}
