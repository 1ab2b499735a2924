//! Requests of clients: lines of `key=value`, ended by an empty line. Parsing has no side effects.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV6},
    num::NonZeroU16,
};

use ipnet::IpNet;
use wireloom_proto::PATH_MTU_MIN;
use wireloom_types::{PresharedKey, PrivateKey, PublicKey, SourceCheck};

use super::Errno;

/// The longest line in bytes, without its end. The longest meaningful lines have a key as their value.
pub const MAX_LINE: usize = 256;

/// A complete request.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// `get=1`: the device and its peers.
    Get,
    /// `get_drops=1`: the counters of dropped packets by reason. An extension of ours.
    GetDrops,
    /// `get_handover=1`: which process serves, and how it got the interface. An extension of ours.
    GetHandover,
    /// `get_link=1`: the device's mode, and its peers as neighbours. An extension of ours.
    GetLink,
    /// `get_paths=1`: the path MTU of each peer. An extension of ours.
    GetPaths,
    /// `set=1`: changes, of which either all or none are applied. They stay where they are in memory until they are
    /// wiped, because they may contain keys.
    Set(Box<Set>),
}

/// Changes to the device. `None` means no change.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// The device's private key; the inner `None` removes it.
    pub private_key: Option<Option<PrivateKey>>,
    /// The UDP port; 0 lets the system choose one.
    pub listen_port: Option<u16>,
    /// The firewall mark of the datagrams sent; 0 is none.
    pub fwmark: Option<u32>,
    /// What decides which source addresses a peer may use. An extension of ours.
    pub source_check: Option<SourceCheck>,
    /// Whether all present peers are removed first, with their sessions.
    pub replace_peers: bool,
    /// Changes to peers, in the order given. A peer may occur more than once. They are boxed, because a vector that
    /// grows leaves copies of what is in it behind, unwiped.
    pub peers: Vec<Box<PeerChange>>,
}

/// Changes to one peer.
#[derive(Debug, PartialEq, Eq)]
pub struct PeerChange {
    /// The peer's key.
    pub public_key: PublicKey,
    /// Whether to remove the peer, whatever the other fields are.
    pub remove: bool,
    /// Whether to change the peer only if it exists.
    pub update_only: bool,
    /// The preshared key; the inner `None` removes it.
    pub preshared_key: Option<Option<PresharedKey>>,
    /// The peer's UDP address.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; the inner `None` turns them off.
    pub persistent_keepalive: Option<Option<NonZeroU16>>,
    /// The largest IP packet that the underlay carries to the peer, in bytes; the inner `None` removes the setting. An
    /// extension of ours.
    pub path_mtu: Option<Option<u16>>,
    /// Whether the peer's present allowed-IPs are removed first.
    pub replace_allowed_ips: bool,
    /// Changes to the allowed-IPs, in the order given.
    pub allowed_ips: Vec<AllowedIpChange>,
}

/// A change to a peer's allowed-IPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedIpChange {
    /// The network becomes the peer's, and is taken from any other peer that has it.
    Add(IpNet),
    /// The network is removed from the peer, if it has it (written with `-` before the address).
    Remove(IpNet),
}

impl PeerChange {
    fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            path_mtu: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

/// Why a request is refused. None of it is applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {kind}")]
pub struct RequestError {
    /// The number of the line, counted from 1 at the start of the request.
    pub line: u64,
    /// What is wrong with the line.
    pub kind: RequestErrorKind,
}

/// What can be wrong with a line. The messages never show a value, which may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestErrorKind {
    /// It is the first line, but begins no request.
    #[error("a request begins with get=1 or set=1")]
    UnknownOperation,
    /// It is not empty, but follows a `get`, which has no arguments.
    #[error("an empty line must follow a get request")]
    TrailingLine,
    /// It is longer than [`MAX_LINE`].
    #[error("a line has at most {MAX_LINE} bytes")]
    LineTooLong,
    /// It is not UTF-8.
    #[error("the line is not UTF-8")]
    NotText,
    /// It has no `=`.
    #[error("a line is key=value")]
    NoEquals,
    /// Its key is unknown before the first `public_key`.
    #[error(
        "unknown key {0:?}; before the first public_key there can be private_key, listen_port, fwmark, \
         replace_peers, source_check"
    )]
    UnknownDeviceKey(String),
    /// Its key is unknown after a `public_key`.
    #[error(
        "unknown key {0:?}; after a public_key there can be remove, update_only, preshared_key, endpoint, \
         persistent_keepalive_interval, replace_allowed_ips, allowed_ip, path_mtu, protocol_version"
    )]
    UnknownPeerKey(String),
    /// Its value is not valid for its key.
    #[error("{key} takes {expected}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// The values that are valid for it.
        expected: &'static str,
    },
    /// It has more bytes than the server takes.
    #[error("the request is too long; send it in parts")]
    TooLong,
    /// The connection ended before the request did.
    #[error("the request ends without an empty line")]
    Unfinished,
}

