//! The status as data: what `--json` prints (docs/status.md).

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use ipnet::IpNet;
use serde::Serialize;
use wireloom_kernel::{Backend, DeviceState, GuardCounters};
use wireloom_plan::{
    health::{Encryption, Health, PeerHealth, PeerState, Trends, Verdict},
    op::Op,
    proofs::Account,
    routing::Rule,
    settings::{HostTransition, Settings, UnprovenPeers},
    warning::Severity,
};
use wireloom_types::{PeerLookup, PublicKey, SourceCheck};

use super::{FAILED, drops};
use crate::{cli::situation::Situation, run_file::RunFile};

/// The version of the shape below. It grows when something in it changes its meaning or goes; what is new does not
/// count.
const SCHEMA: u32 = 1;

#[derive(Serialize)]
pub(super) struct Report<'a> {
    pub(super) schema: u32,
    pub(super) node: &'a str,
    pub(super) verdict: &'static str,
    /// Why it is not `encrypted`, the most important reason first.
    pub(super) reasons: Vec<String>,
    /// The exit status of this command.
    pub(super) exit_status: u8,
    pub(super) agent: Option<RunFile>,
    pub(super) mode: &'static str,
    /// The step that this node is at on its way into host mode, or out of it.
    pub(super) transition: Option<HostTransition>,
    /// How the two decisions differ from standard WireGuard's; `None` when they do not.
    pub(super) link: Option<&'static str>,
    pub(super) interface: Interface<'a>,
    pub(super) rules: &'a [Rule],
    pub(super) peers: Vec<Peer<'a>>,
    /// Whether each other node of the mesh is proven, and why not.
    pub(super) standing: &'a BTreeMap<String, Account>,
    /// What happens to traffic with the workloads of unproven nodes.
    pub(super) unproven_peers: UnprovenPeers,
    /// What the guard refused besides what the peers' counters show; `None` without a guard.
    pub(super) guard: Option<GuardReport>,
    /// Packets that the firewall refused from senders that are not peers.
    pub(super) refused_strangers: Option<u64>,
    /// What the device dropped; `None` when it does not say.
    pub(super) drops: Option<Vec<Drop<'a>>>,
    /// What an agent would do now.
    pub(super) pending: &'a [Op],
    /// The worst first.
    pub(super) warnings: Vec<Told>,
    pub(super) errors: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Interface<'a> {
    pub(super) name: &'a str,
    pub(super) state: &'static str,
    pub(super) backend: Option<Backend>,
    pub(super) mtu: Option<u32>,
    pub(super) public_key: Option<PublicKey>,
    pub(super) listen_port: Option<u16>,
}

#[derive(Serialize)]
pub(super) struct Peer<'a> {
    pub(super) name: &'a str,
    pub(super) public_key: Option<PublicKey>,
    pub(super) state: &'static str,
    pub(super) traffic: &'static str,
    /// Why the state is none of `up` and `idle`, or the traffic not `encrypted`.
    pub(super) why: Option<String>,
    pub(super) handshake_age_seconds: Option<u64>,
    /// Packets from here to its workloads that the guard refused in plaintext.
    pub(super) refused_out: u64,
    /// The same from its workloads to here.
    pub(super) refused_in: u64,
    /// Packets that the firewall refused because of their source; `None` when it does not check sources.
    pub(super) refused_source: Option<u64>,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) allowed_ips: Vec<IpNet>,
}

/// Packets that the guard refused, by reason.
#[derive(Serialize)]
pub(super) struct GuardReport {
    /// From here to a pool's addresses whose node is unproven.
    pub(super) unproven_out: u64,
    /// The same in the other direction.
    pub(super) unproven_in: u64,
    /// To an address that is elsewhere than the mesh says; would have left in plaintext.
    pub(super) returned: u64,
    /// Came from other machines with a local workload's address as the source.
    pub(super) forged: u64,
    /// ICMP errors about packets between workloads that would have left in plaintext.
    pub(super) errors: u64,
}

/// Packets that the device dropped since it started, for one reason.
#[derive(Serialize)]
pub(super) struct Drop<'a> {
    pub(super) reason: &'a str,
    pub(super) packets: u64,
    /// `None` for a reason that only a later device has.
    pub(super) meaning: Option<&'static str>,
}

/// A warning or a finding as JSON, and its text.
#[derive(Serialize)]
pub(super) struct Told {
    pub(super) severity: Severity,
    pub(super) text: String,
    /// An object with the key `warning`, which says what kind it is.
    #[serde(flatten)]
    what: serde_json::Value,
}

impl Told {
    pub(super) fn new<T: Serialize + fmt::Display>(severity: Severity, what: &T) -> anyhow::Result<Self> {
        Ok(Self { severity, text: what.to_string(), what: serde_json::to_value(what)? })
    }
}

/// What follows from a situation.
pub(super) struct Findings<'a> {
    /// `None` when the kernel could not be read.
    pub(super) health: Option<&'a Health>,
    pub(super) pending: &'a [Op],
    pub(super) warnings: Vec<Told>,
    pub(super) errors: Vec<String>,
}

