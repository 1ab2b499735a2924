//! The status as text, for people.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use owo_colors::OwoColorize;
use wireloom_kernel::wording;
use wireloom_plan::{proofs::Account, settings::UnprovenPeers};

use super::report::{GuardReport, Interface, Peer, Report};
use crate::run_file::{RunFile, unix_time};

/// How many unproven nodes are named.
const SHOWN: usize = 20;

/// The whole status: about this node, its peers, and what is wrong.
pub(super) fn text(report: &Report<'_>) -> String {
    let parts = [about(report), peers(report), standing(report), findings(report)];
    parts.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("\n")
}

fn about(report: &Report<'_>) -> String {
    let mut about = table();
    about.add_row(["node", report.node]);
    let agent = match &report.agent {
        Some(RunFile { pid, .. }) => format!("running (process {pid})"),
        None => "not running".into(),
    };
    about.add_row(["agent", &agent]);
    let mode = match report.mode {
        "host" => "host: the hosts' own traffic is encrypted too",
        _ => "scoped: traffic between workloads is encrypted",
    };
    about.add_row(["mode", mode]);
    if let Some(link) = report.link {
        about.add_row(["link", link]);
    }
    if let Some(packets @ 1..) = report.refused_strangers {
        about.add_row(["refused", &format!("{packets} packets from senders that are not peers in the mesh")]);
    }
    for (packets, what) in report.guard.iter().flat_map(refused_by_guard) {
        about.add_row(["refused", &format!("{packets} packets {what}")]);
    }
    let Interface { name, state, backend, mtu, public_key, listen_port } = &report.interface;
    let mut interface = format!("{name}, {state}");
    interface.extend(mtu.map(|mtu| format!(", MTU {mtu}")));
    interface.extend(listen_port.map(|port| format!(", port {port}")));
    about.add_row(["interface", &interface]);
    // The agent also knows why. Without an agent the interface still shows which back end it has.
    let chosen = report.agent.as_ref().and_then(|agent| agent.backend.clone());
    if let Some(backend) = chosen.or_else(|| backend.map(|backend| backend.to_string())) {
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

/// What the guard refused besides what the table of peers shows.
fn refused_by_guard(guard: &GuardReport) -> impl Iterator<Item = (u64, &'static str)> {
    let reasons = [
        (guard.no_peer_out, "in plaintext to workloads of proven nodes that are no peers now"),
        (guard.no_peer_in, "in plaintext from workloads of proven nodes that are no peers now"),
        (guard.unproven_out, "in plaintext to addresses of a pool whose node is unproven"),
        (guard.unproven_in, "in plaintext from addresses of a pool whose node is unproven"),
        (guard.returned, "in plaintext to pods' addresses that are elsewhere than the mesh says"),
        (guard.forged, "from other machines under the address of a local workload"),
        (guard.errors, "of ICMP, which quote packets between workloads"),
    ];
    reasons.into_iter().filter(|(packets, _)| *packets > 0)
}

fn peers(report: &Report<'_>) -> String {
    if report.peers.is_empty() {
        return String::new();
    }
    let mut peers = table();
    // Only where the firewall checks sources, and only with a guard.
    let refused = report.refused_strangers.map(|_| "refused");
    let guarded = report.guard.as_ref().map(|_| ["refused out", "refused in"]);
    let header = ["peer", "proven", "endpoint", "handshake", "received", "sent"].into_iter();
    let header = header.chain(refused).chain(guarded.into_iter().flatten());
    peers.set_header(header.chain(["allowed IPs"]));
    for peer in &report.peers {
        let cidrs: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
        let name = if peer.nodes.is_empty() { peer.public_key.to_string() } else { peer.nodes.join(" ") };
        let mut row = vec![
            name,
            proven(peer, report),
            peer.endpoint.map_or_else(|| "unknown".into(), |endpoint| endpoint.to_string()),
            peer.handshake_age_seconds.map_or_else(|| "never".into(), |age| format!("{} ago", span(age))),
            bytes(peer.received),
            bytes(peer.sent),
        ];
        row.extend(
            refused.map(|_| peer.refused.map_or_else(|| "not checked".into(), |packets| packets.to_string())),
        );
        if guarded.is_some() {
            let by_guard = [peer.refused_out, peer.refused_in];
            row.extend(by_guard.map(|packets| packets.unwrap_or_default().to_string()));
        }
        row.push(cidrs.join(" "));
        peers.add_row(row);
    }
    let counters = refused.iter().len() + guarded.iter().flatten().count();
    for column in 3..=5 + counters {
        if let Some(column) = peers.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    lines(peers)
}

/// Since when a peer is proven.
fn proven(peer: &Peer<'_>, report: &Report<'_>) -> String {
    match peer.nodes.iter().find_map(|name| report.standing.get(*name)) {
        Some(Account::Proven { ends: Some(_), .. }) => "ends".into(),
        Some(Account::Proven { since, .. }) => ago(*since),
        _ => "no".into(),
    }
}

/// Which nodes are not proven, why, and what that means for traffic with them.
fn standing(report: &Report<'_>) -> String {
    let unproven: Vec<_> = report
        .standing
        .iter()
        .filter_map(|(name, account)| match account {
            Account::Unproven { since, because } => Some((name, since, because)),
            Account::Proven { .. } => None,
        })
        .collect();
    if unproven.is_empty() {
        return String::new();
    }
    let mut text = match report.unproven_peers {
        UnprovenPeers::Plaintext => {
            "in plaintext, as unproven_peers says: traffic with the workloads of".to_owned()
        }
        UnprovenPeers::Reject => "refused, as unproven_peers says: traffic with the workloads of".to_owned(),
    };
    text += &format!(" {} unproven nodes\n", unproven.len());
    for (name, since, because) in unproven.iter().take(SHOWN) {
        text += &format!("  {name}: unproven since {}, because {because}\n", ago(**since));
    }
    if let Some(more @ 1..) = unproven.len().checked_sub(SHOWN) {
        text += &format!("  and {more} more (`wireloom status --json` names them)\n");
    }
    text
}

/// How long ago a time since 1970 was.
fn ago(time: Duration) -> String {
    format!("{} ago", span(unix_time().saturating_sub(time.as_secs())))
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
    let minutes = seconds / 60;
    match (minutes / 60, minutes % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// A number of bytes in binary units, as `wg show` prints it.
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
    fn bytes_and_times_are_rounded_for_people() {
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
