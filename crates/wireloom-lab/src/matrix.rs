//! The behaviour matrix: every direction between every two nodes, over both families, measured.

use std::{
    fmt, thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use wireloom_plan::routing::Family;

use super::{
    Capture, Cell, Lab, Node, Place, Result, Wire, at_this_pace,
    layout::FAMILIES,
    probe::{Exchange, LENGTHS, Mark, attempt},
};

/// From what to what, each on another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From a node's own address to another node's pod.
    HostToPod,
    /// From a pod to a pod.
    PodToPod,
    /// From a pod to another node's own address.
    PodToHost,
    /// From a node's own address to another's.
    HostToHost,
}

impl Direction {
    /// In the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::HostToPod, Self::PodToPod, Self::PodToHost, Self::HostToHost];

    fn ends<'a>(self, from: &'a Node, to: &'a Node) -> (&'a Place, &'a Place) {
        match self {
            Self::HostToPod => (&from.host, &to.pods[0]),
            Self::PodToPod => (&from.pods[0], &to.pods[0]),
            Self::PodToHost => (&from.pods[0], &to.host),
            Self::HostToHost => (&from.host, &to.host),
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::HostToPod => "host → pod",
            Self::PodToPod => "pod → pod",
            Self::PodToHost => "pod → host",
            Self::HostToHost => "host → host",
        })
    }
}

/// What each direction ought to give, as the table of the design has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promise([Cell; 4]);

const DIRECT: Cell = Cell { reachable: true, wire: Wire::Direct };
const ENCRYPTED: Cell = Cell { reachable: true, wire: Wire::Encrypted };

impl Promise {
    /// No tunnel at all.
    pub const PLAINTEXT: Self = Self([DIRECT; 4]);
    /// `encrypt_host_traffic = false`.
    pub const SCOPED: Self = Self([DIRECT, ENCRYPTED, DIRECT, DIRECT]);
    /// `encrypt_host_traffic = true`.
    pub const HOST: Self = Self([ENCRYPTED; 4]);
    /// One rule for all sources, while allowed-IPs hold pods alone (issue #9751 of Calico): what a host
    /// sends to a pod goes into the tunnel, and the far end refuses its source. So the host's packets
    /// are lost, be they requests (encrypted) or replies to requests that came in plaintext (both).
    pub const UNSCOPED: Self = Self([
        Cell { reachable: false, wire: Wire::Encrypted },
        ENCRYPTED,
        Cell { reachable: false, wire: Wire::Both },
        DIRECT,
    ]);

    /// For one direction.
    #[must_use]
    pub fn of(self, direction: Direction) -> Cell {
        self.0[direction as usize]
    }
}

/// One measured cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Measurement {
    /// From what to what.
    pub direction: Direction,
    /// Over which family.
    pub family: Family,
    /// Where the request started.
    pub from: String,
    /// Where it should end.
    pub to: String,
    /// What became of it.
    pub cell: Cell,
}

/// Every direction, family and ordered pair of nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Matrix(pub Vec<Measurement>);

impl Matrix {
    /// Measures, as many probes at a time as can be told apart.
    ///
    /// # Errors
    /// When a probe cannot be made.
    pub fn measure(lab: &Lab) -> Result<Self> {
        let pairs = lab.nodes.iter().flat_map(|from| lab.nodes.iter().map(move |to| (from, to)));
        let cells: Vec<_> = pairs
            .filter(|(from, to)| from.name != to.name)
            .flat_map(|(from, to)| Direction::ALL.map(|direction| (direction, direction.ends(from, to))))
            .flat_map(|(direction, ends)| FAMILIES.map(|family| (direction, family, ends)))
            .collect();
        let mut measured = Vec::new();
        for cells in cells.chunks(LENGTHS) {
            let capture = Capture::open(lab.underlay())?;
            let attempts: Vec<_> = thread::scope(|scope| {
                let attempts: Vec<_> = cells
                    .iter()
                    .zip(Mark::several(cells.len()))
                    .map(|((_, family, (from, to)), mark)| {
                        let attempt = move || attempt(mark, from, to, *family, Exchange::Ping);
                        (mark, scope.spawn(attempt))
                    })
                    .collect();
                attempts.into_iter().map(|(mark, thread)| (mark, thread.join())).collect()
            });
            let packets = capture.drain()?;
            for ((direction, family, (from, to)), (mark, attempt)) in cells.iter().zip(attempts) {
                let reachable = attempt.expect("a probe does not panic")?;
                measured.push(Measurement {
                    direction: *direction,
                    family: *family,
                    from: from.name.clone(),
                    to: to.name.clone(),
                    cell: mark.cell(reachable, &packets),
                });
            }
        }
        Ok(Self(measured))
    }

    /// Measures until everything is as promised, or `patience` is over; the last measurement is returned
    /// either way.
    ///
    /// # Errors
    /// When a probe cannot be made.
    pub fn settle(lab: &Lab, promise: Promise, patience: Duration) -> Result<Self> {
        let deadline = Instant::now() + at_this_pace(patience);
        loop {
            let over = Instant::now() >= deadline;
            let matrix = Self::measure(lab)?;
            if over || matrix.broken(promise).is_empty() {
                return Ok(matrix);
            }
        }
    }

    /// The measurements of one direction over one family.
    pub fn of(&self, direction: Direction, family: Family) -> impl Iterator<Item = &Measurement> {
        self.0.iter().filter(move |cell| cell.direction == direction && cell.family == family)
    }

    /// The cells that are not as promised, each in a line of its own; empty when all are.
    #[must_use]
    pub fn broken(&self, promise: Promise) -> Vec<String> {
        let broken = self.0.iter().filter(|measured| measured.cell != promise.of(measured.direction));
        broken
            .map(|Measurement { direction, family, from, to, cell }| {
                let family = if *family == Family::V4 { "IPv4" } else { "IPv6" };
                let promised = promise.of(*direction);
                format!("{direction} over {family}, {from} to {to}: {cell} (promised: {promised})")
            })
            .collect()
    }
}
