//! The events that the agent's thread receives, and the threads that send them.

use std::{
    io,
    path::{Path, PathBuf},
    sync::mpsc::{Sender, channel},
    thread,
    time::Instant,
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1},
    iterator::Signals,
};
use wireloom_kernel::{Interest, Linux, Monitor, state::StateDir};
use wireloom_membership::{
    Following, Source, Start,
    config_file::{ReadError, TomlFile, Watch},
};
use wireloom_plan::cluster::Cluster;

use super::{
    instance::{self, Asker, Listener},
    resolver::Found,
};
use crate::run_file::monotonic_time;

pub(super) enum Event {
    Membership(wireloom_membership::Event),
    /// Something of ours in the kernel may have been changed by somebody else.
    Kernel,
    /// `agent.toml` changed, or cannot be read now.
    Settings(Result<TomlFile, ReadError>),
    /// The resolver's answer for the name that it was asked for.
    Resolved(Found),
    /// The file of the private key may have changed.
    Key,
    /// The file of the preshared key may have changed.
    PresharedKey,
    /// SIGHUP or SIGUSR1 (`wireloom reload`), and what was there then.
    Reread(Reread),
    /// Another instance of the agent asks for the lock.
    Asked(Asker),
    /// SIGTERM or SIGINT.
    Stop,
}

/// `agent.toml` and the mesh as they are on a signal; `None` for what cannot be read. They are only compared with what
/// the watches deliver, which alone know who is in the middle of writing.
pub(super) struct Reread {
    /// When it began, in milliseconds of [`monotonic_time`].
    pub(super) begun: u64,
    /// SIGUSR1: removals that are held back are meant.
    pub(super) meant: bool,
    pub(super) settings: Option<TomlFile>,
    /// Of a file; a store is read by the one who follows it.
    pub(super) membership: Option<Cluster>,
    /// When the signal came.
    pub(super) arrived: Instant,
}

/// Sends an event for every signal. On SIGHUP and SIGUSR1, a thread reads `agent.toml` and the mesh first: that may
/// take seconds, and SIGTERM must not wait for it.
pub(super) fn signals(config: PathBuf, mesh: Source, events: Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGUSR1, SIGINT, SIGTERM])?;
    let (asker, asked) = channel();
    let answers = events.clone();
    thread::Builder::new().name("reread".into()).spawn(move || {
        for meant in asked {
            if answers.send(Event::Reread(reread(&config, &mesh, meant))).is_err() {
                return;
            }
        }
    })?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            let sent = match signal {
                SIGHUP | SIGUSR1 => asker.send(signal == SIGUSR1).is_ok(),
                _ => events.send(Event::Stop).is_ok(),
            };
            if !sent {
                return;
            }
        }
    })?;
    Ok(())
}

/// Reads everything that a signal asks for.
fn reread(config: &Path, mesh: &Source, meant: bool) -> Reread {
    let begun = monotonic_time().unwrap_or_default();
    let arrived = Instant::now();
    // Both at once: each may wait for a file to settle.
    thread::scope(|scope| {
        let membership = scope.spawn(|| match mesh {
            Source::File(_) => mesh.read().ok(),
            Source::Etcd(_) | Source::Kubernetes(_) => None,
        });
        let settings = TomlFile::read(config).ok();
        Reread { begun, meant, settings, membership: membership.join().ok().flatten(), arrived }
    })
}

/// Sends an event for every other instance that asks for the lock. Without the socket they wait until this one ends.
pub(super) fn instances(state: &StateDir, events: Sender<Event>) -> Option<Listener> {
    let asked = move |asker| {
        let _ = events.send(Event::Asked(asker));
    };
    instance::listen(state, asked)
        .inspect_err(|error| tracing::warn!("no other instance can take over from this one: {error}"))
        .ok()
}

/// Sends what the membership source delivers.
pub(super) fn membership(source: &Source, start: Start, events: Sender<Event>) -> io::Result<Following> {
    source.follow(start, move |event| {
        let _ = events.send(Event::Membership(event));
    })
}

/// Sends an event for every further version of `agent.toml`.
pub(super) fn settings(mut file: Watch, events: Sender<Event>) -> io::Result<()> {
    thread::Builder::new()
        .name("settings".into())
        .spawn(move || while events.send(Event::Settings(file.next_version())).is_ok() {})?;
    Ok(())
}

/// Sends an event for every notification of rtnetlink and nftables that matters. What matters to rtnetlink's monitor
/// can be changed later ([`Monitor::set_interest`]).
pub(super) fn kernel(kernel: &Linux, interest: Interest, events: Sender<Event>) -> anyhow::Result<Monitor> {
    let of_nftables = events.clone();
    kernel.watch_nftables(move || {
        let _ = of_nftables.send(Event::Kernel);
    })?;
    Ok(Monitor::start(interest, move || {
        let _ = events.send(Event::Kernel);
    })?)
}
