//! What a cluster leaves outside its namespaces, and who removes it: a directory, and control groups.

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

use tempfile::TempDir;

use crate::{Error, PATIENCE, Result, until};

/// Removes the control groups named `$1-*` from every hierarchy and the directory `$2`, as soon as no process is in
/// those groups any more: the end of a node's first process ends all others, but not at once. It begins when a line
/// comes on standard input, or its end:
///
/// - `dropped`: the nodes have been taken down.
/// - `kept`: they live until somebody kills them, which can take hours, so it looks less often, and lets go of the
///   output of a program that has ended.
/// - The end: the cluster's process was killed. A node that was just being started may still make a group, and whoever
///   was packing an image makes the directory again.
const CLEANER: &str = r#"
pause=0.1
read -r what || { killed=yes && sleep 1; }
[ "$what" != kept ] || { pause=2 && exec 2>/dev/null; }
groups() { find /sys/fs/cgroup -depth -type d -path "*/$1-*" 2>/dev/null; }
processes() { find /sys/fs/cgroup -path "*/$1-*/cgroup.procs" -exec cat {} + 2>/dev/null; }
while processes "$1" | grep -q .; do sleep "$pause"; done
for try in $(seq 100); do
    groups "$1" | while read -r group; do rmdir "$group" 2>/dev/null; done
    if rm -rf "$2" && [ -z "$(groups "$1")" ]; then
        [ -z "$killed" ] || sleep 2
        [ -e "$2" ] || exit 0
    fi
    sleep 0.2
done
echo "cannot remove everything of $1" >&2
exit 1
"#;

/// The directory and the control groups of a cluster. Dropping it removes them, and so does the end of this process,
/// even by SIGKILL; the nodes must have been taken down before.
#[derive(Debug)]
pub(super) struct Remains {
    directory: PathBuf,
    /// The beginning of the names of its nodes' control groups.
    groups: String,
    cleaner: Child,
    lifeline: Option<ChildStdin>,
}

impl Remains {
    pub(super) fn new() -> Result<Self> {
        let directory = TempDir::with_prefix("wireloom-cluster-").map_err(Error::io("make a directory"))?;
        let name = directory.path().file_name().expect("a temporary directory has a name");
        let groups = name.to_string_lossy().into_owned();
        let mut cleaner = Command::new("sh")
            .args(["-c", CLEANER, "sh", &groups])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Not in the terminal's process group: Ctrl-C must not end it.
            .process_group(0)
            .spawn()
            .map_err(Error::io("run sh"))?;
        let lifeline = cleaner.stdin.take();
        // From here on the cleaner removes the directory.
        Ok(Self { directory: directory.keep(), groups, cleaner, lifeline })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The name of the control group, in every hierarchy, for everything that runs on this node.
    pub(super) fn group(&self, node: &str) -> String {
        format!("{}-{node}", self.groups)
    }

    /// Lets directory and control groups outlive this process. They go once no process is in the groups any more.
    pub(super) fn keep(&mut self) -> Result<()> {
        self.tell("kept")
    }

    /// Tells the cleaner what becomes of the cluster, once.
    fn tell(&mut self, what: &str) -> Result<()> {
        match self.lifeline.take() {
            Some(mut lifeline) => writeln!(lifeline, "{what}").map_err(Error::io("write to a cleaner")),
            None => Ok(()),
        }
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        if self.lifeline.is_some() {
            let _ = self.tell("dropped");
            // The cleaner goes on by itself if this takes longer.
            let _ = until(PATIENCE, "a cluster's remains to be removed", || {
                self.cleaner.try_wait().ok().flatten()
            });
        }
    }
}
