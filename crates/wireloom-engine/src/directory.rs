//! Directories that nobody else can put files in.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::Path,
};

use nix::unistd::geteuid;
use wireloom_types::check_directory;

/// Creates a directory with its parents, accessible by its owner only, unless it is there.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] when it is there, and others own it or can write to it; the error names the fix.
/// Otherwise the operating system's error.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let found = fs::metadata(path)?;
    check_directory(path, found.uid(), found.mode(), geteuid().as_raw())
        .map_err(|error| io::Error::new(io::ErrorKind::PermissionDenied, error))
}
