//! The demo's output: a table that grows by one row with each measurement.

use std::time::Duration;

use owo_colors::OwoColorize as _;

/// The widths of the columns.
const WHAT: usize = 40;
const PROMISE: usize = 20;
const FAMILY: usize = 26;

/// Something measured, over IPv4 and IPv6.
pub(super) struct Row {
    pub(super) what: &'static str,
    pub(super) promise: String,
    pub(super) measured: [Measured; 2],
}

/// A measurement in words, and whether it is as promised.
pub(super) struct Measured {
    pub(super) words: String,
    pub(super) kept: bool,
}

pub(super) fn introduction(routers: usize) {
    anstream::println!(
        "\n{} {routers} routers with one WireGuard interface each, on which all others are neighbours.\n\
         Allowed-IPs hold the routers' own addresses on the link; OSPF announces what is behind them.\n",
        "Wireloom demo: link mode.".bold()
    );
    let head = format!("{:<WHAT$}{:<PROMISE$}{:<FAMILY$}IPv6", "", "promised", "IPv4");
    anstream::println!("     {}", head.dimmed());
}

pub(super) fn show(row: &Row) {
    let [v4, v6] = row.measured.each_ref().map(|measured| {
        let (mark, text) = if measured.kept { ("✓", &measured.words) } else { ("!", &measured.words) };
        let padding = " ".repeat(FAMILY.saturating_sub(text.chars().count() + 2));
        match measured.kept {
            true => format!("{} {text}{padding}", mark.green()),
            false => format!("{}{padding}", format_args!("{mark} {text}").red().bold()),
        }
    });
    anstream::println!("     {:<WHAT$}{:<PROMISE$}{v4}{}", row.what, row.promise, v6.trim_end());
}

/// Prints the outcome, and returns whether everything was as promised.
pub(super) fn conclusion(rows: &[Row], took: Duration) -> bool {
    let took = took.as_secs_f64();
    let broken: Vec<_> = rows.iter().filter(|row| row.measured.iter().any(|cell| !cell.kept)).collect();
    if broken.is_empty() {
        anstream::println!("\n{} The demo took {took:.1} s.", "Every result is as promised.".green().bold());
        return true;
    }
    anstream::eprintln!("\n{} The demo took {took:.1} s.", "Not every result is as promised.".red().bold());
    for Row { what, promise, measured: [v4, v6] } in broken {
        anstream::eprintln!("  {what}: should be \"{promise}\"; IPv4: {}; IPv6: {}", v4.words, v6.words);
    }
    false
}
