//! `wireloom status`: this node, its peers, its rules, and what is wrong.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use ipnet::IpNet;
use owo_colors::OwoColorize;
use serde::Serialize;
use wireloom_kernel::{Backend, PeerState, Refusals, state::StateDir, wording};
use wireloom_plan::{cluster::Cluster, op::Op, routing::Rule, settings::Settings, warning::Warning};
use wireloom_types::{LinkAddress, PeerLookup, PublicKey, SourceCheck, interface::AGENT_ALIAS};

use super::{plan::Told, situation::Situation};
use crate::run_file::RunFile;

/// Show this node: its mode, its peers, its rules, and what is wrong.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The settings [default: /etc/wireloom/agent.toml, which may be absent]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    node: &'a str,
    agent: Option<RunFile>,
    mode: &'static str,
    /// What differs from standard WireGuard.
    link: Option<&'static str>,
    interface: Interface<'a>,
    peers: Vec<Peer<'a>>,
    /// Packets that the firewall refused to whoever is no peer here.
    refused_strangers: Option<u64>,
    rules: &'a [Rule],
    /// What an agent would do now.
    pending: Vec<Op>,
    warnings: Vec<Told<'a>>,
    errors: Vec<String>,
}

#[derive(Serialize)]
struct Interface<'a> {
    name: &'a str,
    state: &'static str,
    backend: Option<Backend>,
    mtu: Option<u32>,
    public_key: Option<PublicKey>,
    listen_port: Option<u16>,
}

#[derive(Serialize)]
struct Peer<'a> {
    /// The nodes that have this key.
    nodes: Vec<&'a str>,
    public_key: PublicKey,
    endpoint: Option<std::net::SocketAddr>,
    handshake_age_seconds: Option<u64>,
    received: u64,
    sent: u64,
    /// Packets that the firewall refused because of their source.
    refused: Option<u64>,
    allowed_ips: Vec<IpNet>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    super::require_net_admin("status")?;
    let situation = Situation::observe(arguments.config.as_deref())?;
    let mut errors = Vec::new();
    let mut pending = Vec::new();
    let mut warnings = Vec::new();
    match situation.cluster.as_ref().map(|cluster| situation.plan(cluster)) {
        Ok(Ok(plan)) => {
            pending = plan.ops;
            warnings.extend(plan.warnings);
        }
        Ok(Err(refusal)) => errors.push(refusal.to_string()),
        Err(error) => errors.push(error.to_string()),
    }
    let report = report(&situation, pending, &warnings, errors)?;
    if arguments.json {
        super::show(&format!("{}\n", serde_json::to_string_pretty(&report)?))?;
    } else {
        super::show(&text(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn report<'a>(
    situation: &'a Situation,
    pending: Vec<Op>,
    warnings: &'a [Warning],
    mut errors: Vec<String>,
) -> anyhow::Result<Report<'a>> {
    let settings = &situation.config.settings;
    // While an agent runs it holds the lock; a run file may be left of one that was killed.
    let runs = StateDir::locate().is_locked()?;
    let agent = RunFile::read(&settings.interface).filter(|_| runs);
    // The peers below have their endpoints.
    let agent = agent.map(|told| RunFile { configured_endpoints: BTreeMap::new(), ..told });
    if let Some(told) = &agent {
        let told = [&told.trouble, &told.membership_error, &told.settings_error].into_iter().flatten();
        // The agent says the same, and what follows from it.
        errors.retain(|error| !told.clone().any(|told| told.starts_with(error)));
        errors.extend(told.cloned());
    }
    let link = situation.observed.interface.as_ref();
    let cluster = situation.cluster.as_ref().ok();
    let names = cluster.map(names_by_key).unwrap_or_default();
    let device = situation.device.as_ref();
    let peers = device.into_iter().flat_map(|device| &device.peers);
    Ok(Report {
        node: &settings.node,
        agent,
        mode: if settings.encrypt_host_traffic { "host" } else { "scoped" },
        link: link_mode(settings),
        interface: Interface {
            name: &settings.interface,
            state: match link {
                None => "absent",
                Some(link) if link.alias.as_deref() != Some(AGENT_ALIAS) => "foreign",
                Some(link) if link.up => "up",
                Some(_) => "down",
            },
            backend: situation.backend,
            mtu: link.map(|link| link.mtu),
            public_key: device.and_then(|device| device.public_key),
            listen_port: device.map(|device| device.listen_port),
        },
        peers: peers.map(|(key, peer)| self::peer(*key, peer, &names, situation.refusals.as_ref())).collect(),
        refused_strangers: situation.refusals.as_ref().map(|refusals| refusals.strangers),
        rules: &situation.observed.rules,
        pending,
        warnings: warnings.iter().map(Told::from).collect(),
        errors,
    })
}

fn link_mode(settings: &Settings) -> Option<&'static str> {
    match (settings.peer_lookup, settings.source_check) {
        (PeerLookup::Destination, SourceCheck::AllowedIps) => None,
        (PeerLookup::Destination, _) => Some("the destination finds the peer; sources are not judged"),
        (PeerLookup::Gateway, SourceCheck::Off) => {
            Some("the next hop finds the peer; sources are not judged")
        }
        (PeerLookup::Gateway, _) => Some("the next hop finds the peer; the firewall judges sources"),
    }
}

