//! The protocol of the control socket (<https://www.wireguard.com/xplatform/>): writes requests, reads replies.

use std::{
    fmt::Write,
    time::{Duration, SystemTime},
};

use wireloom_types::{PresharedKey, PrivateKey, PublicKey, SourceCheck};

use super::secret::SecretBytes;
use crate::wireguard::{Change, DeviceState, PeerState, shown};

/// Requests the whole device, and the source check, which is an extension of our own device.
pub(super) const GET_ALL: &[u8] = b"get=1\n\nget_link=1\n\n";

/// The replies to the two requests of [`GET_ALL`].
pub(super) fn split(replies: &str) -> Option<(&str, &str)> {
    let end = replies.find("\n\n")? + 2;
    Some(replies.split_at(end))
}

/// No preshared key.
const NO_KEY: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The request of one transaction. It may hold secret keys.
pub(super) fn set(changes: &[Change<'_>]) -> SecretBytes {
    let mut text = SecretBytes::default();
    text.append(b"set=1\n");
    for change in changes {
        append(&mut text, change);
    }
    text.append(b"\n");
    text
}

fn append(text: &mut SecretBytes, change: &Change<'_>) {
    let written = match change {
        Change::Configure { key, listen_port, fwmark, source_check } => {
            let key = key.expose_hex();
            writeln!(
                text,
                "private_key={}\nlisten_port={listen_port}\nfwmark={fwmark}\nsource_check={source_check}",
                *key
            )
        }
        Change::RemovePeer(key) => writeln!(text, "public_key={}\nremove=true", hex(*key)),
        Change::SetKeepalive { public_key, endpoint, seconds } => (|| {
            writeln!(text, "public_key={}\nupdate_only=true", hex(*public_key))?;
            if let Some(endpoint) = endpoint {
                writeln!(text, "endpoint={endpoint}")?;
            }
            writeln!(text, "persistent_keepalive_interval={seconds}")
        })(),
        Change::SetPeer { peer, preshared_key } => (|| {
            writeln!(text, "public_key={}", hex(peer.public_key))?;
            let key = preshared_key.map(PresharedKey::expose_hex);
            writeln!(text, "preshared_key={}", key.as_ref().map_or(NO_KEY, |key| key.as_str()))?;
            if let Some(endpoint) = peer.endpoint {
                writeln!(text, "endpoint={endpoint}")?;
            }
            writeln!(text, "persistent_keepalive_interval={}", peer.persistent_keepalive)?;
            writeln!(text, "replace_allowed_ips=true")?;
            peer.allowed_ips.iter().try_for_each(|cidr| writeln!(text, "allowed_ip={cidr}"))
        })(),
    };
    debug_assert!(written.is_ok(), "writing to memory cannot fail");
}

/// An unreadable reply, or a refusal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReplyError {
    /// `errno=` with a number other than 0.
    #[error("the device refused the change: {}", nix::errno::Errno::from_raw(*.0).desc())]
    Refused(i32),
    /// It ends before `errno=`.
    #[error("the device's reply is cut off")]
    CutOff,
    /// A line that is not `key=value`. It is not shown: it may hold a secret.
    #[error("the device's reply has a line that is not `key=value`")]
    NoPair,
    /// A line has a malformed value. It is not shown either.
    #[error("the device's reply has an unreadable value for `{0}`")]
    Unreadable(String),
}

/// Reads the reply to a [`set`].
pub(super) fn parse_set_reply(text: &str) -> Result<(), ReplyError> {
    lines(text)?.try_for_each(|line| line.map(|_| ()))
}

