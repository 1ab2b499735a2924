//! Asks peers for a handshake, so that they prove that they encrypt with us.

use std::{fs, io};

use wireloom_plan::proofs::Preconditions;
use wireloom_types::PublicKey;

use super::{Linux, greeting::Greeted};
use crate::error::{Attempt, Error};

impl Linux {
    /// What must hold before anybody is asked. `programmed` says whether everything is programmed.
    ///
    /// # Errors
    /// The interface or a sysctl cannot be read.
    pub fn preconditions(&mut self, programmed: bool) -> Result<Preconditions, Error> {
        let found = self.find_interface()?.filter(|found| found.interface.is_ours());
        Ok(Preconditions {
            ready: programmed && found.is_some_and(|found| found.interface.up),
            forwarding_v4: is_on("/proc/sys/net/ipv4/ip_forward")?,
            forwarding_v6: is_on("/proc/sys/net/ipv6/conf/all/forwarding")?,
        })
    }

    /// Starts handshakes with those of these peers that the device has and that are in no session.
    ///
    /// # Errors
    /// The device cannot be read or changed.
    pub fn ask(&mut self, peers: &[PublicKey]) -> Result<(), Error> {
        let Some(found) = self.find_interface()?.filter(|found| found.interface.is_ours()) else {
            return Ok(());
        };
        let Some(device) = self.read_device(found.backend)? else { return Ok(()) };
        let silent = peers.iter().filter_map(|public_key| {
            let peer = device.peers.get(public_key).filter(|peer| peer.last_handshake.is_none())?;
            Some(Greeted { public_key: *public_key, endpoint: None, seconds: peer.persistent_keepalive })
        });
        self.start_handshakes(found.backend, &silent.collect::<Vec<_>>())
    }
}

/// A sysctl that the kernel lacks is off: IPv6 may be compiled out.
fn is_on(path: &str) -> Result<bool, Error> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        text => text.map(|text| text.trim() != "0").attempt(|| format!("read {path}")),
    }
}