fn names_by_key(cluster: &Cluster) -> BTreeMap<PublicKey, Vec<&str>> {
    let mut names: BTreeMap<PublicKey, Vec<&str>> = BTreeMap::new();
    for (name, node) in &cluster.nodes {
        if let Some(key) = node.public_key {
            names.entry(key).or_default().push(name);
        }
    }
    names
}

fn peer<'a>(
    key: PublicKey,
    peer: &PeerState,
    names: &BTreeMap<PublicKey, Vec<&'a str>>,
    refusals: Option<&Refusals>,
) -> Peer<'a> {
    Peer {
        nodes: names.get(&key).cloned().unwrap_or_default(),
        public_key: key,
        endpoint: peer.endpoint,
        handshake_age_seconds: peer.handshake_age(SystemTime::now()).map(|age| age.as_secs()),
        received: peer.received,
        sent: peer.sent,
        refused: refusals.and_then(|refusals| refusals.peers.get(&LinkAddress::of(key)).copied()),
        allowed_ips: peer.allowed_ips.iter().copied().collect(),
    }
}

fn text(report: &Report<'_>) -> String {
    let parts = [about(report), peers(report), findings(report)];
    parts.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("\n")
}

fn about(report: &Report<'_>) -> String {
    let mut about = table();
    about.add_row(["node", report.node]);
    let agent = match &report.agent {
        Some(RunFile { pid, .. }) => format!("runs (process {pid})"),
        None => "does not run".into(),
    };
    about.add_row(["agent", &agent]);
    let mode = match report.mode {
        "host" => "host: the hosts' own traffic is encrypted too",
        _ => "scoped: traffic from workload to workload is encrypted",
    };
    about.add_row(["mode", mode]);
    if let Some(link) = report.link {
        about.add_row(["link", link]);
    }
    if let Some(packets @ 1..) = report.refused_strangers {
        about.add_row(["refused", &format!("{packets} packets of strangers, who are no peers in the mesh")]);
    }
    let Interface { name, state, backend, mtu, public_key, listen_port } = &report.interface;
    let mut interface = format!("{name}, {state}");
    interface.extend(mtu.map(|mtu| format!(", MTU {mtu}")));
    interface.extend(listen_port.map(|port| format!(", port {port}")));
    about.add_row(["interface", &interface]);
    // The agent knows why; without one it can still be seen who.
    let told = report.agent.as_ref().and_then(|agent| agent.backend.clone());
    if let Some(backend) = told.or_else(|| backend.map(|backend| backend.to_string())) {
        about.add_row(["back end", &backend]);
    }
    if let Some(key) = public_key {
        about.add_row(["public key", &key.to_string()]);
    }
    for (position, rule) in report.rules.iter().enumerate() {
        about.add_row([if position == 0 { "rules" } else { "" }, &wording::rule(rule)]);
    }
    lines(about)
}

fn peers(report: &Report<'_>) -> String {
    if report.peers.is_empty() {
        return String::new();
    }
    let mut peers = table();
    // Only where a firewall judges.
    let judged = report.refused_strangers.map(|_| "refused");
    let header = ["peer", "endpoint", "handshake", "received", "sent"].into_iter().chain(judged);
    peers.set_header(header.chain(["allowed IPs"]));
    for peer in &report.peers {
        let cidrs: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
        let name = if peer.nodes.is_empty() { peer.public_key.to_string() } else { peer.nodes.join(" ") };
        let mut row = vec![
            name,
            peer.endpoint.map_or_else(|| "unknown".into(), |endpoint| endpoint.to_string()),
            peer.handshake_age_seconds.map_or_else(|| "never".into(), |age| format!("{} ago", span(age))),
            bytes(peer.received),
            bytes(peer.sent),
        ];
        row.extend(
            judged.map(|_| peer.refused.map_or_else(|| "not judged".into(), |packets| packets.to_string())),
        );
        row.push(cidrs.join(" "));
        peers.add_row(row);
    }
    for column in 2..=4 + judged.iter().len() {
        if let Some(column) = peers.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    lines(peers)
}

fn findings(report: &Report<'_>) -> String {
    let mut text = String::new();
    if !report.pending.is_empty() {
        let count = report.pending.len();
        text += &format!("{} {count} changes (`wireloom plan` shows them)\n", "pending:".yellow().bold());
    }
    for warning in &report.warnings {
        text += &format!("{} {}\n", "warning:".yellow().bold(), warning.text);
    }
    for error in &report.errors {
        text += &format!("{} {error}\n", "error:".red().bold());
    }
    text
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn lines(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}

fn span(seconds: u64) -> String {
    let minutes = Duration::from_secs(seconds).as_secs() / 60;
    match (minutes / 60, minutes % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// Binary units, as `wg show` prints them.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut tenths = count.saturating_mul(10) / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 40), "5.0 TiB");
        assert_eq!(bytes(u64::MAX), "1677721.5 TiB");
        assert_eq!(span(59), "59 s");
        assert_eq!(span(125), "2 min 5 s");
        assert_eq!(span(7260), "2 h 1 min");
    }
}
