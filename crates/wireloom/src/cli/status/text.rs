//! The status as text, for people.

use std::time::Duration;

use owo_colors::OwoColorize;
use wireloom_kernel::wording;
use wireloom_plan::{proofs::Account, settings::HostTransition, warning::Severity};

use super::{
    lines::{columns, pairs, wrap},
    report::{GuardReport, Interface, Peer, Report},
};
use crate::run_file::{RunFile, unix_time};

/// How many peers are shown without `--verbose`.
const SHOWN: usize = 100;

/// The whole status: the headline, this node, its peers, what was dropped, and what is wrong. No line is longer than
/// `width` characters.
pub(super) fn text(report: &Report<'_>, verbose: bool, width: usize) -> String {
    let parts = [
        headline(report, width),
        about(report, verbose, width),
        peers(report, verbose, width),
        dropped(report, width),
        wrong(report, width),
    ];
    parts.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("\n")
}

fn headline(report: &Report<'_>, width: usize) -> String {
    let (word, reasons) = (report.verdict, report.reasons.join("; "));
    let word = match word {
        "not_encrypted" => "NOT encrypted",
        other => other,
    };
    let said = if reasons.is_empty() { word.to_owned() } else { format!("{word}: {reasons}") };
    let text = wrap(&format!("{}: ", report.node), &said, width);
    match report.verdict {
        "encrypted" => text.replacen(word, &word.green().bold().to_string(), 1),
        "partly" => text.replacen(word, &word.yellow().bold().to_string(), 1),
        _ => text.replacen(word, &word.red().bold().to_string(), 1),
    }
}

fn about(report: &Report<'_>, verbose: bool, width: usize) -> String {
    let mut about = Vec::new();
    let agent = match &report.agent {
        Some(RunFile { pid, last_pass: Some(last_pass), .. }) => {
            format!("running (process {pid}), looked at the kernel {}", ago(*last_pass))
        }
        Some(RunFile { pid, last_pass: None, .. }) => format!("running (process {pid})"),
        None => "not running".into(),
    };
    about.push(("agent:", agent));
    let membership = report.agent.as_ref().and_then(|agent| agent.membership(unix_time()));
    about.extend(membership.map(|membership| ("membership:", membership)));
    let mode = match (report.mode, report.transition) {
        (_, Some(HostTransition::Accept)) => {
            "on the way to host (accept): the hosts' own traffic is sent in plaintext, and taken either way"
        }
        (_, Some(HostTransition::Prefer)) => {
            "on the way to host (prefer): the hosts' own traffic is sent encrypted, and taken either way"
        }
        ("host", None) => "host: the hosts' own traffic is to be encrypted, too",
        _ => "scoped: traffic between workloads is to be encrypted",
    };
    about.push(("mode:", mode.to_owned()));
    about.extend(report.link.map(|link| ("link:", link.to_owned())));
    let Interface { name, state, backend, mtu, public_key, listen_port } = &report.interface;
    let mut interface = format!("{name}, {state}");
    interface.extend(mtu.map(|mtu| format!(", MTU {mtu}")));
    interface.extend(listen_port.map(|port| format!(", port {port}")));
    about.push(("interface:", interface));
    // The agent also knows why. Without an agent the interface still shows which back end it has.
    let chosen = report.agent.as_ref().and_then(|agent| agent.backend.clone());
    let backend = chosen.or_else(|| backend.map(|backend| backend.to_string()));
    about.extend(backend.map(|backend| ("back end:", backend)));
    if verbose {
        about.extend(public_key.map(|key| ("public key:", key.to_string())));
    }
    for (position, rule) in report.rules.iter().enumerate() {
        about.push((if position == 0 { "rules:" } else { "" }, wording::rule(rule)));
    }
    pairs(about, width)
}

fn peers(report: &Report<'_>, verbose: bool, width: usize) -> String {
    if report.peers.is_empty() {
        return String::new();
    }
    let shown = if verbose { report.peers.len() } else { SHOWN };
    let rows: Vec<_> = report
        .peers
        .iter()
        .take(shown)
        .map(|peer| {
            let cells = [
                peer.name.to_owned(),
                peer.state.replace('_', " "),
                peer.handshake_age_seconds.map_or_else(|| "never".into(), |age| format!("{} ago", span(age))),
                peer.traffic.to_owned(),
                refused(peer),
            ];
            (cells, below(peer, report, verbose))
        })
        .collect();
    let any_refused = rows.iter().any(|(cells, _)| !cells[4].is_empty());
    let last = if any_refused { "refused" } else { "" };
    let mut text = columns(["peer", "state", "handshake", "traffic", last], &rows, width);
    if let Some(more @ 1..) = report.peers.len().checked_sub(shown) {
        text += &wrap("", &format!("and {more} more (`wireloom status --verbose` shows them)"), width);
    }
    text
}

