//! Notifications of nftables: tells when somebody else changed our table.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use wireloom_netlink::{Messages, Protocol, RawMessage, Received, Subscription};

use super::{
    TABLE,
    netlink::{INET, SUBSYSTEM, first_attribute, is_without_netfilter},
};

/// `NFNLGRP_NFTABLES` of include/uapi/linux/netfilter/nfnetlink.h.
const GROUP: u32 = 7;

/// Bytes. A full buffer does no harm: it means that something changed. Our own transactions of thousands of
/// elements should not fill it.
const RECEIVE_BUFFER: usize = 16 << 20;

/// Our last `nft` processes, whose changes are no news. A netlink socket that asks for no port gets its
/// process's number (`netlink_autobind`, net/netlink/af_netlink.c), and notifications carry it.
#[derive(Debug, Clone, Default)]
pub(super) struct OwnProcesses(Arc<Mutex<VecDeque<u32>>>);

impl OwnProcesses {
    /// More processes than can have notifications under way.
    const REMEMBERED: usize = 32;

    pub(super) fn remember(&self, process: u32) {
        let mut processes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        processes.truncate(Self::REMEMBERED - 1);
        processes.push_front(process);
    }

    fn has(&self, process: u32) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&process)
    }
}

/// Listens in a thread of its own, for as long as the process lives.
pub(super) fn start(own: OwnProcesses, changed: impl Fn() + Send + 'static) -> io::Result<()> {
    let subscription = match Subscription::open(Protocol::Netfilter, &[GROUP], RECEIVE_BUFFER) {
        // A kernel without netfilter has nothing to tell.
        Err(error) if is_without_netfilter(&error) => return Ok(()),
        subscription => subscription?,
    };
    thread::Builder::new().name("nftables".into()).spawn(move || listen(subscription, &own, changed))?;
    Ok(())
}

fn listen(mut subscription: Subscription, own: &OwnProcesses, changed: impl Fn()) {
    loop {
        match subscription.receive() {
            Ok(Received::Messages(messages)) => {
                if concerns(messages, own) {
                    changed();
                }
            }
            // The lost notifications may have been of our table.
            Ok(Received::Overrun) => changed(),
            Err(error) => {
                tracing::error!(
                    "cannot receive nftables notifications any more, only the periodic pass remains: {error}"
                );
                return;
            }
        }
    }
}

fn concerns(mut messages: Messages<'_>, own: &OwnProcesses) -> bool {
    messages.any(|message| match message {
        Ok(message) => is_of_our_table(&message) && !own.has(message.header.port_number),
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