impl RequestErrorKind {
    /// The number that a client gets for it.
    pub(super) fn errno(&self) -> Errno {
        if matches!(self, Self::TooLong) { Errno::E2BIG } else { Errno::EINVAL }
    }
}

use RequestErrorKind::{
    BadValue, LineTooLong, NoEquals, NotText, TrailingLine, UnknownDeviceKey, UnknownOperation,
    UnknownPeerKey,
};

/// Reads one request, line by line.
#[derive(Debug, Default)]
pub struct Parser {
    line: u64,
    request: Option<Request>,
}

impl Parser {
    /// Takes one line, without its end. Returns the request if the line completes it; the parser is then ready for the
    /// next one.
    ///
    /// `scope` returns the index of the network interface with a name, for the zone of link-local endpoints.
    ///
    /// # Errors
    /// [`RequestError`]; the request is refused, and the lines up to the next empty one have to be discarded.
    pub fn line(
        &mut self,
        line: &[u8],
        scope: &dyn Fn(&str) -> Option<u32>,
    ) -> Result<Option<Request>, RequestError> {
        self.line += 1;
        let taken = self.take(line, scope).map_err(|kind| RequestError { line: self.line, kind });
        if !matches!(taken, Ok(None)) {
            *self = Self::default();
        }
        taken
    }

    /// Whether a request has begun and is not complete.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        self.line > 0
    }

    /// The error for a request that ends after the last line.
    #[must_use]
    pub fn unfinished(&self) -> RequestError {
        RequestError { line: self.line, kind: RequestErrorKind::Unfinished }
    }

    /// Forgets a request that is too long, and returns the error for it.
    pub(super) fn too_long(&mut self) -> RequestError {
        let Self { line, .. } = std::mem::take(self);
        RequestError { line: line + 1, kind: RequestErrorKind::TooLong }
    }

    fn take(
        &mut self,
        line: &[u8],
        scope: &dyn Fn(&str) -> Option<u32>,
    ) -> Result<Option<Request>, RequestErrorKind> {
        if line.len() > MAX_LINE {
            return Err(LineTooLong);
        }
        let line = str::from_utf8(line).map_err(|_| NotText)?;
        match &mut self.request {
            None => self.request = Some(operation(line)?),
            Some(_) if line.is_empty() => return Ok(self.request.take()),
            Some(Request::Set(set)) => {
                let (key, value) = line.split_once('=').ok_or(NoEquals)?;
                match set.peers.last_mut() {
                    _ if key == "public_key" => set.peers.push(Box::new(PeerChange::new(public_key(value)?))),
                    None => set.device_line(key, value)?,
                    Some(peer) => peer.line(key, value, scope)?,
                }
            }
            Some(_) => return Err(TrailingLine),
        }
        Ok(None)
    }
}

fn operation(line: &str) -> Result<Request, RequestErrorKind> {
    match line {
        "get=1" => Ok(Request::Get),
        "get_drops=1" => Ok(Request::GetDrops),
        "get_handover=1" => Ok(Request::GetHandover),
        "get_link=1" => Ok(Request::GetLink),
        "get_paths=1" => Ok(Request::GetPaths),
        "set=1" => Ok(Request::Set(Box::default())),
        _ => Err(UnknownOperation),
    }
}

impl Set {
    fn device_line(&mut self, key: &str, value: &str) -> Result<(), RequestErrorKind> {
        match key {
            "private_key" => {
                let key = PrivateKey::from_hex(value)
                    .map_err(|_| BadValue { key: "private_key", expected: KEY })?;
                self.private_key = Some((!is_zero(value)).then_some(key));
            }
            "listen_port" => {
                let port = value.parse().map_err(|_| BadValue { key: "listen_port", expected: PORT })?;
                self.listen_port = Some(port);
            }
            "fwmark" => {
                let mark = value.parse().map_err(|_| BadValue { key: "fwmark", expected: MARK })?;
                self.fwmark = Some(mark);
            }
            "source_check" => {
                let check =
                    value.parse().map_err(|_| BadValue { key: "source_check", expected: SOURCE_CHECK })?;
                self.source_check = Some(check);
            }
            "replace_peers" => {
                expect_true("replace_peers", value)?;
                self.replace_peers = true;
            }
            _ => return Err(UnknownDeviceKey(shown(key))),
        }
        Ok(())
    }
}