/// Reads the reply to the first request of [`GET_ALL`]. Keys that we do not need are skipped.
pub(super) fn parse_get_reply(text: &str) -> Result<DeviceState, ReplyError> {
    let mut device = DeviceState::default();
    let mut current: Option<(PublicKey, PeerState)> = None;
    let mut handshake = Duration::ZERO;
    for line in lines(text)? {
        let (name, value) = line?;
        let unreadable = || ReplyError::Unreadable(name.to_owned());
        match (name, &mut current) {
            ("private_key", None) => {
                let key = PrivateKey::from_hex(value).map_err(|_| unreadable())?;
                // wireguard-go writes zeros when there is no key.
                let none = value.bytes().all(|digit| digit == b'0');
                device.public_key = (!none).then(|| key.public_key());
            }
            ("listen_port", None) => device.listen_port = value.parse().map_err(|_| unreadable())?,
            ("fwmark", None) => device.fwmark = value.parse().map_err(|_| unreadable())?,
            ("public_key", _) => {
                let key = PublicKey::from_hex(value).map_err(|_| unreadable())?;
                let next = (PublicKey::from_bytes(*key.as_bytes()), PeerState::default());
                device.peers.extend(current.replace(next));
                handshake = Duration::ZERO;
            }
            ("preshared_key", Some((_, peer))) => {
                let key = PresharedKey::from_hex(value).map_err(|_| unreadable())?;
                peer.preshared_key = shown(&key);
            }
            ("endpoint", Some((_, peer))) => peer.endpoint = Some(value.parse().map_err(|_| unreadable())?),
            ("allowed_ip", Some((_, peer))) => {
                peer.allowed_ips.insert(value.parse().map_err(|_| unreadable())?);
            }
            ("persistent_keepalive_interval", Some((_, peer))) => {
                peer.persistent_keepalive = value.parse().map_err(|_| unreadable())?;
            }
            ("last_handshake_time_sec", Some((_, peer))) => {
                handshake = Duration::from_secs(value.parse().map_err(|_| unreadable())?);
                peer.last_handshake = since_epoch(handshake);
            }
            ("last_handshake_time_nsec", Some((_, peer))) => {
                let nanoseconds = Duration::from_nanos(value.parse().map_err(|_| unreadable())?);
                peer.last_handshake = since_epoch(handshake.saturating_add(nanoseconds));
            }
            ("rx_bytes", Some((_, peer))) => peer.received = value.parse().map_err(|_| unreadable())?,
            ("tx_bytes", Some((_, peer))) => peer.sent = value.parse().map_err(|_| unreadable())?,
            _ => {}
        }
    }
    device.peers.extend(current);
    Ok(device)
}

/// Reads the reply to the second request of [`GET_ALL`]. A device from before link mode refuses the request: it checks
/// allowed-IPs.
pub(super) fn parse_link_reply(text: &str) -> Result<SourceCheck, ReplyError> {
    let mut lines = match lines(text) {
        Err(ReplyError::Refused(_)) => return Ok(SourceCheck::AllowedIps),
        lines => lines?,
    };
    let missing = || ReplyError::Unreadable("source_check".into());
    let line = lines.find(|line| !matches!(line, Ok((name, _)) if *name != "source_check"));
    let (_, value) = line.ok_or_else(missing)??;
    value.parse().map_err(|_| missing())
}

/// Zero means never.
fn since_epoch(time: Duration) -> Option<SystemTime> {
    if time.is_zero() { None } else { SystemTime::UNIX_EPOCH.checked_add(time) }
}

/// The lines before the closing `errno=0`.
fn lines(text: &str) -> Result<impl Iterator<Item = Result<(&str, &str), ReplyError>>, ReplyError> {
    let body = text.strip_suffix("\n\n").ok_or(ReplyError::CutOff)?;
    let (body, errno) = match body.rsplit_once('\n') {
        Some((body, last)) => (body, last),
        None => ("", body),
    };
    match errno.strip_prefix("errno=").and_then(|number| number.parse::<i32>().ok()) {
        Some(0) => Ok(body.lines().map(|line| line.split_once('=').ok_or(ReplyError::NoPair))),
        Some(number) => Err(ReplyError::Refused(number.saturating_abs())),
        None => Err(ReplyError::CutOff),
    }
}

fn hex(key: PublicKey) -> String {
    key.to_hex()
}

#[cfg(test)]
mod tests {
    use wireloom_plan::op::SetPeer;

    use super::*;

    const A: &str = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
    const A_HEX: &str = "1c8828f7137324c58b2804928624ea2326f1674537c062e251e2753ca7fcca4c";

    #[test]
    fn one_request_holds_many_changes() {
        let key = PrivateKey::from_bytes([7; 32]);
        let mesh_key = PresharedKey::from_bytes([9; 32]);
        let peer = SetPeer {
            public_key: A.parse().unwrap(),
            endpoint: Some("[2001:db8::1]:51820".parse().unwrap()),
            allowed_ips: ["10.161.2.0/24".parse().unwrap(), "fd61:0:0:2::/64".parse().unwrap()].into(),
            persistent_keepalive: 25,
            preshared_key: shown(&mesh_key),
        };
        let silent = SetPeer {
            endpoint: None,
            allowed_ips: [].into(),
            persistent_keepalive: 0,
            preshared_key: None,
            ..peer.clone()
        };
        let changes = [
            Change::Configure { key: &key, listen_port: 51820, fwmark: 0xa, source_check: SourceCheck::Off },
            Change::RemovePeer(PublicKey::from_bytes([0xab; 32])),
            Change::SetPeer { peer: &peer, preshared_key: Some(&mesh_key) },
            Change::SetPeer { peer: &silent, preshared_key: None },
        ];
        let expected = format!(
            "set=1\nprivate_key={}\nlisten_port=51820\nfwmark=10\nsource_check=off\n\
             public_key={}\nremove=true\n\
             public_key={A_HEX}\npreshared_key={}\nendpoint=[2001:db8::1]:51820\npersistent_keepalive_interval=25\n\
             replace_allowed_ips=true\nallowed_ip=10.161.2.0/24\nallowed_ip=fd61:0:0:2::/64\n\
             public_key={A_HEX}\npreshared_key={NO_KEY}\npersistent_keepalive_interval=0\nreplace_allowed_ips=true\n\n",
            *key.expose_hex(),
            "ab".repeat(32),
            "09".repeat(32),
        );
        assert_eq!(str::from_utf8(&set(&changes)).unwrap(), expected);
    }

