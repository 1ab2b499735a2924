//! What the demo prints.

use std::time::Duration;

use owo_colors::{OwoColorize as _, Style};
use wireloom_plan::kernel::Family;

use super::state::State;
use crate::lab::{Cell, Direction, Matrix, PingReport, Wire};

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
    anstream::println!("     {}", format_args!("{:<14}{:<WIDTH$}{:<WIDTH$}", "", "IPv4", "IPv6").dimmed());
    for direction in Direction::ALL {
        anstream::print!("     {direction:<14}");
        for family in [Family::V4, Family::V6] {
            print_cell(matrix, direction, family, state.promise().of(direction));
        }
        anstream::println!();
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
fn print_cell(matrix: &Matrix, direction: Direction, family: Family, promised: Cell) {
    let cells: Vec<Cell> = matrix.of(direction, family).map(|measured| measured.cell).collect();
    let as_promised = cells.iter().filter(|cell| **cell == promised).count();
    let first = cells[0];
    if cells.iter().any(|cell| *cell != first) {
        let text = format!("only {as_promised} of {} as promised", cells.len());
        anstream::print!("{}", format_args!("{text:<WIDTH$}").red().bold());
        return;
    }
    let (mark, style) =
        if first.reachable { ("✓", Style::new().green()) } else { ("✗", Style::new().red()) };
    let (wire, wire_style) = match first.wire {
        Wire::Encrypted => ("encrypted", Style::new().cyan()),
        Wire::Direct => ("direct", Style::new()),
        Wire::Nothing => ("nothing seen", Style::new().dimmed()),
        // A request in plaintext, a reply in the tunnel.
        Wire::Both => ("reply encrypted", Style::new().yellow()),
    };
    let reach = if first.reachable { "works" } else { "lost" };
    let unexpected = if first == promised { "" } else { "  ← not as promised" };
    let rest = WIDTH.saturating_sub(2 + 7 + wire.chars().count());
    anstream::print!(
        "{} {}{}{:<rest$}",
        mark.style(style),
        format_args!("{reach:<7}").style(style),
        wire.style(wire_style),
        unexpected.red().bold()
    );
}

pub(super) fn conclusion(broken: &[(State, String)], took: Duration) {
    let took = took.as_secs_f64();
    if broken.is_empty() {
        anstream::println!("{} in {took:.1} s.", "Every cell is as the design promises,".green().bold());
        return;
    }
    anstream::eprintln!("{} ({took:.1} s)", "Not as the design promises:".red().bold());
    for (state, cell) in broken {
        anstream::eprintln!("  ({}) {cell}", state.letter());
    }
}
