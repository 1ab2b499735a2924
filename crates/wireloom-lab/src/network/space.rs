//! Work inside a machine's namespaces: commands, files, sockets, sysctls.

use std::{
    fmt::Write as _,
    fs::File,
    io::Write as _,
    os::fd::OwnedFd,
    panic,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::{Error, Result, finish, tools, wait::PROGRAM};

/// Namespaces that threads and programs can enter. A clone refers to the same namespaces.
#[derive(Debug, Clone)]
pub struct Space {
    place: String,
    net: Arc<OwnedFd>,
    /// Absent: mounts and processes are those of this process.
    machine: Option<Arc<Machine>>,
}

/// What all networks of one machine (its own and its pods') share.
#[derive(Debug)]
struct Machine {
    mounts: OwnedFd,
    processes: OwnedFd,
}

impl Space {
    /// The namespaces of a process.
    pub(super) fn of_process(pid: u32, place: &str) -> Result<Self> {
        let open = |name: &str| open(&format!("/proc/{pid}/ns/{name}"));
        Ok(Self {
            place: place.to_owned(),
            net: Arc::new(open("net")?),
            machine: Some(Arc::new(Machine { mounts: open("mnt")?, processes: open("pid")? })),
        })
    }

    /// What error messages call it: `node-a`, `pod-1 on node-a`, `the underlay`.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// A network namespace that `ip netns add` made in here, with the same mounts and processes.
    pub(crate) fn named_network(&self, name: &str, place: String) -> Result<Self> {
        let net = self.inside(|| open(&format!("/run/netns/{name}")))??;
        Ok(Self { place, net: Arc::new(net), ..self.clone() })
    }

    /// The same network, but with the mounts and processes of this process.
    #[must_use]
    pub fn network_only(&self) -> Self {
        Self { machine: None, ..self.clone() }
    }

    /// Runs `work` on a new thread in these namespaces, and waits for it. Sockets that it opens belong to this
    /// network wherever they are used later; child processes that it starts are in the pid namespace too.
    /// It cannot start threads: the kernel lets no process span two pid namespaces.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel refuses entry.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let visitor = scope.spawn(|| {
                setns(&self.net, CloneFlags::CLONE_NEWNET)?;
                if let Some(machine) = &self.machine {
                    // Threads share root and working directory; only a thread that does not may change its
                    // mount namespace (setns(2)).
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

    /// Like [`Space::inside`], for work that can fail: the error says `what` could not be done, and where.
    pub(crate) fn open<T: Send, E: Into<std::io::Error> + Send>(
        &self,
        what: &str,
        work: impl FnOnce() -> std::result::Result<T, E> + Send,
    ) -> Result<T> {
        self.inside(work)?.map_err(Error::io(format!("{what} in {}", self.place)))
    }

    /// Starts a program in here. It is killed with the namespaces at the latest.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        command.env("PATH", tools::search_path());
        let what = format!("run {}", command.get_program().display());
        self.open(&what, || command.spawn())
    }

    /// Runs a program to its end and returns its exit status and output; a failure is not an error here.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be started; [`Error::Timeout`] when it has not ended after a minute.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        self.output_within(command, PROGRAM)
    }

    /// Like [`Space::output`], with another limit than a minute.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be started; [`Error::Timeout`] when it has not ended after `patience`.
    pub fn output_within(&self, command: &mut Command, patience: Duration) -> Result<Output> {
        let child = self.spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let words = [command.get_program()].into_iter().chain(command.get_args());
        let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        finish(child, &format!("`{line}` in {}", self.place), patience)
    }

    /// Runs a command line, split at white space, and returns its standard output.
    ///
    /// # Errors
    /// [`Error::MissingTool`]; [`Error::Command`] with its output when it fails; [`Error::Timeout`] when it has not
    /// ended after a minute.
    pub fn run(&self, line: &str) -> Result<String> {
        self.feed(line, "")
    }

    /// Like [`Space::run`], with `input` as standard input.
    ///
    /// # Errors
    /// As [`Space::run`].
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
            // A program that ends without reading its input says why on standard error. One that neither reads nor
            // ends is killed.
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

    /// Reads a file as seen in here; `None` when it does not exist.
    ///
    /// # Errors
    /// [`Error::Io`] when it exists and cannot be read.
    pub fn read(&self, path: &str) -> Result<Option<String>> {
        match self.inside(|| std::fs::read_to_string(path))? {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("read {path} in {}", self.place))(error)),
        }
    }

    /// Writes a file in here, atomically: a reader sees the old text or the new one.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        self.open(&format!("write {path}"), || {
            let beside = format!("{path}.new");
            std::fs::write(&beside, text)?;
            std::fs::rename(&beside, path)
        })
    }

    /// Reads a sysctl by its path below `/proc/sys`, such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// [`Error::Io`] when it does not exist.
    pub fn sysctl(&self, path: &str) -> Result<String> {
        let what = format!("read the sysctl {path}");
        let value = self.open(&what, || std::fs::read_to_string(format!("/proc/sys/{path}")))?;
        Ok(value.trim().to_owned())
    }

    /// Sets sysctls by their paths below `/proc/sys`, in order.
    ///
    /// # Errors
    /// [`Error::Io`] for the first that does not exist or whose value the kernel refuses.
    pub fn set_sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.inside(|| {
            settings.iter().try_for_each(|(path, value)| {
                std::fs::write(format!("/proc/sys/{path}"), value)
                    .map_err(Error::io(format!("set the sysctl {path} in {}", self.place)))
            })
        })?
    }
}

fn open(path: &str) -> Result<OwnedFd> {
    File::open(path).map(OwnedFd::from).map_err(Error::io(format!("open {path}")))
}
