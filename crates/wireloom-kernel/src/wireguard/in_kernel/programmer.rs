//! Turns changes into messages and sends them.

use ipnet::IpNet;
use netlink_packet_wireguard::WireguardAttribute;
use nix::errno::Errno;
use wireloom_types::PublicKey;

use super::{
    family::Commands,
    message::{self, Removal},
    transaction::{AllowedIps, Transaction},
};
use crate::{
    error::Cause,
    random_key::random_key,
    wireguard::{Change, DeviceState},
};

/// Knows the allowed-IPs of the device, so that the kernel needs to hear of differences only.
#[derive(Default)]
pub(super) struct Programmer {
    /// As last read and changed since.
    known: AllowedIps,
    /// Whether the kernel can remove a single allowed-IP; unknown until the first attempt.
    removes_single_ips: Option<bool>,
}

impl Programmer {
    /// Learns the device as it was read; `None` when there is none.
    pub(super) fn observe(&mut self, device: Option<&DeviceState>) {
        self.known = device.map(AllowedIps::of).unwrap_or_default();
    }

    pub(super) fn change(&mut self, device: &mut impl Commands, changes: &[Change<'_>]) -> Result<(), Cause> {
        let transaction = Transaction::new(changes, &mut self.known);
        let outcome = send(device, message::changes(&transaction))
            .and_then(|()| self.remove_allowed_ips(device, &transaction.lost));
        if outcome.is_err() {
            // Some of the changes may have taken effect.
            self.known = AllowedIps::default();
        }
        outcome
    }

    /// Removes allowed-IPs that no other peer gets, one by one: replacing all of a peer's allowed-IPs would
    /// leave it without any for a moment.
    fn remove_allowed_ips(
        &mut self,
        device: &mut impl Commands,
        lost: &[(PublicKey, IpNet)],
    ) -> Result<(), Cause> {
        if lost.is_empty() {
            return Ok(());
        }
        if self.removes_single_ips != Some(false) {
            match send(device, message::removal(lost, &Removal::Flag)) {
                Ok(()) => {
                    if self.removes_single_ips.replace(true).is_none() {
                        tracing::info!("this kernel can remove single allowed-IPs");
                    }
                    return Ok(());
                }
                // Before Linux 6.16 an allowed-IP has no flags, and an unknown attribute is EINVAL; unknown
                // flags are EOPNOTSUPP.
                Err(cause)
                    if self.removes_single_ips.is_none()
                        && matches!(cause.errno(), Some(Errno::EINVAL | Errno::EOPNOTSUPP)) => {}
                Err(cause) => return Err(cause),
            }
        }
        let temporary = random_key()?.public_key();
        send(device, message::removal(lost, &Removal::Handover { temporary }))?;
        if self.removes_single_ips.replace(false).is_none() {
            tracing::info!("this kernel cannot remove a single allowed-IP: a temporary peer takes it over");
        }
        Ok(())
    }
}

fn send(device: &mut impl Commands, messages: Vec<Vec<WireguardAttribute>>) -> Result<(), Cause> {
    messages.into_iter().try_for_each(|attributes| device.set(attributes))
}
