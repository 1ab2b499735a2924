//! Which directories may hold sockets, locks, state and keys: those that nobody else can put files in.

use std::path::{Path, PathBuf};

/// Why a directory is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// Another user than ours or root owns it.
    #[error(
        "the directory {} belongs to the user with number {owner}, who can replace what is in it; run \
         `chown {user} {}` after looking at what is there",
        path.display(), path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Our user.
        user: u32,
    },
    /// Its group or others may write to it.
    #[error(
        "the directory {} is writable by other users (mode {mode:04o}), who can replace what is in it; run \
         `chmod go-w {}` after looking at what is there",
        path.display(), path.display()
    )]
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

/// Refuses a directory that others than `user` and root own or can write to. `owner` and `mode` are what stat(2) says;
/// an access-control list that lets others write shows in the group's bits (acl(5)).
///
/// # Errors
/// [`DirectoryError`]; a retry helps after somebody has followed its advice.
pub fn check_directory(path: &Path, owner: u32, mode: u32, user: u32) -> Result<(), DirectoryError> {
    if owner != 0 && owner != user {
        return Err(DirectoryError::Foreign { path: path.into(), owner, user });
    }
    if mode & 0o022 != 0 {
        return Err(DirectoryError::Writable { path: path.into(), mode: mode & 0o7777 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_that_nobody_else_can_write_to_are_accepted() {
        let check = |owner, mode, user| check_directory(Path::new("/run/wireguard"), owner, mode, user);
        // With the type of the file, as stat(2) has it.
        for (owner, mode, user) in
            [(0, 0o40700, 0), (0, 0o40755, 0), (0, 0o40755, 1000), (1000, 0o40700, 1000), (0, 0o42750, 0)]
        {
            assert_eq!(check(owner, mode, user), Ok(()), "{owner} {mode:o} {user}");
        }
        for mode in [0o777, 0o1777, 0o775, 0o770, 0o702, 0o720] {
            let error = check(0, 0o40000 | mode, 0).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "the directory /run/wireguard is writable by other users (mode {mode:04o}), who can replace what \
                     is in it; run `chmod go-w /run/wireguard` after looking at what is there"
                )
            );
        }
        for (owner, user) in [(1000, 0), (1000, 1001), (65534, 0)] {
            let error = check(owner, 0o40700, user).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "the directory /run/wireguard belongs to the user with number {owner}, who can replace what is in \
                     it; run `chown {user} /run/wireguard` after looking at what is there"
                )
            );
        }
    }
}
