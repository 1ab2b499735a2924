//! `agent.toml` as written, section by section, and the [`Config`] that it becomes.

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;
use wireloom_kernel::BackendSetting;
use wireloom_membership::config_file::{Mistake, TomlFile};
use wireloom_plan::{
    ownership::PROPOSALS,
    settings::{HostTransition, Scope, Settings, UnprovenPeers},
    warning::Warning,
};
use wireloom_types::{Mode, ModeError, PeerLookup, SourceCheck};

use super::{
    Config,
    membership::Membership,
    values::{AbsolutePath, FwMark, InterfaceName, Mtu, NodeName, Port, Prefix, RulePriority, Table},
};
use crate::metrics::Listen;

/// The file as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct File {
    pub(super) node: Option<NodeName>,
    wireguard: WireGuard,
    routing: Routing,
    link: Link,
    membership: Membership,
    metrics: Metrics,
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
    encrypt_host_traffic: Spanned<HostTraffic>,
    encrypt_host_exempt: Option<Spanned<Vec<Prefix>>>,
    scope: Scope,
    rule_priority: RulePriority,
    table: Table,
    fwmark: FwMark,
    unproven_peers: Option<Spanned<UnprovenPeers>>,
    /// Its former name.
    keyless_peers: Option<Spanned<UnprovenPeers>>,
    guard: bool,
}

impl Default for Routing {
    fn default() -> Self {
        let defaults = defaults();
        Self {
            encrypt_host_traffic: Spanned::new(0..0, HostTraffic::Whether(defaults.encrypt_host_traffic)),
            encrypt_host_exempt: None,
            scope: defaults.scope,
            rule_priority: RulePriority(defaults.rule_priority),
            table: Table(Some(defaults.table)),
            fwmark: FwMark(defaults.fwmark),
            unproven_peers: None,
            keyless_peers: None,
            guard: defaults.guard,
        }
    }
}

impl Routing {
    /// Whichever name it has.
    fn unproven_peers(&self) -> Option<&Spanned<UnprovenPeers>> {
        self.unproven_peers.as_ref().or(self.keyless_peers.as_ref())
    }

    fn check(&self, text: &TomlFile) -> Result<(), Mistake> {
        if let (Some(_), Some(old)) = (&self.unproven_peers, &self.keyless_peers) {
            let what =
                "keyless_peers is the former name of unproven_peers, which is set too; remove keyless_peers";
            return Err(text.mistake(&old.span(), what));
        }
        if let (Some(exempt), false) = (&self.encrypt_host_exempt, self.guard) {
            return Err(text.mistake(
                &exempt.span(),
                "the guard's table keeps what is exempt out of the tunnel, and guard = false turns it off; remove \
                 guard = false, or encrypt_host_exempt",
            ));
        }
        if let (Some(_), false) = (self.encrypt_host_traffic.as_ref().transition(), self.guard) {
            return Err(text.mistake(
                &self.encrypt_host_traffic.span(),
                "the guard's table tells on the way into host mode what is direct, and guard = false turns it off; \
                 remove guard = false, or write true or false",
            ));
        }
        match self.unproven_peers() {
            Some(reject) if *reject.as_ref() == UnprovenPeers::Reject && !self.guard => Err(text.mistake(
                &reject.span(),
                "the guard does what \"reject\" asks for, and guard = false turns it off; remove guard = false, or \
                 write \"plaintext\"",
            )),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "encrypt_host_traffic is true or false, or a step on the way from one to the other: \"accept\" or \
                 \"prefer\""
)]
enum HostTraffic {
    Whether(bool),
    Step(HostTransition),
}

impl HostTraffic {
    fn is_on(&self) -> bool {
        !matches!(self, Self::Whether(false))
    }

    fn transition(&self) -> Option<HostTransition> {
        match self {
            Self::Whether(_) => None,
            Self::Step(step) => Some(*step),
        }
    }
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "LinkText")]
struct Link(Mode);

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LinkText {
    peer_lookup: PeerLookup,
    /// The default depends on `peer_lookup`.
    source_check: Option<SourceCheck>,
}

impl Default for Link {
    fn default() -> Self {
        Self(Mode::STANDARD)
    }
}

