//! Images of containers, made of programs of this machine.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{Error, Result, finish, wait::PROGRAM};

/// Makes an image of a program and the libraries that it needs, with `deploy/image/pack`. `path` is the program's place
/// in the image; containers run it. `archive` is the file to write; its directory must exist. Temporary files are in
/// that directory too, so nothing is left when it is removed meanwhile.
///
/// # Errors
/// [`Error::Command`] with its output when it fails.
pub(super) fn pack(archive: &Path, name: &str, program: &Path, path: &Path) -> Result<()> {
    let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../../deploy/image/pack"].iter().collect();
    let mut command = Command::new(&script);
    command.arg(archive).arg(name).arg(format!("{}={}", program.display(), path.display()));
    if let Some(directory) = archive.parent() {
        command.env("TMPDIR", directory);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(Error::io(format!("run {}", script.display())))?;
    let output = finish(child, &script.display().to_string(), PROGRAM)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: format!("deploy/image/pack {} {name}", archive.display()),
        place: "this machine".into(),
        status: output.status,
        stderr: String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim_end().to_owned(),
    })
}
