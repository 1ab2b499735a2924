//! Namespaces: the process that holds them open, and work inside them.

use std::{
    fmt::Write as _,
    fs::File,
    io::{BufRead as _, BufReader, Read, Write as _},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    panic,
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::{Arc, mpsc::channel},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};

use super::{Error, PATIENCE, Result, at_this_pace, finish, tools, wait::PROGRAM};

/// The first process of a pid namespace of its own: when it ends, the kernel ends all others in there,
/// daemons included, and with them go the namespaces that they held. It ends when its standard input
/// does, so it cannot outlive us, however we end; unless it reads a line first (see [`Holder::keep`]).
///
/// - The process id is read before the new `/proc` is mounted: the old one tells it as seen from outside.
/// - `/etc` and `/var/lib` become directories of links, so that what is below `wireloom` is this
///   node's own also where the machine has no such directory and nobody may make one.
/// - `wait` in the shell also reaps the daemons' remains, as a first process must.
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
exec 3<&0
{ read -r line && exec sleep infinity; } <&3 &
echo "$pid"
exec >/dev/null 2>&1
wait $!
"#;

/// The process that holds a set of namespaces open (network, mounts, processes); they go when it is dropped.
#[derive(Debug)]
pub struct Holder {
    process: Child,
    /// Open: the holder lives.
    lifeline: Option<ChildStdin>,
    pid: u32,
}

impl Holder {
    /// Makes the namespaces.
    ///
    /// # Errors
    /// When a program is missing or the kernel refuses.
    pub fn new(place: &str) -> Result<(Self, Space)> {
        tools::require(&["unshare", "mount", "ip"])?;
        let mut process = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--", "sh", "-c", HOLDER])
            .env("PATH", tools::search_path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Out of the terminal's reach: a Ctrl-C ends us, and that ends the holder.
            .process_group(0)
            .spawn()
            .map_err(Error::io("run unshare"))?;
        let lifeline = process.stdin.take();
        let said = process.stdout.take().and_then(|stdout| first_line(stdout, at_this_pace(PATIENCE)));
        let Some(pid) = said.and_then(|line| line.trim().parse().ok()) else {
            drop(lifeline);
            let Output { status, stderr, .. } =
                finish(process, &format!("the holder of {place}'s namespaces"), PATIENCE)?;
            let stderr = String::from_utf8_lossy(&stderr).into_owned();
            return Err(Error::Command { command: "unshare".into(), place: place.into(), status, stderr });
        };
        let holder = Self { process, lifeline, pid };
        let open = |name: &str| open(&format!("/proc/{pid}/ns/{name}"));
        let space = Space {
            place: place.to_owned(),
            net: Arc::new(open("net")?),
            machine: Some(Arc::new(Machine { mounts: open("mnt")?, processes: open("pid")? })),
        };
        Ok((holder, space))
    }

    /// The holder's process id: `nsenter --target PID --all` leads into its namespaces.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets the namespaces outlive this process: they go when the returned process is killed (as the
    /// first of its namespace it is deaf to gentler signals).
    ///
    /// # Errors
    /// When the holder has gone already.
    pub fn keep(&mut self) -> Result<u32> {
        if let Some(mut lifeline) = self.lifeline.take() {
            lifeline.write_all(b"keep\n").map_err(Error::io("tell a holder to stay"))?;
        }
        Ok(self.pid)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if self.lifeline.take().is_some() {
            // `--kill-child` passes it on. Without the kill it would end as well, a little later.
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// Namespaces that threads and programs can enter.
#[derive(Debug, Clone)]
pub struct Space {
    place: String,
    net: Arc<OwnedFd>,
    /// Absent: those of this process.
    machine: Option<Arc<Machine>>,
}

/// What the networks of one machine share.
#[derive(Debug)]
struct Machine {
    mounts: OwnedFd,
    processes: OwnedFd,
}

impl Space {
    /// For messages: where this is.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The network namespace that `ip netns add` made in here, with these mounts and processes.
    pub(crate) fn named_network(&self, name: &str, place: String) -> Result<Self> {
        let net = self.inside(|| open(&format!("/run/netns/{name}")))??;
        Ok(Self { place, net: Arc::new(net), ..self.clone() })
    }

    /// The network in here, with the mounts and processes of this process.
    #[must_use]
    pub fn network_only(&self) -> Self {
        Self { machine: None, ..self.clone() }
    }

    /// Runs `work` on a thread of its own in these namespaces. Sockets that it opens stay in there
    /// wherever they are used later; child processes that it starts are in the pid namespace as well
    /// (but the thread cannot start other threads: no process spans two pid namespaces).
    ///
    /// # Errors
    /// When the kernel does not let us in.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let visitor = scope.spawn(|| {
                setns(&self.net, CloneFlags::CLONE_NEWNET)?;
                if let Some(machine) = &self.machine {
                    // Threads share root and working directory; only one that does not may change mounts.
                    unshare(CloneFlags::CLONE_FS)?;
                    setns(&machine.mounts, CloneFlags::CLONE_NEWNS)?;
                    setns(&machine.processes, CloneFlags::CLONE_NEWPID)?;
                }
                Ok(work())
            });
            visitor.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
        .map_err(|error: nix::Error| Error::io(format!("enter {}", self.place))(error))
    }

    /// As [`Space::inside`], for work that opens something: names it when it fails.
    pub(crate) fn open<T: Send, E: Into<std::io::Error> + Send>(
        &self,
        what: &str,
        work: impl FnOnce() -> std::result::Result<T, E> + Send,
    ) -> Result<T> {
        self.inside(work)?.map_err(Error::io(format!("{what} in {}", self.place)))
    }

    /// Starts a program in here; it goes with the namespaces at the latest.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        command.env("PATH", tools::search_path());
        let what = format!("run {}", command.get_program().display());
        self.open(&what, || command.spawn())
    }

