//! `wireloom device`: a userspace WireGuard interface.

use std::{
    io::{self, BufRead, BufReader, Write},
    num::NonZero,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use tracing_subscriber::EnvFilter;
use wireloom_engine::process::{self, End, Interface, OpenControlError, OpenError, OpenTunError};
use wireloom_kernel::state::StateDir;
use wireloom_types::{Mode, PeerLookup, SourceCheck, exit_status::HANDED_OVER};

use crate::log_output;

/// Make a userspace WireGuard interface, for `wg`, `wg-quick` or the agent to configure
///
/// The process goes to the background once the interface exists and its control socket,
/// /var/run/wireguard/IFNAME.sock, answers. Deleting the interface or the socket ends it. With --persistent, and in
/// link mode (--peer-lookup gateway), the interface stays when the process ends in any other way, and the next process
/// takes it over.
///
/// For wg-quick, make a symbolic link `wireloom-device` to this program and set
/// WG_QUICK_USERSPACE_IMPLEMENTATION=wireloom-device.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The name of the interface
    #[arg(value_name = "IFNAME")]
    interface: String,

    /// What selects the peer that a packet goes to
    ///
    /// `destination` is standard WireGuard: the peer whose allowed-IPs hold the packet's destination. `gateway` is
    /// link mode: the peer that routing chose as the next hop; the interface is an Ethernet link, and peers are
    /// neighbours on it.
    #[arg(long, value_name = "destination|gateway", default_value_t = PeerLookup::Destination)]
    peer_lookup: PeerLookup,

    /// What decides whether a packet from a peer may have its source address
    ///
    /// `allowed-ips` is standard WireGuard: the peer's allowed-IPs. `firewall` leaves it to nftables rules, which know
    /// a peer by its link address. `off` accepts every source.
    #[arg(long, value_name = "allowed-ips|firewall|off", default_value_t = SourceCheck::AllowedIps)]
    source_check: SourceCheck,

    /// How many threads carry packets, each with its own interface queue and UDP sockets
    ///
    /// The default is half of the processor's cores, at least 1 and at most 8: each thread carries packets in both
    /// directions, and on one or two cores a second one would only compete with the programs that send and receive.
    #[arg(long, value_name = "N", env = "WIRELOOM_THREADS", default_value_t = default_threads())]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=THREADS_MAX))]
    threads: u16,

    /// Keep the interface when the process is killed or ended by a signal
    ///
    /// Its addresses and routes stay, and drop what is routed there until the next `wireloom device` of that name takes
    /// the interface over. An interface in link mode is always persistent.
    #[arg(long)]
    persistent: bool,

    /// Take the interface over from the process that has it, if there is one, without a pause that anybody notices
    ///
    /// Sessions, settings and counters are transferred, and so are the mode and the number of threads: the arguments
    /// for these count only if there is no such process. That one ends with status 10. If it does not answer, it is
    /// killed.
    #[arg(long)]
    take_over: bool,

    /// Whether the network stack and the device exchange super-packets, many segments in one
    ///
    /// `auto` uses what the kernel has, which is several times as fast. `on` refuses to start without. `off` is for
    /// kernels that have it and do not do it well: every packet is read and written alone.
    #[arg(long, value_enum, value_name = "on|off|auto", default_value_t)]
    #[arg(hide_possible_values = true)]
    offload: Offload,

    /// Where to keep the time of the last handshake, so that peers accept handshakes after this clock was set back
    ///
    /// Peers refuse handshakes with an earlier time than the last one. It is kept in the file IFNAME.timestamp, if the
    /// directory can be written to [default: $STATE_DIRECTORY, or /var/lib/wireloom]
    #[arg(long, value_name = "DIR")]
    state_directory: Option<PathBuf>,

    /// Stay in the foreground and log to standard error
    #[arg(short, long)]
    foreground: bool,

    /// How much to log [default: the environment variable LOG_LEVEL as for wireguard-go, else info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LogLevel>,

    /// Print a line once the interface is ready, and leave the terminal then
    #[arg(long, hide = true, requires = "foreground")]
    detach_when_ready: bool,

    /// Log to what standard input is, once in the background
    #[arg(long, hide = true)]
    log_to_stdin: bool,
}

