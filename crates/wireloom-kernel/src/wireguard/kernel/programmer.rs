//! Tells the kernel what changes ask of it.

use ipnet::IpNet;
use netlink_packet_wireguard::WireguardAttribute;
use nix::errno::Errno;
use wireloom_types::PublicKey;

use super::{
    family::Device,
    message::{self, Removal},
    transaction::{AllowedIps, Transaction},
};
use crate::random_key;
use crate::{
    error::Cause,
    wireguard::{Change, DeviceState},
};

/// Turns changes into what the kernel must be told.
#[derive(Default)]
pub(super) struct Programmer {
    /// As last read, and as changed since.
    known: AllowedIps,
    /// Whether the kernel can take a single allowed-IP away; unknown until that is first tried.
    takes_single_ips_away: Option<bool>,
}

impl Programmer {
    /// What was read; `None` when there is no device.
    pub(super) fn observe(&mut self, device: Option<&DeviceState>) {
        self.known = device.map(AllowedIps::of).unwrap_or_default();
    }

    pub(super) fn change(&mut self, device: &mut impl Device, changes: &[Change<'_>]) -> Result<(), Cause> {
        let transaction = Transaction::new(changes, &mut self.known);
        let outcome = send(device, message::changes(&transaction))
            .and_then(|()| self.take_away(device, &transaction.lost));
        if outcome.is_err() {
            // Some of it may be done.
            self.known = AllowedIps::default();
        }
        outcome
    }

    /// Takes allowed-IPs away that nobody else gets, one by one: to write what a peer keeps anew
    /// would leave it without any for a moment.
    fn take_away(&mut self, device: &mut impl Device, lost: &[(PublicKey, IpNet)]) -> Result<(), Cause> {
        if lost.is_empty() {
            return Ok(());
        }
        if self.takes_single_ips_away != Some(false) {
            match send(device, message::removal(lost, &Removal::Flag)) {
                Ok(()) => {
                    if self.takes_single_ips_away.replace(true).is_none() {
                        tracing::info!("this kernel takes single allowed-IPs away");
                    }
                    return Ok(());
                }
                // Before Linux 6.16 an allowed-IP has no flags, and an attribute too many is EINVAL; flags
                // that a kernel does not know are EOPNOTSUPP.
                Err(Cause::Refused { errno: Errno::EINVAL | Errno::EOPNOTSUPP, .. })
                    if self.takes_single_ips_away.is_none() => {}
                Err(cause) => return Err(cause),
            }
        }
        let nobody = random_key()?.public_key();
        send(device, message::removal(lost, &Removal::Handover { nobody }))?;
        if self.takes_single_ips_away.replace(false).is_none() {
            tracing::info!("this kernel takes no single allowed-IP away: a peer made for that does");
        }
        Ok(())
    }
}

fn send(device: &mut impl Device, messages: Vec<Vec<WireguardAttribute>>) -> Result<(), Cause> {
    messages.into_iter().try_for_each(|attributes| device.set(attributes))
}