    /// Runs a program until it ends, with or without success.
    ///
    /// # Errors
    /// When it cannot be started, or has not ended after a minute.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        self.output_within(command, PROGRAM)
    }

    /// As [`Space::output`], for a program that may take longer, or must not take as long.
    ///
    /// # Errors
    /// When it cannot be started, or has not ended after `patience`.
    pub fn output_within(&self, command: &mut Command, patience: Duration) -> Result<Output> {
        let child = self.spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let words = [command.get_program()].into_iter().chain(command.get_args());
        let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        finish(child, &format!("`{line}` in {}", self.place), patience)
    }

    /// Runs a command line, its words parted by spaces, and returns what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said, or has not ended after a minute.
    pub fn run(&self, line: &str) -> Result<String> {
        self.feed(line, "")
    }

    /// As [`Space::run`], with this text as standard input.
    ///
    /// # Errors
    /// When it fails, with what it said, or has not ended after a minute.
    pub fn feed(&self, line: &str, input: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().unwrap_or_default();
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        tools::require(&[program])?;
        let mut child = self.spawn(&mut command)?;
        if let Some(mut stdin) = child.stdin.take()
            && !input.is_empty()
        {
            let input = input.as_bytes().to_vec();
            // A program that ends without reading says why itself, below; one that does neither is killed.
            thread::spawn(move || stdin.write_all(&input));
        }
        let output = finish(child, &format!("`{line}` in {}", self.place), PROGRAM)?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        let _ = write!(text, "{}", String::from_utf8_lossy(&output.stderr).trim_end());
        Err(Error::Command {
            command: line.to_owned(),
            place: self.place.clone(),
            status: output.status,
            stderr: text,
        })
    }

    /// Reads a file as it is in here; absent when there is none.
    ///
    /// # Errors
    /// When it exists and cannot be read.
    pub fn read(&self, path: &str) -> Result<Option<String>> {
        match self.inside(|| std::fs::read_to_string(path))? {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("read {path} in {}", self.place))(error)),
        }
    }

    /// Writes a file in here, in one step: a reader sees the old text or the new.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        self.open(&format!("write {path}"), || {
            let beside = format!("{path}.new");
            std::fs::write(&beside, text)?;
            std::fs::rename(&beside, path)
        })
    }

    /// Reads a kernel parameter by its path below `/proc/sys`.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn sysctl(&self, path: &str) -> Result<String> {
        let what = format!("read the sysctl {path}");
        let value = self.open(&what, || std::fs::read_to_string(format!("/proc/sys/{path}")))?;
        Ok(value.trim().to_owned())
    }

    /// Sets kernel parameters by their paths below `/proc/sys`.
    ///
    /// # Errors
    /// When there is none of that name, or the kernel refuses the value.
    pub fn set_sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.inside(|| {
            settings.iter().try_for_each(|(path, value)| {
                std::fs::write(format!("/proc/sys/{path}"), value)
                    .map_err(Error::io(format!("set the sysctl {path} in {}", self.place)))
            })
        })?
    }
}

/// `None` when nothing comes for that long.
fn first_line(from: impl Read + Send + 'static, patience: Duration) -> Option<String> {
    let (sender, line) = channel();
    thread::spawn(move || {
        let mut line = String::new();
        let _ = BufReader::new(from).read_line(&mut line);
        let _ = sender.send(line);
    });
    line.recv_timeout(patience).ok()
}

fn open(path: &str) -> Result<OwnedFd> {
    File::open(path).map(OwnedFd::from).map_err(Error::io(format!("open {path}")))
}
