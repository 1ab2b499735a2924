//! The events that the agent's thread receives, and the threads that send them.

use std::{io, sync::mpsc::Sender, thread};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use wireloom_kernel::{Interest, Linux, Monitor};
use wireloom_membership::{
    Source,
    config_file::{ReadError, TomlFile, Watch},
};

pub(super) enum Event {
    Membership(wireloom_membership::Event),
    /// Something of ours in the kernel may have been changed by somebody else.
    Kernel,
    /// `agent.toml` changed, or cannot be read now.
    Settings(Result<TomlFile, ReadError>),
    /// SIGHUP.
    Reload,
    /// SIGTERM or SIGINT.
    Stop,
}

/// Sends an event for every signal.
pub(super) fn signals(events: Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            let event = if signal == SIGHUP { Event::Reload } else { Event::Stop };
            if events.send(event).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// Sends what the membership source delivers.
pub(super) fn membership(source: &Source, events: Sender<Event>) -> io::Result<()> {
    source.follow(move |event| {
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
