//! Measuring all cells of the table, and judging them.

use std::{net::SocketAddr, panic, thread, time::Duration};

use wireloom_plan::routing::Family;

use super::{
    call::{Answer, call},
    column::Column,
    flow::{Flow, Sees},
    mark::{AT_A_TIME, Mark},
    promise::Promise,
    situation::Situation,
    testbed::Testbed,
};
use crate::{Capture, Cell, Place, Result, at_this_pace};

/// How long to wait for an answer: the first time for every cell, then for those whose verdict is doubtful. On an idle
/// machine an answer takes a few milliseconds.
const REPLY_TIMES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(5)];

/// The measured flow table.
#[derive(Debug, Clone)]
pub struct FlowTable {
    /// The cluster's configuration, on which promises depend.
    pub situation: Situation,
    /// All cells: of each flow the columns of [`Column::ALL`], in that order.
    pub cells: Vec<Measured>,
}

/// A measured cell.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The row.
    pub flow: &'static Flow,
    /// The column.
    pub column: Column,
    /// Whether the right server answered, and what the underlay saw.
    pub cell: Cell,
    /// Why an answer does not count: it came from another pod, say. Empty when all count, and when one is missing.
    pub remark: String,
    /// How the outcome compares with the promise.
    pub verdict: Verdict,
}

/// How an outcome compares with the promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As promised.
    Kept,
    /// Not as promised: an error.
    Broken,
}

impl Verdict {
    fn of(cell: Cell, promise: Promise) -> Self {
        if promise.is_kept_by(cell) { Self::Kept } else { Self::Broken }
    }
}

/// A cell to be measured.
#[derive(Debug, Clone, Copy)]
struct Task {
    flow: &'static Flow,
    column: Column,
}

impl FlowTable {
    /// Measures these flows ([`FLOWS`](super::FLOWS) for all), half as many cells at a time as can be told apart. A
    /// cell that is not as promised is measured twice more, with more patience: the machine may be busy. Only plaintext
    /// where encryption was promised has no excuse.
    ///
    /// # Errors
    /// When a socket cannot be made, or a capture lost packets.
    ///
    /// # Panics
    /// When the testbed lacks a pod or a service of the flows.
    pub fn measure(
        testbed: &Testbed,
        situation: Situation,
        flows: impl IntoIterator<Item = &'static Flow>,
    ) -> Result<Self> {
        let row = |flow| Column::ALL.map(|column| Task { flow, column });
        let tasks: Vec<_> = flows.into_iter().flat_map(row).collect();
        let [first, more @ ..] = REPLY_TIMES;
        let mut cells = measure(testbed, situation, &tasks, first)?;
        for patience in more {
            let doubtful: Vec<_> = (0..cells.len()).filter(|n| cells[*n].is_doubtful(situation)).collect();
            let again: Vec<_> = doubtful.iter().map(|n| tasks[*n]).collect();
            for (n, measured) in doubtful.iter().zip(measure(testbed, situation, &again, patience)?) {
                cells[*n] = measured;
            }
        }
        Ok(Self { situation, cells })
    }
}

impl Measured {
    pub(super) fn promise(&self, situation: Situation) -> Promise {
        Promise::of(self.flow, situation)
    }

    /// Whether the verdict is an error that a busy machine could explain.
    fn is_doubtful(&self, situation: Situation) -> bool {
        self.verdict == Verdict::Broken && !self.promise(situation).is_leaked_by(self.cell)
    }
}

