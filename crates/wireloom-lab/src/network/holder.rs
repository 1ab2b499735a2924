//! The process that holds a machine's namespaces open.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::mpsc::channel,
    thread,
    time::Duration,
};

use super::Space;
use crate::{Error, PATIENCE, Result, at_this_pace, finish, tools};

/// The first process of a new pid namespace. When it ends, the kernel kills every other process in that
/// namespace, daemons included, and the namespaces that they held go with them. It ends when its standard
/// input is closed, so it cannot outlive us, however we end, unless it reads a line first ([`Holder::keep`]).
///
/// - The process id is read before the new `/proc` is mounted: the old one still shows it as seen from outside.
/// - `/etc` and `/var/lib` become directories of symbolic links, so each node gets a `wireloom` directory of
///   its own in both, even where the machine has none and we may not make one. So does `/etc/systemd/system`: units
///   that `wireloom` installs or removes there are not this machine's.
/// - `wait` in the shell also reaps orphaned daemons, as process 1 must.
const HOLDER: &str = r#"
set -e
read -r pid rest </proc/self/stat
mount -t proc proc /proc
mount -t tmpfs -o mode=0755 tmpfs /run
for dir in /etc /var/lib; do
    mkdir -p "/run/lab$dir"
    mount --rbind "$dir" "/run/lab$dir"
    mount -t tmpfs -o mode=0755 tmpfs "$dir"
    ln -s "/run/lab$dir"/* "$dir/"
    rm -f "$dir/wireloom"
    mkdir "$dir/wireloom"
done
rm -f /etc/systemd
mkdir -p /etc/systemd/system
exec 3<&0
{ read -r line && exec sleep infinity; } <&3 &
echo "$pid"
exec >/dev/null 2>&1
wait $!
"#;

/// The process that holds a network, a mount and a pid namespace open. Dropping it removes all three, with
/// every process in them.
#[derive(Debug)]
pub struct Holder {
    process: Child,
    /// The holder's standard input: it lives while this is open. Absent once the holder is kept.
    lifeline: Option<ChildStdin>,
    pid: u32,
}

impl Holder {
    /// Makes the namespaces, and the [`Space`] to work in them; error messages call it `place`.
    ///
    /// # Errors
    /// [`Error::MissingTool`], or [`Error::Command`] when the kernel refuses.
    pub fn new(place: &str) -> Result<(Self, Space)> {
        tools::require(&["unshare", "mount", "ip"])?;
        let mut process = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--", "sh", "-c", HOLDER])
            .env("PATH", tools::search_path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Not in the terminal's process group: Ctrl-C ends us alone, and our end ends the holder.
            .process_group(0)
            .spawn()
            .map_err(Error::io("run unshare"))?;
        let lifeline = process.stdin.take();
        let patience = at_this_pace(PATIENCE);
        let Some(line) = process.stdout.take().and_then(|stdout| first_line(stdout, patience)) else {
            let _ = process.kill();
            let _ = process.wait();
            return Err(Error::Timeout { what: format!("the namespaces of {place} to be made"), patience });
        };
        let Ok(pid) = line.trim().parse() else {
            drop(lifeline);
            let what = format!("the holder of {place}'s namespaces");
            let Output { status, stderr, .. } = finish(process, &what, PATIENCE)?;
            let stderr = String::from_utf8_lossy(&stderr).into_owned();
            return Err(Error::Command { command: "unshare".into(), place: place.into(), status, stderr });
        };
        let holder = Self { process, lifeline, pid };
        let space = Space::of_process(pid, place)?;
        Ok((holder, space))
    }

    /// The holder's process id: `nsenter --target PID --all` enters its namespaces.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets the namespaces outlive this process, and returns the holder's process id. They go when it is killed
    /// with SIGKILL: the first process of a pid namespace ignores every signal that it does not handle.
    ///
    /// # Errors
    /// [`Error::Io`] when the holder has already ended.
    pub fn keep(&mut self) -> Result<u32> {
        if let Some(mut lifeline) = self.lifeline.take() {
            lifeline.write_all(b"keep\n").map_err(Error::io("write to a holder"))?;
        }
        Ok(self.pid)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if self.lifeline.take().is_some() {
            // This kills `unshare`, and `--kill-child` passes the signal on to the holder. The closed lifeline
            // alone would end it too, a little later.
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// The first line that arrives; `None` when nothing arrives within `patience`.
fn first_line(from: impl Read + Send + 'static, patience: Duration) -> Option<String> {
    let (sender, line) = channel();
    thread::spawn(move || {
        let mut line = String::new();
        let _ = BufReader::new(from).read_line(&mut line);
        let _ = sender.send(line);
    });
    line.recv_timeout(patience).ok()
}