/// [`wireloom_engine::process::Offload`] as an argument.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Offload {
    On,
    Off,
    #[default]
    Auto,
}

impl Offload {
    fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Auto => "auto",
        }
    }
}

impl From<Offload> for process::Offload {
    fn from(offload: Offload) -> Self {
        match offload {
            Offload::On => Self::On,
            Offload::Off => Self::Off,
            Offload::Auto => Self::Auto,
        }
    }
}

/// The most queues that an interface can have (`MAX_TAP_QUEUES` in drivers/net/tun.c).
const THREADS_MAX: i64 = 256;

/// The default of [`Arguments::threads`]. More than eight threads cost memory and were not seen to carry more.
fn default_threads() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    (cores / 2).clamp(1, 8) as u16
}

/// How much to log: the names of wireguard-go's `LOG_LEVEL`, and more.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LogLevel {
    Silent,
    Error,
    Info,
    #[value(alias = "verbose")]
    Debug,
}

impl LogLevel {
    /// The level that `LOG_LEVEL` names, or the default. Other programs use that variable too, so a value that we do
    /// not know is not a mistake.
    fn from_environment() -> Self {
        let value = std::env::var("LOG_LEVEL").unwrap_or_default();
        <Self as clap::ValueEnum>::from_str(&value, true).unwrap_or(Self::Info)
    }

