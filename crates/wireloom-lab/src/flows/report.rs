//! The table as people read it, and the errors in it.

use std::fmt;

use owo_colors::{OwoColorize as _, Style};

use super::{
    column::Column,
    table::{FlowTable, Measured, Verdict},
};
use crate::Wire;

/// The width of a flow's name, in columns.
const NAME: usize = 50;
/// The width of a cell, in columns.
const WIDTH: usize = 17;

impl FlowTable {
    /// The cells that are not as promised, in one line each. Empty when there are none.
    #[must_use]
    pub fn broken(&self) -> Vec<String> {
        let broken = self.cells.iter().filter(|measured| measured.verdict == Verdict::Broken);
        broken.map(|measured| self.describe(measured)).collect()
    }

    /// How many cells are as promised.
    #[must_use]
    pub fn summary(&self) -> String {
        let count = |verdict| self.cells.iter().filter(|measured| measured.verdict == verdict).count();
        let mut parts = vec![format!("{} of {} as promised", count(Verdict::Kept), self.cells.len())];
        match count(Verdict::Broken) {
            0 => {}
            broken => parts.push(format!("{broken} not as promised (!)")),
        }
        parts.join(", ")
    }

    fn describe(&self, measured: &Measured) -> String {
        let Measured { flow, column, cell, remark, .. } = measured;
        let promise = measured.promise(self.situation);
        let remark = if remark.is_empty() { String::new() } else { format!(", {remark}") };
        format!("{}, {column}: {cell}{remark} (promised: {promise}; {})", flow.name, self.situation)
    }
}

/// The table with ANSI colours; `anstream` removes them where they are not shown.
impl fmt::Display for FlowTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = Column::ALL.map(|column| format!("{column:<WIDTH$}"));
        let head = format!("{:<NAME$}{}", "", heads.concat());
        writeln!(f, "  {}", head.trim_end().dimmed())?;
        let mut group = None;
        for row in self.cells.chunks(Column::ALL.len()) {
            let flow = row[0].flow;
            if group.replace(flow.group()) != Some(flow.group()) {
                writeln!(f, "  {}", flow.group().bold())?;
            }
            let cells: String = row.iter().map(cell).collect();
            writeln!(f, "  {:<NAME$}{}", flow.name, cells.trim_end())?;
        }
        let is_broken = self.cells.iter().any(|measured| measured.verdict == Verdict::Broken);
        let style = if is_broken { Style::new().red().bold() } else { Style::new().green().bold() };
        writeln!(f, "  {}", self.summary().style(style))
    }
}

/// A cell of [`WIDTH`] columns: a mark, and what was seen.
fn cell(measured: &Measured) -> String {
    let (mark, style) = match measured.verdict {
        Verdict::Kept => ("✓", Style::new().green()),
        Verdict::Broken => ("!", Style::new().red().bold()),
    };
    let (words, words_style) = match (measured.cell.reachable, measured.cell.wire) {
        // Some calls must not be answered.
        (false, _) if measured.verdict == Verdict::Kept => ("no answer", Style::new()),
        (false, _) if measured.remark.is_empty() => ("lost", style),
        (false, _) => ("wrong answer", style),
        (true, Wire::Encrypted) => ("encrypted", Style::new().cyan()),
        (true, Wire::Direct) => ("direct", Style::new()),
        (true, Wire::Nothing) => ("on the node", Style::new().dimmed()),
        (true, Wire::Both) => ("half encrypted", Style::new().cyan()),
    };
    let words_style = if measured.verdict == Verdict::Broken { style } else { words_style };
    // Colour codes have no width.
    let padding = " ".repeat(WIDTH.saturating_sub(mark.chars().count() + 1 + words.chars().count()));
    format!("{} {}{padding}", mark.style(style), words.style(words_style))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{FLOWS, Flow, Situation},
        *,
    };
    use crate::{Cell, PodNetwork, ProxyMode};

    fn without_colours(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    fn row(flow: &'static Flow, cells: [(Verdict, bool, Wire); 4]) -> Vec<Measured> {
        let columns = Column::ALL.into_iter().zip(cells);
        columns
            .map(|(column, (verdict, reachable, wire))| Measured {
                flow,
                column,
                cell: Cell { reachable, wire },
                remark: String::new(),
                verdict,
            })
            .collect()
    }

    fn flow(name: &str) -> &'static Flow {
        FLOWS.iter().find(|flow| flow.name == name).unwrap()
    }

    fn table() -> FlowTable {
        let kept = |wire| [(Verdict::Kept, true, wire); 4];
        let mut own_port = [(Verdict::Broken, false, Wire::Nothing); 4];
        own_port[3] = (Verdict::Kept, true, Wire::Encrypted);
        let mut node = kept(Wire::Direct);
        node[1] = (Verdict::Broken, false, Wire::Direct);
        let cells = [
            row(flow("pod → pod on another node"), kept(Wire::Encrypted)),
            row(flow("pod → node port of its own node"), own_port),
            row(flow("pod → another node"), node),
        ];
        let situation = Situation { wireloom: true, proxy: ProxyMode::Nftables, network: PodNetwork::Bridge };
        FlowTable { situation, cells: cells.concat() }
    }

    #[test]
    fn a_table_shows_groups_rows_and_a_summary() {
        let shown = without_colours(&table().to_string());
        let lines: Vec<_> = shown.lines().map(str::trim).collect();
        assert_eq!(
            lines,
            [
                "TCP IPv4         TCP IPv6         UDP IPv4         UDP IPv6",
                "From a pod to a pod or a service",
                "pod → pod on another node                         ✓ encrypted      ✓ encrypted      ✓ encrypted      \
                 ✓ encrypted",
                "From a pod to a node port or a host port",
                "pod → node port of its own node                   ! lost           ! lost           ! lost           \
                 ✓ encrypted",
                "From a pod to a node",
                "pod → another node                                ✓ direct         ! lost           ✓ direct         \
                 ✓ direct",
                "8 of 12 as promised, 4 not as promised (!)",
            ]
        );
    }

    #[test]
    fn every_name_and_every_cell_fits_its_column() {
        for flow in FLOWS {
            assert!(flow.name.chars().count() < NAME, "{}", flow.name);
        }
        for wire in [Wire::Encrypted, Wire::Direct, Wire::Nothing, Wire::Both] {
            for reachable in [true, false] {
                for verdict in [Verdict::Kept, Verdict::Broken] {
                    let mut measured = row(&FLOWS[0], [(verdict, reachable, wire); 4]).remove(0);
                    for remark in ["", "pod-c answered"] {
                        measured.remark = remark.to_owned();
                        let shown = without_colours(&cell(&measured));
                        assert_eq!(shown.chars().count(), WIDTH, "{shown}");
                        assert!(shown.ends_with(' '), "{shown}");
                    }
                }
            }
        }
        let widest = 2 + NAME + Column::ALL.len() * WIDTH;
        assert!(widest <= 120, "{widest}");
    }

    #[test]
    fn broken_promises_are_described_in_one_line_each() {
        let broken = table().broken();
        assert_eq!(broken.len(), 4);
        assert_eq!(
            broken[2..],
            [
                "pod → node port of its own node, UDP IPv4: unreachable, nothing (promised: reachable, encrypted; with \
                 Wireloom, kube-proxy in nftables mode, pods on a bridge)",
                "pod → another node, TCP IPv6: unreachable, direct (promised: reachable, direct; with Wireloom, \
                 kube-proxy in nftables mode, pods on a bridge)",
            ]
        );
    }
}