    #[test]
    fn a_whole_device_is_read() {
        let private = PrivateKey::from_bytes([7; 32]);
        let text = format!(
            "private_key={}\nlisten_port=51820\nfwmark=10\n\
             public_key={A_HEX}\nprotocol_version=1\npreshared_key={}\nendpoint=192.0.2.1:51820\n\
             last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\nrx_bytes=10\ntx_bytes=20\n\
             persistent_keepalive_interval=25\nallowed_ip=10.161.2.0/24\nallowed_ip=10.161.1.7/32\n\
             public_key={}\npreshared_key={}\nlast_handshake_time_sec=0\n\
             last_handshake_time_nsec=0\nsome_later_key=1\nerrno=0\n\n",
            *private.expose_hex(),
            "0".repeat(64),
            "ab".repeat(32),
            "09".repeat(32),
        );
        let a = PeerState {
            endpoint: Some("192.0.2.1:51820".parse().unwrap()),
            allowed_ips: ["10.161.2.0/24".parse().unwrap(), "10.161.1.7/32".parse().unwrap()].into(),
            persistent_keepalive: 25,
            last_handshake: Some(SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5)),
            received: 10,
            sent: 20,
            ..PeerState::default()
        };
        let b =
            PeerState { preshared_key: shown(&PresharedKey::from_bytes([9; 32])), ..PeerState::default() };
        let expected = DeviceState {
            public_key: Some(private.public_key()),
            listen_port: 51820,
            fwmark: 10,
            source_check: SourceCheck::AllowedIps,
            peers: [(A.parse().unwrap(), a), (PublicKey::from_bytes([0xab; 32]), b)].into(),
        };
        assert_eq!(parse_get_reply(&text), Ok(expected));
    }

    #[test]
    fn two_replies_are_told_apart() {
        let link = "source_check=off\nerrno=0\n\n";
        assert_eq!(split(&format!("fwmark=1\nerrno=0\n\n{link}")), Some(("fwmark=1\nerrno=0\n\n", link)));
        assert_eq!(split("errno=0\n\n"), Some(("errno=0\n\n", "")));
        assert_eq!(split("fwmark=1\n"), None);
    }

    #[test]
    fn a_fresh_device_has_no_key() {
        let text = format!("private_key={}\nlisten_port=0\nfwmark=0\nerrno=0\n\n", "0".repeat(64));
        assert_eq!(parse_get_reply(&text), Ok(DeviceState::default()));
        assert_eq!(parse_get_reply("errno=0\n\n"), Ok(DeviceState::default()));
    }

    #[test]
    fn the_source_check_is_read() {
        let reply =
            |check| format!("peer_lookup=gateway\nsource_check={check}\nlink_address=02:0\nerrno=0\n\n");
        assert_eq!(parse_link_reply(&reply("off")), Ok(SourceCheck::Off));
        assert_eq!(parse_link_reply(&reply("firewall")), Ok(SourceCheck::Firewall));
        assert!(parse_link_reply(&reply("nobody")).is_err());
        assert!(parse_link_reply("errno=0\n\n").is_err());
        assert_eq!(
            parse_link_reply("errno=22\n\n"),
            Ok(SourceCheck::AllowedIps),
            "a device from before link mode"
        );
    }

    #[test]
    fn refusals_differ_from_unreadable_replies() {
        assert_eq!(parse_set_reply("errno=0\n\n"), Ok(()));
        assert_eq!(
            parse_set_reply("errno=-98\n\n").unwrap_err().to_string(),
            "the device refused the change: Address already in use"
        );
        assert_eq!(parse_set_reply("errno=98\n\n"), Err(ReplyError::Refused(98)));
        assert_eq!(parse_set_reply(""), Err(ReplyError::CutOff));
        assert_eq!(parse_set_reply("errno=0\n"), Err(ReplyError::CutOff));
        assert_eq!(parse_get_reply("fwmark=1\n\n"), Err(ReplyError::CutOff));
        assert_eq!(parse_get_reply("fwmark=x\nerrno=0\n\n"), Err(ReplyError::Unreadable("fwmark".into())));
        assert_eq!(parse_get_reply("nonsense\nerrno=0\n\n"), Err(ReplyError::NoPair));
        let key = "07".repeat(32);
        let error = parse_get_reply(&format!("fwmark=1\n{key}\nerrno=0\n\n")).unwrap_err().to_string();
        assert!(!error.contains("0707"), "{error}");
    }
}
