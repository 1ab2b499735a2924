//! The demo's output: one table for each state.

use std::time::Duration;

use owo_colors::{OwoColorize as _, Style};
use wireloom_lab::{Cell, Direction, FAMILIES, Matrix, PingReport, Wire};
use wireloom_plan::routing::Family;

use super::state::State;

/// The width of a cell, in columns.
const WIDTH: usize = 28;

pub(super) fn introduction(nodes: usize) {
    let pairs = nodes * (nodes - 1);
    anstream::println!(
        "\n{} {nodes} nodes with one pod each, in network namespaces. Every cell is measured with pings\n\
         between all {pairs} pairs of nodes, and a capture of the network between them.\n",
        "Wireloom demo.".bold()
    );
}

pub(super) fn show(state: State, matrix: &Matrix, pings: &PingReport) {
    anstream::println!("{}  {}", format_args!("({})", state.letter()).bold(), state.title().bold());
    anstream::println!("     {}\n", state.meaning());
    anstream::println!("     {}", format_args!("{:<14}{:<WIDTH$}IPv6", "", "IPv4").dimmed());
    for direction in Direction::ALL {
        let cells = FAMILIES.map(|family| {
            let cells: Vec<Cell> = matrix.of(direction, family).map(|measured| measured.cell).collect();
            cell(&cells, state.promise().of(direction))
        });
        anstream::println!("     {direction:<14}{}", cells.concat().trim_end());
    }
    if state != State::Unscoped {
        let PingReport { sent, lost, .. } = pings;
        let style = if *lost == 0 { Style::new().green() } else { Style::new().yellow() };
        anstream::println!(
            "     {}{}",
            "pod → pod pings lost during the change: ".dimmed(),
            format_args!("{lost} of {sent}").style(style)
        );
    }
    anstream::println!();
}

/// The outcome of all pairs of nodes; where they differ, how many are as promised.
fn cell(cells: &[Cell], promised: Cell) -> String {
    let first = cells[0];
    if cells.iter().any(|cell| *cell != first) {
        let kept = cells.iter().filter(|cell| **cell == promised).count();
        let text = format!("! {kept} of {} as promised", cells.len());
        return format!("{}{}", text.red().bold(), padding(&text));
    }
    let (mark, reach, style) = match first.reachable {
        _ if first != promised => {
            ("!", if first.reachable { "works" } else { "lost" }, Style::new().red().bold())
        }
        true => ("✓", "works", Style::new().green()),
        false => ("✗", "lost", Style::new().red()),
    };
    let (wire, wire_style) = match first.wire {
        Wire::Encrypted => ("encrypted", Style::new().cyan()),
        Wire::Direct => ("direct", Style::new()),
        Wire::Nothing => ("nothing seen", Style::new().dimmed()),
        // The request was in plaintext, its reply in the tunnel.
        Wire::Both => ("reply encrypted", Style::new().yellow()),
    };
    let reach = format!("{mark} {reach:<7}");
    format!("{}{}{}", reach.style(style), wire.style(wire_style), padding(&[&reach, wire].concat()))
}

/// The spaces that fill a cell after this text, which has no colour codes: those have no width.
fn padding(text: &str) -> String {
    " ".repeat(WIDTH.saturating_sub(text.chars().count()))
}

/// The cells that are not as promised, in one line for each direction and family.
pub(super) fn broken(state: State, matrix: &Matrix) -> Vec<String> {
    let mut lines = Vec::new();
    let rows = Direction::ALL.into_iter().flat_map(|direction| FAMILIES.map(|family| (direction, family)));
    for (direction, family) in rows {
        let promised = state.promise().of(direction);
        let all: Vec<_> = matrix.of(direction, family).collect();
        let broken: Vec<_> = all.iter().filter(|measured| measured.cell != promised).collect();
        if let Some(first) = broken.first() {
            lines.push(format!(
                "({}) {direction} over {}: should be \"{promised}\"; {} of {} pairs are not, such as {} to {}: {}",
                state.letter(),
                family_name(family),
                broken.len(),
                all.len(),
                first.from,
                first.to,
                first.cell
            ));
        }
    }
    lines
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

pub(super) fn conclusion(broken: &[String], took: Duration) {
    let took = took.as_secs_f64();
    if broken.is_empty() {
        anstream::println!("{} The demo took {took:.1} s.", "Every result is as promised.".green().bold());
        return;
    }
    anstream::eprintln!("{} The demo took {took:.1} s.", "Not every result is as promised.".red().bold());
    for line in broken {
        anstream::eprintln!("  {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wireloom_lab::Measurement;

    const ENCRYPTED: Cell = Cell { reachable: true, wire: Wire::Encrypted };
    const LOST: Cell = Cell { reachable: false, wire: Wire::Both };

    fn without_colours(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn cells_have_the_same_width_and_show_a_broken_promise() {
        for (cells, expected) in [
            ([ENCRYPTED, ENCRYPTED], "✓ works  encrypted"),
            ([LOST, LOST], "! lost   reply encrypted"),
            ([ENCRYPTED, LOST], "! 1 of 2 as promised"),
        ] {
            let shown = without_colours(&cell(&cells, ENCRYPTED));
            assert_eq!(shown.trim_end(), expected);
            assert_eq!(shown.chars().count(), WIDTH);
        }
        assert_eq!(without_colours(&cell(&[LOST], LOST)).trim_end(), "✗ lost   reply encrypted");
    }

    #[test]
    fn a_broken_promise_is_named() {
        let measured = |to: &str, cell| Measurement {
            direction: Direction::PodToPod,
            family: Family::V6,
            from: "pod-1 on node-a".into(),
            to: to.into(),
            cell,
        };
        let matrix = Matrix(vec![measured("pod-1 on node-b", ENCRYPTED), measured("pod-1 on node-c", LOST)]);
        assert_eq!(
            broken(State::Scoped, &matrix),
            ["(b) pod → pod over IPv6: should be \"reachable, encrypted\"; 1 of 2 pairs are not, such as \
              pod-1 on node-a to pod-1 on node-c: unreachable, half encrypted"]
        );
    }
}
