//! `agent.toml`: what the operator of this node decided.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;
use wireloom_kernel::BackendSetting;
use wireloom_membership::{
    Source,
    config_file::{Mistake, TomlFile},
};
use wireloom_plan::settings::{KeylessPeers, Scope, Settings};
use wireloom_types::{PeerLookup, SourceCheck};

#[cfg(test)]
mod tests;

/// Where the agent looks for its settings unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/wireloom/agent.toml";

/// The whole of `agent.toml`, defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What the planner needs to know.
    pub settings: Settings,
    /// Base64, as `wg genkey` writes it; made when absent.
    pub private_key_file: PathBuf,
    /// Who carries the packets.
    pub backend: BackendSetting,
    /// Where the mesh is told of.
    pub membership: Source,
}

/// The settings cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The host has no name that could stand for `node`.
    #[error("cannot read the host name ({0}): set `node` in agent.toml")]
    HostName(io::Error),
    /// It says something that it may not.
    #[error(transparent)]
    Mistake(#[from] Mistake),
}

impl Config {
    /// Reads `agent.toml`. Without a path it is [`DEFAULT_PATH`], and then the file may be absent:
    /// every setting has a default.
    ///
    /// # Errors
    /// The file cannot be read, or the first mistake in it.
    pub fn load(path: Option<&Path>) -> Result<Self, Error> {
        let given = path.unwrap_or(Path::new(DEFAULT_PATH));
        let file = match TomlFile::read(given) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_none() => {
                TomlFile::from_text(given, "")
            }
            Err(source) => return Err(Error::Read { path: given.to_owned(), source }),
        };
        let file = File::parse(&file)?;
        let node = match &file.node {
            Some(node) => node.0.clone(),
            None => host_name().map_err(Error::HostName)?,
        };
        Ok(file.with_node(node))
    }
}

fn host_name() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim_end().to_owned())
}

