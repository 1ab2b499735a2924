//! What the demo prints.

use std::time::Duration;

use owo_colors::{OwoColorize as _, Style};
use wireloom_plan::kernel::Family;

use super::state::State;
use crate::lab::{Cell, Direction, Matrix, PingReport, Wire};

/// In the order of the columns.
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Columns of one family's cell.
const WIDTH: usize = 28;

pub(super) fn introduction(nodes: usize) {
    let pairs = nodes * (nodes - 1);
    anstream::println!(
        "\n{} {nodes} nodes with a pod each, in network namespaces. Every cell is measured: pings between\n\
         all {pairs} pairs of nodes, over IPv4 and IPv6, and a capture on the network between them.\n",
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
        let PingReport { sent, lost } = pings;
        let style = if *lost == 0 { Style::new().green() } else { Style::new().yellow() };
        anstream::println!(
            "     {}{}",
            "pod → pod pings lost while this was switched: ".dimmed(),
            format_args!("{lost} of {sent}").style(style)
        );
    }
    anstream::println!();
}

/// What all pairs of nodes agree on; where they do not, how many are as promised.
fn cell(cells: &[Cell], promised: Cell) -> String {
    let first = cells[0];
    if cells.iter().any(|cell| *cell != first) {
        let kept = cells.iter().filter(|cell| **cell == promised).count();
        let text = format!("! {kept} of {} as promised", cells.len());
        return format!("{}{}", text.red().bold(), padding(&text));
    }
    let (mark, reach, mut style) = match first.reachable {
        true => ("✓", "works", Style::new().green()),
        false => ("✗", "lost", Style::new().red()),
    };
    let (wire, wire_style) = match first.wire {
        Wire::Encrypted => ("encrypted", Style::new().cyan()),
        Wire::Direct => ("direct", Style::new()),
        Wire::Nothing => ("nothing seen", Style::new().dimmed()),
        // A request in plaintext, and its reply in the tunnel.
        Wire::Both => ("reply encrypted", Style::new().yellow()),
    };
    let mark = if first == promised { mark } else { "!" };
    if first != promised {
        style = Style::new().red().bold();
    }
    let text = format!("{mark} {reach:<7}{wire}");
    let reach = format!("{mark} {reach:<7}");
    format!("{}{}{}", reach.style(style), wire.style(wire_style), padding(&text))
}

/// Colours have no width: padded is what remains of the column after the text without them.
fn padding(text: &str) -> String {
    " ".repeat(WIDTH.saturating_sub(text.chars().count()))
}

/// The cells that are not as promised, a line for each direction and family.
pub(super) fn broken(state: State, matrix: &Matrix) -> Vec<String> {
    let mut lines = Vec::new();
    for (direction, family) in Direction::ALL.into_iter().flat_map(|row| FAMILIES.map(|family| (row, family)))
    {
        let promised = state.promise().of(direction);
        let all: Vec<_> = matrix.of(direction, family).collect();
        let broken: Vec<_> = all.iter().filter(|measured| measured.cell != promised).collect();
        if let Some(first) = broken.first() {
            lines.push(format!(
                "({}) {direction} over {}: promised is \"{promised}\"; {} of {} pairs are not, such as {} to {}: {}",
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
        anstream::println!("{} in {took:.1} s.", "Every cell is as the design promises,".green().bold());
        return;
    }
    anstream::eprintln!("{} ({took:.1} s)", "Not as the design promises:".red().bold());
    for line in broken {
        anstream::eprintln!("  {line}");
    }
}