impl TryFrom<LinkText> for Link {
    type Error = &'static str;

    fn try_from(LinkText { peer_lookup, source_check }: LinkText) -> Result<Self, Self::Error> {
        let default = match peer_lookup {
            PeerLookup::Destination => SourceCheck::AllowedIps,
            PeerLookup::Gateway => SourceCheck::Firewall,
        };
        Mode::new(peer_lookup, source_check.unwrap_or(default)).map(Self).map_err(|error| match error {
            ModeError::FirewallWithoutGateway => {
                "source_check = \"firewall\" needs peer_lookup = \"gateway\", because the firewall recognises a \
                 peer by its link address, which exists in link mode only; write peer_lookup = \"gateway\", or remove \
                 source_check to use allowed-ips"
            }
            ModeError::GatewayWithAllowedIps => {
                "source_check = \"allowed-ips\" does not work with peer_lookup = \"gateway\", because a gateway \
                 forwards packets whose sources are in nobody's allowed-IPs; remove source_check to use the \
                 firewall, or write source_check = \"off\""
            }
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Metrics {
    #[serde(deserialize_with = "listen")]
    listen: Listen,
}

/// The planner's defaults; the node's name in them is not used.
fn defaults() -> Settings {
    Settings::defaults("")
}

impl File {
    pub(super) fn parse(text: &TomlFile) -> Result<Self, Mistake> {
        let file: Self = text.parse()?;
        file.routing.check(text)?;
        file.membership.check(text)?;
        let backend =
            file.wireguard.backend.as_ref().filter(|backend| *backend.as_ref() == BackendSetting::Kernel);
        match backend {
            Some(backend) if file.link != Link::default() => Err(text.mistake(
                &backend.span(),
                "the kernel's WireGuard cannot do what [link] asks for; write backend = \"userspace\" (or \"auto\", \
                 which then chooses it), or remove [link]",
            )),
            _ => Ok(file),
        }
    }

    /// The settings that the file stands for, for a node of this name.
    pub(super) fn with_node(self, node: String) -> Config {
        let Self { wireguard, routing, link, membership, metrics, .. } = self;
        let of_membership = membership.warning();
        let (membership, declared) = membership.into_source();
        let unproven_peers = routing.unproven_peers().map(|peers| *peers.as_ref()).unwrap_or_default();
        let renamed = routing.keyless_peers.is_some();
        let exempt = routing.encrypt_host_exempt.map(Spanned::into_inner).unwrap_or_default();
        let exempt = exempt.into_iter().map(|prefix| prefix.0).collect();
        Config {
            settings: Settings {
                node,
                interface: wireguard.interface.0,
                listen_port: wireguard.listen_port.0,
                mtu: wireguard.mtu.map(|mtu| mtu.0),
                persistent_keepalive: wireguard.persistent_keepalive,
                encrypt_host_traffic: routing.encrypt_host_traffic.as_ref().is_on(),
                host_transition: routing.encrypt_host_traffic.as_ref().transition(),
                encrypt_host_exempt: exempt,
                scope: routing.scope,
                rule_priority: routing.rule_priority.0,
                table: routing.table.0.unwrap_or(*PROPOSALS.start()),
                fwmark: routing.fwmark.0,
                unproven_peers,
                guard: routing.guard,
                peer_lookup: link.0.peer_lookup(),
                source_check: link.0.source_check(),
            },
            private_key_file: wireguard.private_key_file.0,
            backend: wireguard.backend.map(Spanned::into_inner).unwrap_or_default(),
            metrics: metrics.listen,
            warnings: renamed
                .then_some(Warning::RenamedSetting { old: "keyless_peers", new: "unproven_peers" })
                .into_iter()
                .chain(of_membership)
                .collect(),
            membership,
            declared,
            table_is_auto: routing.table.0.is_none(),
        }
    }
}

fn keepalive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let seconds = i64::deserialize(deserializer)?;
    u16::try_from(seconds).map_err(|_| {
        de::Error::custom(format!("{seconds} seconds is not a keepalive interval; use 0 (off) to 65535"))
    })
}

fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Listen, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}
