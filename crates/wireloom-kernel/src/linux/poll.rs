//! What the kernel does not announce: the WireGuard device, and sysctls.

use wireloom_plan::{
    observed::{Device, Observed},
    sysctl::{ALL, UnderlaySysctl},
};

use super::Linux;
use crate::{error::Error, sysctl, wireguard::DeviceState};

/// What a poll found.
#[derive(Debug)]
pub struct Poll {
    /// The device with its counters; absent when it does not exist or is not ours.
    pub device: Option<DeviceState>,
    /// Whether somebody changed something that we programmed. Counters, handshakes, and endpoints, which WireGuard
    /// learns by itself, are nothing of that.
    pub tampered: bool,
}

impl Linux {
    /// Reads what the kernel does not announce, and compares it with how we left it, if that is known.
    ///
    /// # Errors
    /// As [`Self::device`]; or a sysctl cannot be read.
    pub fn poll(&mut self, left: Option<&Observed>) -> Result<Poll, Error> {
        let device = self.device()?;
        let tampered = match left {
            Some(left) => differs(device.as_ref(), left.device.as_ref()) || self.sysctls_differ(left)?,
            None => false,
        };
        Ok(Poll { device, tampered })
    }

    fn sysctls_differ(&self, left: &Observed) -> Result<bool, Error> {
        use UnderlaySysctl::{RpFilter, SendRedirects, SrcValidMark};
        let own =
            left.interface.as_ref().map(|interface| (self.interface.as_str(), RpFilter, interface.rp_filter));
        let underlays = left.underlays.iter().flat_map(|(name, underlay)| {
            [
                (name.as_str(), RpFilter, underlay.rp_filter),
                (name.as_str(), SrcValidMark, u8::from(underlay.src_valid_mark)),
            ]
        });
        let outward = left.outward.iter().map(|(name, rp_filter)| (name.as_str(), RpFilter, *rp_filter));
        let all = [(ALL, RpFilter, left.rp_filter_all), (ALL, SendRedirects, u8::from(left.send_redirects))];
        for (interface, name, value) in own.into_iter().chain(underlays).chain(outward).chain(all) {
            // An interface that is gone was announced.
            if sysctl::read(interface, name)?.is_some_and(|now| now != value) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn differs(now: Option<&DeviceState>, left: Option<&Device>) -> bool {
    let (Some(now), Some(left)) = (now, left) else { return now.is_some() != left.is_some() };
    let settings =
        |public_key, listen_port, fwmark, source_check| (public_key, listen_port, fwmark, source_check);
    settings(now.public_key, now.listen_port, now.fwmark, now.source_check)
        != settings(left.public_key, left.listen_port, left.fwmark, left.source_check)
        || now.peers.len() != left.peers.len()
        || now.peers.iter().any(|(key, peer)| {
            left.peers.get(key).is_none_or(|left| {
                (&peer.allowed_ips, peer.persistent_keepalive, peer.preshared_key)
                    != (&left.allowed_ips, left.persistent_keepalive, left.preshared_key)
            })
        })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use wireloom_plan::observed::Peer;
    use wireloom_types::{PresharedKey, PublicKey};

    use super::*;
    use crate::wireguard::{PeerState, shown};

    const KEY: PublicKey = PublicKey::from_bytes([1; 32]);

    #[test]
    fn what_traffic_changes_is_no_tampering_and_everything_else_is() {
        let left = Device { fwmark: 10, peers: [(KEY, Peer::default())].into(), ..Device::default() };
        let peer = PeerState {
            endpoint: Some("192.0.2.1:9".parse().unwrap()),
            last_handshake: Some(SystemTime::now()),
            received: 1,
            sent: 2,
            ..PeerState::default()
        };
        let now = DeviceState { fwmark: 10, peers: [(KEY, peer.clone())].into(), ..DeviceState::default() };
        let with = |peer: PeerState| DeviceState { peers: [(KEY, peer)].into(), ..now.clone() };
        assert!(!differs(Some(&now), Some(&left)));
        assert!(!differs(None, None));
        for tampered in [
            DeviceState { fwmark: 0, ..now.clone() },
            DeviceState { listen_port: 7, ..now.clone() },
            DeviceState { public_key: Some(KEY), ..now.clone() },
            DeviceState { peers: [].into(), ..now.clone() },
            DeviceState { peers: [(PublicKey::from_bytes([2; 32]), peer.clone())].into(), ..now.clone() },
            with(PeerState { allowed_ips: ["10.9.0.0/16".parse().unwrap()].into(), ..peer.clone() }),
            with(PeerState { persistent_keepalive: 5, ..peer.clone() }),
            with(PeerState { preshared_key: shown(&PresharedKey::from_bytes([9; 32])), ..peer.clone() }),
        ] {
            assert!(differs(Some(&tampered), Some(&left)), "{tampered:?}");
        }
        assert!(differs(None, Some(&left)) && differs(Some(&now), None));
    }
}
