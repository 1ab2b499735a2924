//! Notifications of nftables: tells when somebody else changed our table, and restores the guard at once.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use wireloom_netlink::{Messages, Protocol, RawMessage, Received, Subscription};

use super::{
    TABLE,
    netlink::{INET, SUBSYSTEM, first_attribute, is_without_netfilter},
    process::Nft,
    saved::Saved,
};

/// `NFNLGRP_NFTABLES` of include/uapi/linux/netfilter/nfnetlink.h.
const GROUP: u32 = 7;

/// Bytes. A full buffer does no harm: it means that something changed. Our own transactions of thousands of
/// elements should not fill it.
const RECEIVE_BUFFER: usize = 16 << 20;

/// The least time between two restorations of a table that is there. One change of others can take many notifications,
/// and whoever makes one after another is left to the agent's passes, which report that.
const PAUSE: Duration = Duration::from_millis(250);

/// What happened to our table.
#[derive(Clone, Copy)]
enum Change {
    /// Somebody else changed it.
    Tampered,
    /// Notifications were lost.
    Unknown,
}

/// Listens in a thread of its own, for as long as the process lives.
pub(super) fn start(nft: Nft, saved: Saved, changed: impl Fn() + Send + 'static) -> io::Result<()> {
    let subscription = match Subscription::open(Protocol::Netfilter, &[GROUP], RECEIVE_BUFFER) {
        // A kernel without netfilter has nothing to tell.
        Err(error) if is_without_netfilter(&error) => return Ok(()),
        subscription => subscription?,
    };
    let mut renewed = None;
    thread::Builder::new().name("nftables".into()).spawn(move || {
        listen(subscription, &nft, |change| {
            restore(&saved, change, &mut renewed);
            changed();
        });
    })?;
    Ok(())
}

fn listen(mut subscription: Subscription, nft: &Nft, mut changed: impl FnMut(Change)) {
    loop {
        match subscription.receive() {
            Ok(Received::Messages(messages)) => {
                if concerns(messages, nft) {
                    changed(Change::Tampered);
                }
            }
            // The lost notifications may have been of our table.
            Ok(Received::Overrun) => changed(Change::Unknown),
            Err(error) => {
                tracing::error!(
                    "cannot receive nftables notifications any more, only the periodic pass remains: {error}"
                );
                return;
            }
        }
    }
}

/// The agent sees to the rest, and to what this cannot do.
fn restore(saved: &Saved, change: Change, renewed: &mut Option<Instant>) {
    let rested = renewed.is_none_or(|renewed| renewed.elapsed() >= PAUSE);
    let outcome = match change {
        Change::Tampered if rested => {
            let outcome = saved.renew();
            *renewed = Some(Instant::now());
            outcome
        }
        Change::Tampered | Change::Unknown => saved.restore(),
    };
    match outcome {
        Ok(true) => {
            tracing::warn!("somebody changed the nftables table `inet {TABLE}`; the guard is restored");
        }
        Ok(false) => {}
        Err(cause) => tracing::warn!("cannot restore the guard at once: {cause}"),
    }
}

fn concerns(mut messages: Messages<'_>, nft: &Nft) -> bool {
    messages.any(|message| match message {
        Ok(message) => is_of_our_table(&message) && !nft.ran(message.header.port_number),
        Err(_) => true,
    })
}

fn is_of_our_table(message: &RawMessage<'_>) -> bool {
    let payload = message.payload();
    let name = first_attribute(payload).and_then(|name| name.strip_suffix(b"\0"));
    message.header.message_type >> 8 == SUBSYSTEM
        && payload.first() == Some(&INET)
        && name == Some(TABLE.as_bytes())
}