impl PeerChange {
    fn line(
        &mut self,
        key: &str,
        value: &str,
        scope: &dyn Fn(&str) -> Option<u32>,
    ) -> Result<(), RequestErrorKind> {
        match key {
            "remove" => {
                expect_true("remove", value)?;
                self.remove = true;
            }
            "update_only" => {
                expect_true("update_only", value)?;
                self.update_only = true;
            }
            "preshared_key" => {
                let key = PresharedKey::from_hex(value)
                    .map_err(|_| BadValue { key: "preshared_key", expected: KEY })?;
                self.preshared_key = Some((!key.is_zero()).then_some(key));
            }
            "endpoint" => {
                let endpoint =
                    endpoint(value, scope).ok_or(BadValue { key: "endpoint", expected: ENDPOINT })?;
                self.endpoint = Some(endpoint);
            }
            "persistent_keepalive_interval" => {
                let interval = value
                    .parse()
                    .map_err(|_| BadValue { key: "persistent_keepalive_interval", expected: SECONDS })?;
                self.persistent_keepalive = Some(NonZeroU16::new(interval));
            }
            "path_mtu" => {
                let path_mtu: u16 = value
                    .parse()
                    .ok()
                    .filter(|mtu| *mtu == 0 || usize::from(*mtu) >= PATH_MTU_MIN)
                    .ok_or(BadValue { key: "path_mtu", expected: PATH_MTU })?;
                self.path_mtu = Some((path_mtu > 0).then_some(path_mtu));
            }
            "replace_allowed_ips" => {
                expect_true("replace_allowed_ips", value)?;
                self.replace_allowed_ips = true;
                // It also replaces those that precede it in this request.
                self.allowed_ips.clear();
            }
            "allowed_ip" => {
                let change = allowed_ip(value).ok_or(BadValue { key: "allowed_ip", expected: ALLOWED_IP })?;
                self.allowed_ips.push(change);
            }
            "protocol_version" if value == "1" => {}
            "protocol_version" => return Err(BadValue { key: "protocol_version", expected: "1" }),
            _ => return Err(UnknownPeerKey(shown(key))),
        }
        Ok(())
    }
}

const KEY: &str = "64 hexadecimal digits";
const PORT: &str = "a UDP port: 0 to 65535";
const MARK: &str = "a decimal number: 0 to 4294967295";
const SECONDS: &str = "a number of seconds: 0 to 65535";
const ENDPOINT: &str = "ADDRESS:PORT, or [ADDRESS]:PORT for IPv6, with a port other than 0";
const SOURCE_CHECK: &str = "allowed-ips, firewall or off";
const PATH_MTU: &str = "a number of bytes: 552 to 65535, or 0 to forget it";
const ALLOWED_IP: &str = "ADDRESS/PREFIX-LENGTH, with '-' before it to remove it";

/// The key of a line, as an error shows it. Keys are short; anything longer may be something else, such as a secret.
fn shown(key: &str) -> String {
    key.chars().take(32).collect()
}

fn expect_true(key: &'static str, value: &str) -> Result<(), RequestErrorKind> {
    if value == "true" { Ok(()) } else { Err(BadValue { key, expected: "true" }) }
}

fn public_key(value: &str) -> Result<PublicKey, RequestErrorKind> {
    PublicKey::from_hex(value).map_err(|_| BadValue { key: "public_key", expected: KEY })
}

/// Whether a key is all zeroes, which means "no key". A `PrivateKey` cannot tell, because it is clamped.
fn is_zero(hex: &str) -> bool {
    hex.bytes().fold(true, |zero, digit| zero & (digit == b'0'))
}

fn endpoint(value: &str, scope: &dyn Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let endpoint: SocketAddr = match value.split_once('%') {
        None => value.parse().ok()?,
        // `[fe80::1%eth0]:51820` has a zone, by name or number.
        Some((address, rest)) => {
            let address = address.strip_prefix('[')?.parse().ok()?;
            let (zone, port) = rest.split_once("]:")?;
            let zone = zone.parse().ok().or_else(|| scope(zone))?;
            SocketAddrV6::new(address, port.parse().ok()?, 0, zone).into()
        }
    };
    (endpoint.port() != 0).then_some(endpoint)
}

fn allowed_ip(value: &str) -> Option<AllowedIpChange> {
    let (kind, value): (fn(IpNet) -> _, _) = match value.strip_prefix('-') {
        Some(rest) => (AllowedIpChange::Remove, rest),
        None => (AllowedIpChange::Add, value),
    };
    let network: IpNet = match value.split_once('/') {
        Some(_) => value.parse().ok()?,
        None => value.parse::<IpAddr>().ok()?.into(),
    };
    Some(kind(network.trunc()))
}

#[cfg(test)]
mod tests;