impl<'a> Report<'a> {
    pub(super) fn new(situation: &'a Situation, findings: Findings<'a>) -> Self {
        let Findings { health, pending, warnings, errors } = findings;
        let settings = &situation.config.settings;
        let kernel = situation.kernel.as_ref();
        let interface = kernel.and_then(|kernel| kernel.observed.interface.as_ref());
        let device = kernel.and_then(|kernel| kernel.device.as_ref());
        let drops = kernel.and_then(|kernel| kernel.drops.as_ref());
        let (verdict, reasons) = match health.map(|health| &health.verdict) {
            None => ("unknown", errors.first().cloned().into_iter().collect()),
            Some(verdict @ Verdict::Encrypted) => ("encrypted", verdict.reasons().to_vec()),
            Some(verdict @ Verdict::Partly(_)) => ("partly", verdict.reasons().to_vec()),
            Some(verdict @ Verdict::NotEncrypted(_)) => ("not_encrypted", verdict.reasons().to_vec()),
        };
        let degraded = !errors.is_empty()
            || situation.agent.is_none()
            || warnings.iter().any(|told| told.severity > Severity::Info);
        Self {
            schema: SCHEMA,
            node: &settings.node,
            verdict,
            reasons,
            exit_status: match verdict {
                "unknown" => FAILED,
                "not_encrypted" => 2,
                "encrypted" if !degraded => 0,
                _ => 1,
            },
            agent: situation.agent.as_ref().map(without_what_is_elsewhere),
            mode: if settings.encrypt_host_traffic { "host" } else { "scoped" },
            transition: settings.host_transition,
            link: link_mode(settings),
            interface: Interface {
                name: &settings.interface,
                state: match interface {
                    None => "absent",
                    Some(interface) if !interface.is_ours() => "foreign",
                    Some(interface) if interface.up => "up",
                    Some(_) => "down",
                },
                backend: kernel.and_then(|kernel| kernel.backend),
                mtu: interface.map(|interface| interface.mtu),
                public_key: device.and_then(|device| device.public_key),
                listen_port: device.map(|device| device.listen_port),
            },
            rules: kernel.map(|kernel| &kernel.observed.rules[..]).unwrap_or_default(),
            peers: health
                .iter()
                .flat_map(|health| &health.peers)
                .map(|peer| Peer::new(peer, device, situation.standing.get(&peer.name)))
                .collect(),
            standing: &situation.standing,
            unproven_peers: settings.unproven_peers,
            guard: kernel.and_then(|kernel| kernel.guard.as_ref()).map(GuardReport::from),
            refused_strangers: kernel
                .and_then(|kernel| kernel.refusals.as_ref())
                .map(|refusals| refusals.strangers),
            drops: drops.map(|drops| {
                let drop = |(reason, packets): (&'a String, &u64)| Drop {
                    reason,
                    packets: *packets,
                    meaning: drops::meaning(reason),
                };
                drops.iter().map(drop).collect()
            }),
            pending,
            warnings,
            errors,
        }
    }
}

/// What the agent reports and is nowhere else in the status.
fn without_what_is_elsewhere(agent: &RunFile) -> RunFile {
    RunFile {
        settings: None,
        trends: Trends::default(),
        configured_endpoints: BTreeMap::new(),
        standing: BTreeMap::new(),
        probed: BTreeMap::new(),
        not_proved_us: BTreeMap::new(),
        ..agent.clone()
    }
}

fn link_mode(settings: &Settings) -> Option<&'static str> {
    match (settings.peer_lookup, settings.source_check) {
        (PeerLookup::Destination, SourceCheck::AllowedIps) => None,
        (PeerLookup::Destination, _) => Some("the destination selects the peer; sources are not checked"),
        (PeerLookup::Gateway, SourceCheck::Off) => {
            Some("the next hop selects the peer; sources are not checked")
        }
        (PeerLookup::Gateway, _) => Some("the next hop selects the peer; the firewall checks sources"),
    }
}

impl<'a> Peer<'a> {
    fn new(peer: &'a PeerHealth, device: Option<&'a DeviceState>, account: Option<&Account>) -> Self {
        let on_device = device.and_then(|device| device.peers.get(&peer.public_key?));
        let why_state = match &peer.state {
            PeerState::OutOfDate { what } => Some(what.to_string()),
            PeerState::LeftOut { reason } => Some(reason.to_string()),
            _ => None,
        };
        let why_traffic = match &peer.encrypted {
            Encryption::Encrypted => None,
            Encryption::Plaintext { why } | Encryption::Refused { why } => Some(why),
        };
        // The account of an unproven node says more, and names the fix.
        let unproven = match account {
            Some(Account::Unproven { because, .. }) if peer.encrypted != Encryption::Encrypted => {
                Some(because.to_string())
            }
            _ => None,
        };
        Self {
            name: &peer.name,
            public_key: peer.public_key,
            state: peer.state.name(),
            traffic: peer.encrypted.name(),
            why: unproven.or(why_state).or(why_traffic.map(ToString::to_string)),
            handshake_age_seconds: peer.last_handshake_age,
            refused_out: peer.refused.plaintext_out,
            refused_in: peer.refused.plaintext_in,
            refused_source: peer.refused.source,
            endpoint: peer.endpoint,
            received: peer.received,
            sent: peer.sent,
            allowed_ips: on_device.iter().flat_map(|peer| &peer.allowed_ips).copied().collect(),
        }
    }
}

impl From<&GuardCounters> for GuardReport {
    fn from(counters: &GuardCounters) -> Self {
        Self {
            unproven_out: counters.unproven_out,
            unproven_in: counters.unproven_in,
            returned: counters.returned,
            forged: counters.forged,
            errors: counters.errors,
        }
    }
}