/// Measures each of the cells once, in the same order.
fn measure(
    testbed: &Testbed,
    situation: Situation,
    tasks: &[Task],
    patience: Duration,
) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    // What comes late, an answer to a request that was sent twice, say, has the length of no cell of the next part.
    for tasks in tasks.chunks(AT_A_TIME / 2) {
        let capture = Capture::open(&testbed.underlay)?;
        let calls: Vec<_> = thread::scope(|scope| {
            let start = |(mark, task): (Mark, &Task)| {
                let client = testbed.client(task.flow.from);
                let target = testbed.target(task.flow.to, task.column.family);
                let calls = task.flow.calls().max(task.column.protocol.calls());
                (mark, scope.spawn(move || call_in_turn(client, target, mark, calls, patience)))
            };
            let marks = Mark::several(tasks.iter().map(|task| task.column));
            let threads: Vec<_> = marks.zip(tasks).map(start).collect();
            threads.into_iter().map(|(mark, thread)| (mark, thread.join())).collect()
        });
        let packets = capture.drain()?;
        for (Task { flow, column }, (mark, answers)) in tasks.iter().copied().zip(calls) {
            let answers = answers.unwrap_or_else(|panic| panic::resume_unwind(panic))?;
            let (reachable, remark) = match judge(flow, column.family, &answers, testbed) {
                Ok(()) => (true, String::new()),
                Err(remark) => (false, remark),
            };
            let cell = Cell { reachable, wire: mark.wire(&packets) };
            let verdict = Verdict::of(cell, Promise::of(flow, situation));
            measured.push(Measured { flow, column, cell, remark, verdict });
        }
    }
    Ok(measured)
}

/// Makes all calls of a cell, until one is not answered.
fn call_in_turn(
    client: &Place,
    target: SocketAddr,
    mark: Mark,
    calls: usize,
    patience: Duration,
) -> Result<Vec<Option<Answer>>> {
    let mut answers = Vec::new();
    for n in 0..calls {
        let answer = call(&client.space, target, mark, n, at_this_pace(patience))?;
        let is_lost = answer.is_none();
        answers.push(answer);
        if is_lost {
            break;
        }
    }
    Ok(answers)
}

/// Whether the right server answered every call, and saw the right client. If not, the remark: empty when an answer is
/// missing.
fn judge(flow: &Flow, family: Family, answers: &[Option<Answer>], testbed: &Testbed) -> Result<(), String> {
    let servers = flow.servers();
    let own = testbed.client(flow.from).addresses.of(family);
    let mut first: Option<&Answer> = None;
    for answer in answers {
        let Some(answer) = answer else { return Err(String::new()) };
        let Answer { server, client } = answer;
        if !servers.contains(&server.as_str()) {
            return Err(format!("{server} answered instead of {}", servers.join(" or ")));
        }
        let first = first.get_or_insert(answer);
        if first.server != *server {
            return Err(format!("{} answered first, then {server}", first.server));
        }
        match flow.sees {
            Sees::Client if *client != own => {
                return Err(format!("the server saw {} as its client", testbed.owner(*client)));
            }
            Sees::Another if *client == own => {
                return Err("the server saw the client's own address".to_owned());
            }
            Sees::Client | Sees::Another | Sees::Any => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::FLOWS, *};
    use crate::{PodNetwork, ProxyMode, Wire};

    const SITUATION: Situation =
        Situation { wireloom: true, proxy: ProxyMode::Iptables, network: PodNetwork::Bridge };

    fn measured(verdict: Verdict, reachable: bool, wire: Wire) -> Measured {
        Measured {
            flow: &FLOWS[0],
            column: Column::ALL[0],
            cell: Cell { reachable, wire },
            remark: String::new(),
            verdict,
        }
    }

    #[test]
    fn plaintext_is_not_measured_until_it_is_gone() {
        assert_eq!(
            measured(Verdict::Kept, true, Wire::Encrypted).promise(SITUATION).wire,
            Some(Wire::Encrypted)
        );
        assert!(measured(Verdict::Broken, false, Wire::Nothing).is_doubtful(SITUATION));
        assert!(measured(Verdict::Broken, false, Wire::Encrypted).is_doubtful(SITUATION));
        assert!(!measured(Verdict::Broken, true, Wire::Both).is_doubtful(SITUATION));
        assert!(!measured(Verdict::Broken, false, Wire::Direct).is_doubtful(SITUATION));
        assert!(!measured(Verdict::Kept, true, Wire::Encrypted).is_doubtful(SITUATION));
    }
}