/// What was refused of a peer, without what is 0.
fn refused(peer: &Peer<'_>) -> String {
    let of = [
        (peer.refused_out, "out"),
        (peer.refused_in, "in"),
        (peer.refused_source.unwrap_or_default(), "source"),
    ];
    let of = of.iter().filter(|(packets, _)| *packets > 0);
    of.map(|(packets, what)| format!("{packets} {what}")).collect::<Vec<_>>().join(" ")
}

/// What is said below a peer's row.
fn below(peer: &Peer<'_>, report: &Report<'_>, verbose: bool) -> Vec<String> {
    let mut below = Vec::new();
    if let Some(why) = &peer.why {
        match report.standing.get(peer.name) {
            Some(Account::Unproven { since, .. }) => {
                below.push(format!("unproven since {}, because {why}", ago(since.as_secs())));
            }
            _ => below.push(why.clone()),
        }
    }
    if !verbose {
        return below;
    }
    below.extend(peer.public_key.map(|key| format!("key {key}")));
    let endpoint = peer.endpoint.map_or_else(|| "unknown".into(), |endpoint| endpoint.to_string());
    below.push(format!("endpoint {endpoint}, received {}, sent {}", bytes(peer.received), bytes(peer.sent)));
    match report.standing.get(peer.name) {
        Some(Account::Proven { since, ends: None }) => {
            below.push(format!("proven since {}", ago(since.as_secs())));
        }
        Some(Account::Proven { ends: Some(ends), .. }) => {
            let left = ends.saturating_sub(Duration::from_secs(unix_time()));
            below.push(format!("proven; goes direct again in {} s", left.as_secs()));
        }
        _ => {}
    }
    let cidrs: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
    if !cidrs.is_empty() {
        below.push(format!("allowed IPs {}", cidrs.join(" ")));
    }
    below
}

/// What device and firewall dropped, besides what the table of peers shows.
fn dropped(report: &Report<'_>, width: usize) -> String {
    let by_device = report.drops.iter().flatten();
    let by_device = by_device.map(|drop| (drop.packets, drop.reason, drop.meaning.unwrap_or_default()));
    let mut dropped: Vec<(u64, &str, &str)> = by_device.collect();
    dropped.extend(report.guard.iter().flat_map(refused_by_guard));
    let strangers = report.refused_strangers;
    dropped.extend(strangers.map(|packets| (packets, "strangers", "from senders that are not in the mesh")));
    dropped.retain(|(packets, ..)| *packets > 0);
    if dropped.is_empty() {
        return String::new();
    }
    let counts: Vec<String> = dropped.iter().map(|(packets, ..)| packets.to_string()).collect();
    let said = dropped.iter().map(|(_, reason, meaning)| format!("{reason}: {meaning}"));
    format!("dropped packets\n{}", pairs(counts.iter().map(String::as_str).zip(said), width))
}

/// What the guard refused besides what the table of peers shows.
fn refused_by_guard<'a>(guard: &GuardReport) -> impl Iterator<Item = (u64, &'a str, &'a str)> + use<'a> {
    let reasons = [
        (guard.unproven_out, "unproven_out", "in plaintext to addresses of a pool whose node is unproven"),
        (guard.unproven_in, "unproven_in", "in plaintext from addresses of a pool whose node is unproven"),
        (guard.returned, "returned", "in plaintext to pods' addresses that are elsewhere than the mesh says"),
        (guard.forged, "forged", "from other machines under the address of a local workload"),
        (guard.errors, "errors", "of ICMP, which quote packets between workloads"),
    ];
    reasons.into_iter()
}

fn wrong(report: &Report<'_>, width: usize) -> String {
    let mut text = String::new();
    if !report.pending.is_empty() {
        let said = format!("{} changes (`wireloom plan` shows them)", report.pending.len());
        text += &labelled("pending:", &said, width, |label| label.yellow().bold().to_string());
    }
    for told in &report.warnings {
        text += &match told.severity {
            Severity::Info => labelled("note:", &told.text, width, |label| label.blue().bold().to_string()),
            _ => labelled("warning:", &told.text, width, |label| label.yellow().bold().to_string()),
        };
    }
    for error in &report.errors {
        text += &labelled("error:", error, width, |label| label.red().bold().to_string());
    }
    text
}

/// A sentence behind a coloured label.
fn labelled(label: &str, said: &str, width: usize, colour: impl Fn(&str) -> String) -> String {
    wrap(&format!("{label} "), said, width).replacen(label, &colour(label), 1)
}

/// How long ago a time in seconds since 1970 was.
fn ago(time: u64) -> String {
    format!("{} ago", span(unix_time().saturating_sub(time)))
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
