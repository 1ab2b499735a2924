//! The behaviour matrix: a probe for every direction, ordered pair of nodes, and family.

use std::{
    fmt, thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use wireloom_plan::routing::Family;

use super::probe::{Exchange, LENGTHS, Mark, attempt};
use crate::{Capture, Cell, FAMILIES, Lab, Node, Place, Result, Wire, at_this_pace};

/// The kinds of the two ends, which are on different nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From a node's own address to a pod.
    HostToPod,
    /// From a pod to a pod.
    PodToPod,
    /// From a pod to a node's own address.
    PodToHost,
    /// From a node's own address to a node's own address.
    HostToHost,
}

impl Direction {
    /// All directions, in the order in which they are shown.
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

/// The outcome that each direction should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promise([Cell; 4]);

const DIRECT: Cell = Cell { reachable: true, wire: Wire::Direct };
const ENCRYPTED: Cell = Cell { reachable: true, wire: Wire::Encrypted };

impl Promise {
    /// Without a tunnel.
    pub const PLAINTEXT: Self = Self([DIRECT; 4]);
    /// With `encrypt_host_traffic = false`.
    pub const SCOPED: Self = Self([DIRECT, ENCRYPTED, DIRECT, DIRECT]);
    /// With `encrypt_host_traffic = true`.
    pub const HOST: Self = Self([ENCRYPTED; 4]);
    /// With one rule for all sources while allowed-IPs hold pods only (Calico issue #9751): a host's packets to a pod
    /// enter the tunnel, and the far end drops them for their source. Both its requests (seen encrypted) and its
    /// replies to requests that came in plaintext (seen as both) are lost.
    pub const UNSCOPED: Self = Self([
        Cell { reachable: false, wire: Wire::Encrypted },
        ENCRYPTED,
        Cell { reachable: false, wire: Wire::Both },
        DIRECT,
    ]);

    /// The outcome that one direction should have.
    #[must_use]
    pub fn of(self, direction: Direction) -> Cell {
        self.0[direction as usize]
    }
}

/// One measured cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Measurement {
    /// The kinds of the two ends.
    pub direction: Direction,
    /// The family of the probe's addresses.
    pub family: Family,
    /// The [name](Place::name) of the place that sent the request.
    pub from: String,
    /// The [name](Place::name) of the place that it was sent to.
    pub to: String,
    /// The outcome.
    pub cell: Cell,
}

/// The measurements of every direction, family and ordered pair of nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Matrix(pub Vec<Measurement>);

impl Matrix {
    /// Measures every cell, as many at a time as can be told apart on the underlay.
    ///
    /// # Errors
    /// When a probe cannot be made, or a capture lost packets.
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

    /// Measures again and again until every cell is as promised or `patience` ([scaled](at_this_pace) to this machine)
    /// is over, and returns the last matrix either way.
    ///
    /// # Errors
    /// When a probe cannot be made, or a capture lost packets.
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

    /// The cells that are not as promised, each described in one line; empty when all are as promised.
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