    fn name_of_argument(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            level => level.name(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Silent => "off",
            Self::Error => "error",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// How long another process may take to open the interface that this one wants. It takes milliseconds, and on a loaded
/// machine longer.
const OPENING: Duration = Duration::from_secs(5);

/// The line that the background process prints when it is ready.
const READY: &str = "ready\n";

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mode = Mode::new(arguments.peer_lookup, arguments.source_check)?;
    let level = arguments.log_level.unwrap_or_else(LogLevel::from_environment);
    if arguments.foreground { serve(arguments, mode, level) } else { start_in_background(arguments, level) }
}

/// Starts this program again, in the foreground of a session of its own, and waits until it is ready. A fork would do
/// the same, but it is neither safe code nor safe once there are threads.
fn start_in_background(arguments: &Arguments, level: LogLevel) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut child = Command::new(program)
        .args(["device", "--foreground", "--detach-when-ready", "--log-level"])
        .arg(match level {
            // Nobody would read it.
            LogLevel::Info if !arguments.log_to_stdin => "error",
            level => level.name_of_argument(),
        })
        .args(["--peer-lookup", &arguments.peer_lookup.to_string()])
        .args(["--source-check", &arguments.source_check.to_string()])
        .args(["--threads", &arguments.threads.to_string()])
        .args(["--offload", arguments.offload.name()])
        .args(arguments.persistent.then_some("--persistent"))
        .args(arguments.take_over.then_some("--take-over"))
        .args(
            arguments
                .state_directory
                .iter()
                .flat_map(|path| ["--state-directory".as_ref(), path.as_os_str()]),
        )
        .args(arguments.log_to_stdin.then_some("--log-to-stdin"))
        .arg("--")
        .arg(&arguments.interface)
        .stdin(if arguments.log_to_stdin { Stdio::inherit() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the background process")?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).context("cannot read from the background process")?;
    }
    if line == READY {
        return Ok(ExitCode::SUCCESS);
    }
    // It has printed the reason on standard error, which we share.
    child.wait().context("cannot wait for the background process")?;
    Ok(ExitCode::FAILURE)
}

fn serve(arguments: &Arguments, mode: Mode, level: LogLevel) -> anyhow::Result<ExitCode> {
    let filter = EnvFilter::new(level.name());
    match arguments.log_to_stdin {
        true => super::log::start_of_device(filter, &arguments.interface),
        false => super::log::start_without_waiting(filter),
    }
    let outcome = open_and_run(arguments, mode);
    log_output::finish();
    Ok(outcome.unwrap_or_else(|error| log_output::fail(&error)))
}

fn open_and_run(arguments: &Arguments, mode: Mode) -> anyhow::Result<ExitCode> {
    let threads = NonZero::new(usize::from(arguments.threads)).unwrap_or(NonZero::<usize>::MIN);
    let state = arguments.state_directory.clone().unwrap_or_else(|| StateDir::locate().path().into());
    let name = &arguments.interface;
    let open =
        || Interface::open(name, mode, threads, arguments.persistent, arguments.offload.into(), &state);
    let opened = match arguments.take_over {
        true => take_over(name, mode, &state, open),
        false => open().map(|interface| (interface, false)).map_err(anyhow::Error::from),
    };
    let (interface, is_taken) = match opened {
        Err(error) if matches!(error.downcast_ref(), Some(OpenError::HasAnother)) => {
            tracing::info!("ended: {error}");
            return Ok(ExitCode::from(HANDED_OVER));
        }
        opened => opened?,
    };
    // Only now: threads inherit the privileges that were given up, and the blocked signals.
    unless_taken(is_taken, log_output::start_thread().context("cannot start a thread"))?;
    if arguments.detach_when_ready {
        unless_taken(is_taken, detach(arguments.log_to_stdin).context("cannot leave the terminal"))?;
    }
    interface.say_ready();
    let end = interface.run().with_context(|| format!("the interface {} failed", arguments.interface))?;
    tracing::info!(
        "ended: {}",
        match end {
            End::InterfaceDeleted => "the interface was deleted",
            End::SocketRemoved => "the control socket was removed",
            End::Signalled => "a signal asked for it",
            End::HandedOver => "another process has taken the interface over",
        }
    );
    Ok(if end == End::HandedOver { ExitCode::from(HANDED_OVER) } else { ExitCode::SUCCESS })
}

/// The outcome, unless the interface was taken over: the process that had it is gone, and nobody would serve.
fn unless_taken(is_taken: bool, outcome: anyhow::Result<()>) -> anyhow::Result<()> {
    match outcome {
        Err(error) if is_taken => {
            tracing::warn!("{error:#}; this process serves nevertheless");
            Ok(())
        }
        outcome => outcome,
    }
}

/// Takes the interface over, or opens it if there is nobody to take it over from. Returns whether it was taken over.
fn take_over(
    name: &str,
    mode: Mode,
    state: &Path,
    open: impl Fn() -> Result<Interface, OpenError>,
) -> anyhow::Result<(Interface, bool)> {
    let deadline = Instant::now() + OPENING;
    loop {
        if let Some(interface) = Interface::take_over(name, mode, state)? {
            return Ok((interface, true));
        }
        match open() {
            // Somebody has opened it meanwhile, and will hand it over.
            Err(
                OpenError::Tun(OpenTunError::NameTaken(_))
                | OpenError::Control(OpenControlError::InUse(_))
                | OpenError::HasAnother,
            ) if Instant::now() < deadline => {}
            opened => return Ok((opened?, false)),
        }
    }
}

/// Becomes a background process: in a session of its own, in the root directory, without a terminal. Its log goes to
/// what standard input was, if that is asked for. Whatever fails, the rest is done.
fn detach(log_to_stdin: bool) -> anyhow::Result<()> {
    let new_session = setsid().map(drop);
    let moved = chdir("/");
    let nowhere = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    let log = if log_to_stdin { dup2_stderr(io::stdin()) } else { dup2_stderr(&nowhere) };
    let input = dup2_stdin(&nowhere);
    // It fails when the process that waits for it has ended.
    let mut stdout = io::stdout();
    let told = stdout.write_all(READY.as_bytes()).and_then(|()| stdout.flush());
    let output = dup2_stdout(&nowhere);
    told?;
    Ok(new_session.and(moved).and(log).and(input).and(output)?)
}
