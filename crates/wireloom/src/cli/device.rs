//! `wireloom device`: a userspace WireGuard interface.

use std::{
    io::{self, BufRead, BufReader, IsTerminal, Write},
    num::NonZero,
    process::{Command, ExitCode, Stdio},
};

use anyhow::Context;
use nix::unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use tracing_subscriber::EnvFilter;
use wireloom_engine::process::{End, Interface};
use wireloom_types::{Mode, PeerLookup, SourceCheck};

/// Make a userspace WireGuard interface, for `wg`, `wg-quick` and the agent to configure.
///
/// It goes to the background once the interface exists and its control socket,
/// /var/run/wireguard/IFNAME.sock, answers. Deleting the interface or the socket ends it. A link
/// (--peer-lookup gateway) stays when the process ends otherwise, and is taken over by the next one.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The interface's name.
    #[arg(value_name = "IFNAME")]
    interface: String,

    /// Which peer gets a packet: the one whose allowed IPs have its destination, or the one that is the
    /// next hop which routing chose; then the interface is a link, and peers are neighbours on it.
    #[arg(long, value_name = "destination|gateway", default_value_t = PeerLookup::Destination)]
    peer_lookup: PeerLookup,

    /// Who judges whether a source address may come from a peer: its allowed IPs, the firewall (by the
    /// peer's link address), or nobody.
    #[arg(long, value_name = "allowed-ips|firewall|off", default_value_t = SourceCheck::AllowedIps)]
    source_check: SourceCheck,

    /// How many threads carry packets, each with a queue of the interface and UDP sockets of its own.
    ///
    /// One carries both directions of everything on up to two cores, where a second one would only
    /// compete with the programs that send and receive. With more cores it is half of them, up to 8.
    #[arg(long, value_name = "N", env = "WIRELOOM_THREADS", default_value_t = default_threads(), value_parser = clap::value_parser!(u16).range(1..=THREADS_MAX))]
    threads: u16,

    /// Stay in the foreground and log to standard error.
    #[arg(short, long)]
    foreground: bool,

    /// What to log; the environment's LOG_LEVEL tells it as well, as it does for wireguard-go.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LogLevel>,

    /// Say so on standard output once the interface is ready, and leave the terminal then.
    #[arg(long, hide = true, requires = "foreground")]
    detach_when_ready: bool,
}

/// As many queues as an interface may have (`MAX_TAP_QUEUES` in drivers/net/tun.c).
const THREADS_MAX: i64 = 256;

/// See [`Arguments::threads`]. Beyond eight, more threads cost more memory than they are known to bring.
fn default_threads() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    (cores / 2).clamp(1, 8) as u16
}

/// How much to log; the names are wireguard-go's `LOG_LEVEL`, and some more.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LogLevel {
    Silent,
    Error,
    Info,
    #[value(alias = "verbose")]
    Debug,
}

impl LogLevel {
    /// What the environment says. The variable's name is a common one: a value that is not for us is
    /// no mistake.
    fn from_environment() -> Self {
        let value = std::env::var("LOG_LEVEL").unwrap_or_default();
        <Self as clap::ValueEnum>::from_str(&value, true).unwrap_or(Self::Info)
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

/// What the background process says when it is ready.
const READY: &str = "ready\n";

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mode = Mode::new(arguments.peer_lookup, arguments.source_check)?;
    let level = arguments.log_level.unwrap_or_else(LogLevel::from_environment);
    if arguments.foreground { serve(arguments, mode, level) } else { start_in_background(arguments, level) }
}

/// Starts this program once more, in the foreground of a session of its own, and waits until it is
/// ready. (A fork alone would do, but not in safe code, and not with threads about.)
fn start_in_background(arguments: &Arguments, level: LogLevel) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut child = Command::new(program)
        .args(["device", "--foreground", "--detach-when-ready", "--log-level"])
        .arg(match level {
            LogLevel::Silent => "silent",
            LogLevel::Error | LogLevel::Info => "error",
            LogLevel::Debug => "debug",
        })
        .args(["--peer-lookup", &arguments.peer_lookup.to_string()])
        .args(["--source-check", &arguments.source_check.to_string()])
        .args(["--threads", &arguments.threads.to_string()])
        .arg("--")
        .arg(&arguments.interface)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the background process")?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut said).context("cannot hear from the background process")?;
    }
    if said == READY {
        return Ok(ExitCode::SUCCESS);
    }
    // It has told the reason on the standard error that we share.
    child.wait().context("cannot wait for the background process")?;
    Ok(ExitCode::FAILURE)
}

fn serve(arguments: &Arguments, mode: Mode, level: LogLevel) -> anyhow::Result<ExitCode> {
    let filter = EnvFilter::new(level.name());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    let threads = NonZero::new(usize::from(arguments.threads)).unwrap_or(NonZero::<usize>::MIN);
    let interface = Interface::open(&arguments.interface, mode, threads)?;
    if arguments.detach_when_ready {
        detach().context("cannot leave the terminal")?;
    }
    let end = interface.run().with_context(|| format!("the interface {} failed", arguments.interface))?;
    tracing::info!(
        "ended: {}",
        match end {
            End::InterfaceDeleted => "the interface was deleted",
            End::SocketRemoved => "the control socket was removed",
            End::Signalled => "told to by a signal",
        }
    );
    Ok(ExitCode::SUCCESS)
}

/// Becomes a background process: a session of its own, no hold on a directory, the terminal let go.
fn detach() -> anyhow::Result<()> {
    setsid()?;
    chdir("/")?;
    let nowhere = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&nowhere)?;
    let mut stdout = io::stdout();
    stdout.write_all(READY.as_bytes())?;
    stdout.flush()?;
    dup2_stdout(&nowhere)?;
    dup2_stderr(&nowhere)?;
    Ok(())
}