/// Those of the planner; its node name is another matter.
fn defaults() -> Settings {
    Settings::defaults("")
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    node: Option<NodeName>,
    wireguard: WireGuard,
    routing: Routing,
    link: Link,
    membership: Membership,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WireGuard {
    interface: InterfaceName,
    listen_port: Port,
    private_key_file: AbsolutePath,
    backend: Option<Spanned<BackendSetting>>,
    mtu: Option<Mtu>,
    #[serde(deserialize_with = "keepalive")]
    persistent_keepalive: u16,
}

impl Default for WireGuard {
    fn default() -> Self {
        let defaults = defaults();
        Self {
            interface: InterfaceName(defaults.interface),
            listen_port: Port(defaults.listen_port),
            private_key_file: AbsolutePath("/var/lib/wireloom/wg0.key".into()),
            backend: None,
            mtu: defaults.mtu.map(Mtu),
            persistent_keepalive: defaults.persistent_keepalive,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Routing {
    encrypt_host_traffic: bool,
    scope: Scope,
    rule_priority: RulePriority,
    table: Table,
    fwmark: FwMark,
    keyless_peers: KeylessPeers,
}

impl Default for Routing {
    fn default() -> Self {
        let defaults = defaults();
        Self {
            encrypt_host_traffic: defaults.encrypt_host_traffic,
            scope: defaults.scope,
            rule_priority: RulePriority(defaults.rule_priority),
            table: Table(defaults.table),
            fwmark: FwMark(defaults.fwmark),
            keyless_peers: defaults.keyless_peers,
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "LinkText")]
struct Link {
    peer_lookup: PeerLookup,
    source_check: SourceCheck,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LinkText {
    peer_lookup: PeerLookup,
    /// Absent: the firewall on a link, the allowed-IPs without one.
    source_check: Option<SourceCheck>,
}

/// Of two decisions some pairs make no sense.
impl TryFrom<LinkText> for Link {
    type Error = &'static str;

    fn try_from(LinkText { peer_lookup, source_check }: LinkText) -> Result<Self, Self::Error> {
        let usual = match peer_lookup {
            PeerLookup::Destination => SourceCheck::AllowedIps,
            PeerLookup::Gateway => SourceCheck::Firewall,
        };
        match (peer_lookup, source_check.unwrap_or(usual)) {
            (PeerLookup::Destination, SourceCheck::Firewall) => Err(
                "source_check = \"firewall\" does not go with peer_lookup = \"destination\": the firewall knows a \
                 peer by its link address, which only a link has; add peer_lookup = \"gateway\", or remove the line \
                 for allowed-ips",
            ),
            (PeerLookup::Gateway, SourceCheck::AllowedIps) => Err(
                "peer_lookup = \"gateway\" does not go with source_check = \"allowed-ips\", since a gateway \
                 forwards packets whose sources no allowed-IPs name; remove the line for the firewall, or write \
                 source_check = \"off\"",
            ),
            (peer_lookup, source_check) => Ok(Self { peer_lookup, source_check }),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Membership {
    #[serde(deserialize_with = "source")]
    source: SourceKind,
    path: AbsolutePath,
}

#[derive(Debug)]
enum SourceKind {
    File,
}

impl Default for Membership {
    fn default() -> Self {
        Self { source: SourceKind::File, path: AbsolutePath("/etc/wireloom/mesh.toml".into()) }
    }
}

impl File {
    fn parse(text: &TomlFile) -> Result<Self, Mistake> {
        let file: Self = text.parse()?;
        let backend =
            file.wireguard.backend.as_ref().filter(|backend| *backend.as_ref() == BackendSetting::Kernel);
        match backend {
            Some(backend) if file.link != Link::default() => Err(text.mistake(
                &backend.span(),
                "the kernel's WireGuard can do nothing of [link]; write backend = \"userspace\" (or \"auto\", \
                 which takes the userspace engine then), or remove [link]",
            )),
            _ => Ok(file),
        }
    }

    fn with_node(self, node: String) -> Config {
        let Self { wireguard, routing, link, membership, .. } = self;
        Config {
            settings: Settings {
                node,
                interface: wireguard.interface.0,
                listen_port: wireguard.listen_port.0,
                mtu: wireguard.mtu.map(|mtu| mtu.0),
                persistent_keepalive: wireguard.persistent_keepalive,
                encrypt_host_traffic: routing.encrypt_host_traffic,
                scope: routing.scope,
                rule_priority: routing.rule_priority.0,
                table: routing.table.0,
                fwmark: routing.fwmark.0,
                keyless_peers: routing.keyless_peers,
                peer_lookup: link.peer_lookup,
                source_check: link.source_check,
            },
            private_key_file: wireguard.private_key_file.0,
            backend: wireguard.backend.map(Spanned::into_inner).unwrap_or_default(),
            membership: match membership.source {
                SourceKind::File => Source::File(membership.path.0),
            },
        }
    }
}

/// A value that has bounds of its own: `$type(value)` when `$check` has no objection.
macro_rules! checked {
    ($name:ident, $raw:ty => $type:ty, $check:expr) => {
        #[derive(Debug)]
        struct $name($type);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let check: fn($raw) -> Result<$type, String> = $check;
                check(<$raw>::deserialize(deserializer)?).map(Self).map_err(de::Error::custom)
            }
        }
    };
}

checked!(NodeName, String => String, |name| match name.as_str() {
    "" => Err("the node's name is empty; remove the line to take the host name".into()),
    _ => Ok(name),
});

// IFNAMSIZ is 16 with the closing zero; dev_valid_name() in net/core/dev.c.
checked!(InterfaceName, String => String, |name| {
    let valid = (1..16).contains(&name.len())
        && !matches!(name.as_str(), "." | "..")
        && !name.contains(|c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control());
    if valid {
        Ok(name)
    } else {
        Err(format!("{name:?} cannot name an interface; take 1 to 15 bytes such as \"wg0\""))
    }
});

checked!(Port, i64 => u16, |port| {
    u16::try_from(port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("{port} is not a UDP port; take 1 to 65535, such as 51820"))
});

checked!(AbsolutePath, PathBuf => PathBuf, |path| {
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(format!("{path:?} depends on where the agent was started; write the whole path, from / on"))
    }
});

// IPV6_MIN_MTU: below 1280 the kernel takes IPv6 off the interface (RFC 8200 section 5).
checked!(Mtu, i64 => u32, |mtu| {
    u32::try_from(mtu)
        .ok()
        .filter(|mtu| (1280..=65_535).contains(mtu))
        .ok_or_else(|| format!("an MTU of {mtu} cannot carry IPv6; take 1280 to 65535, or remove the line"))
});

// FRA_PRIORITY: 0 is the local table's rule, 32766 the main table's; ours must be asked between them.
checked!(RulePriority, i64 => u32, |priority| {
    u32::try_from(priority).ok().filter(|priority| (1..32_766).contains(priority)).ok_or_else(|| {
        format!("a rule at priority {priority} is not between the local and the main table; take 1 to 32765")
    })
});

// RT_TABLE_UNSPEC, _DEFAULT, _MAIN and _LOCAL in include/uapi/linux/rtnetlink.h.
checked!(Table, i64 => u32, |table| match u32::try_from(table) {
    Ok(0 | 253..=255) | Err(_) => {
        Err(format!("table {table} is not free for routes of ours; take 1 to 252 or 256 and up"))
    }
    Ok(table) => Ok(table),
});

checked!(FwMark, FwMarkText => u32, |mark| {
    let value = match &mark {
        FwMarkText::Number(number) => u32::try_from(*number).ok(),
        FwMarkText::Text(text) => match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
            Some(digits) => u32::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        },
    };
    value.filter(|value| *value != 0).ok_or_else(|| {
        "a firewall mark is 1 to 0xffffffff, such as \"0xa\"; its bits must be Wireloom's own".into()
    })
});

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a firewall mark is 1 to 0xffffffff, such as \"0xa\"")]
enum FwMarkText {
    Number(i64),
    Text(String),
}

fn keepalive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let seconds = i64::deserialize(deserializer)?;
    u16::try_from(seconds).map_err(|_| {
        de::Error::custom(format!("{seconds} seconds is not a keepalive; take 0 (off) to 65535"))
    })
}

fn source<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SourceKind, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "file" => Ok(SourceKind::File),
        other => {
            Err(de::Error::custom(format!("this version has no membership source {other:?}; write \"file\"")))
        }
    }
}
