//! Every order in which up to three instances start, ask, answer, give way, hang and die.

use std::{collections::HashSet, time::Duration};

use super::*;

/// One process. What it has in flight dies with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Process {
    /// It is yet to be started.
    Absent,
    /// It has settings, key and mesh, and does not serve.
    Waits(Waiting),
    /// It has asked this one, and waits for the answer.
    Asked(Waiting, usize),
    Serves,
    /// It has promised its lock, and still holds it.
    Promised,
    Dead,
}

/// All that the instances share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    now: Duration,
    processes: Vec<Process>,
    /// Who has given the lock away, and never asks again.
    gave_way: Vec<bool>,
    holder: Option<usize>,
    /// Since when it has had the lock.
    held_since: Duration,
    /// Since when nobody has had the lock for longer than can be overlooked.
    free_since: Duration,
    /// How many may still die.
    deaths: u8,
    /// How many may still be started again.
    restarts: u8,
    /// The time after which it is left to itself.
    end: Duration,
}

/// How far time goes at once: no less than the shortest wait that can make a difference.
const TICK: Duration = Duration::from_millis(500);

impl World {
    fn release(&mut self, process: usize) {
        if self.holder == Some(process) {
            self.holder = None;
            if self.now > self.held_since + GAP {
                self.free_since = self.now;
            }
        }
    }

    fn take(&mut self, process: usize, waiting: &mut Waiting) -> bool {
        if self.holder.is_some() {
            waiting.failed(self.now);
            return false;
        }
        if self.gave_way[process] {
            let free = self.now - self.free_since;
            assert!(free >= NOBODY, "a passive one takes a lock that was free for {free:?} only: {self:?}");
        }
        self.holder = Some(process);
        self.held_since = self.now;
        true
    }

    /// What can happen to this process next, but for its death.
    fn steps_of(&self, me: usize) -> Vec<Self> {
        let mut after = self.clone();
        match self.processes[me].clone() {
            Process::Dead | Process::Serves => return Vec::new(),
            Process::Absent => after.processes[me] = Process::Waits(Waiting::arriving()),
            // Its program starts anew: the lock is closed.
            Process::Promised => {
                after.release(me);
                after.gave_way[me] = true;
                after.processes[me] = Process::Waits(Waiting::passive());
            }
            Process::Waits(mut waiting) => match waiting.next(self.now) {
                Step::Sleep(_) => return Vec::new(),
                Step::Look => {
                    waiting.looked(self.holder.is_some(), self.now);
                    after.processes[me] = Process::Waits(waiting);
                }
                Step::Take => {
                    after.processes[me] =
                        if after.take(me, &mut waiting) { Process::Serves } else { Process::Waits(waiting) };
                }
                Step::Ask => {
                    assert!(!self.gave_way[me], "one that gave way asks: {self:?}");
                    after.processes[me] = match self.holder {
                        Some(other) => Process::Asked(waiting, other),
                        None => {
                            let _ = waiting.answered(Answer::Nobody, self.now);
                            Process::Waits(waiting)
                        }
                    };
                }
            },
            Process::Asked(waiting, other) => {
                let heard = |answer| {
                    let mut waiting = waiting.clone();
                    let _ = waiting.answered(answer, self.now);
                    Process::Waits(waiting)
                };
                // It may always give up waiting.
                after.processes[me] = heard(Answer::Silence(String::new()));
                let mut all = vec![after];
                if self.processes[other] == Process::Serves {
                    let mut promised = self.clone();
                    promised.processes[other] = Process::Promised;
                    promised.processes[me] = heard(Answer::Promise);
                    all.push(promised);
                }
                return all;
            }
        }
        vec![after]
    }

    fn death_of(&self, me: usize) -> Option<Self> {
        if self.deaths == 0 || matches!(self.processes[me], Process::Dead | Process::Absent) {
            return None;
        }
        let mut after = self.clone();
        after.release(me);
        after.processes[me] = Process::Dead;
        after.deaths -= 1;
        Some(after)
    }

    /// Its container or unit starts it again, the same instance. It knows whether it gave way.
    fn restart_of(&self, me: usize) -> Option<Self> {
        if self.restarts == 0 || self.processes[me] != Process::Dead {
            return None;
        }
        let mut after = self.clone();
        let waiting = if self.gave_way[me] { Waiting::passive() } else { Waiting::arriving() };
        after.processes[me] = Process::Waits(waiting);
        after.restarts -= 1;
        Some(after)
    }

    fn later(&self) -> Self {
        Self { now: self.now + TICK, ..self.clone() }
    }

    fn next(&self) -> Vec<Self> {
        let all = 0..self.processes.len();
        let mut next: Vec<Self> = all.clone().flat_map(|me| self.steps_of(me)).collect();
        next.extend(all.clone().filter_map(|me| self.death_of(me)));
        next.extend(all.filter_map(|me| self.restart_of(me)));
        if self.now < self.end {
            next.push(self.later());
        }
        next
    }

    fn check(&self) {
        let serving = |process: &&Process| matches!(process, Process::Serves | Process::Promised);
        let count = self.processes.iter().filter(serving).count();
        assert!(count <= 1, "two serve: {self:?}");
        assert_eq!(self.holder.is_some(), count == 1, "{self:?}");
    }

    /// Left to itself, with nobody dying or starting any more, somebody serves soon, and goes on.
    fn assert_settles(&self) {
        let mut world = Self { deaths: 0, ..self.clone() };
        let is_alive = |process: &Process| !matches!(process, Process::Dead | Process::Absent);
        if !world.processes.iter().any(is_alive) {
            return;
        }
        let until = world.now + Duration::from_secs(10);
        while world.now < until {
            for me in 0..world.processes.len() {
                // Its steps at this moment, each with the answer that it gets if there is one.
                for _ in 0..8 {
                    if world.processes[me] == Process::Absent {
                        break;
                    }
                    let Some(after) = world.steps_of(me).pop() else { break };
                    world = after;
                    world.check();
                }
            }
            world = Self { now: world.now + TICK, ..world };
        }
        let serving = world.processes.iter().position(|process| *process == Process::Serves);
        let serving = serving.unwrap_or_else(|| panic!("nobody serves: {self:?} became {world:?}"));
        let is_arriving = |me: usize| is_alive(&world.processes[me]) && !world.gave_way[me];
        assert!(
            !world.gave_way[serving] || (0..world.processes.len()).all(|me| !is_arriving(me)),
            "one that gave way serves beside one that asks: {self:?} became {world:?}"
        );
    }
}

/// Goes through everything that can happen to so many instances, of which the first serves; returns how many states
/// there are.
fn explore(instances: usize, deaths: u8, restarts: u8, end: Duration) -> usize {
    let mut processes = vec![Process::Absent; instances];
    processes[0] = Process::Serves;
    let start = World {
        now: Duration::ZERO,
        processes,
        gave_way: vec![false; instances],
        holder: Some(0),
        held_since: Duration::ZERO,
        free_since: Duration::ZERO,
        deaths,
        restarts,
        end,
    };
    let mut seen = HashSet::from([start.clone()]);
    let mut left = vec![start];
    while let Some(world) = left.pop() {
        world.check();
        world.assert_settles();
        for next in world.next() {
            if seen.insert(next.clone()) {
                left.push(next);
            }
        }
    }
    seen.len()
}

#[test]
fn one_serves_and_whoever_gave_way_serves_only_when_nobody_else_does() {
    let states = explore(2, 2, 1, Duration::from_secs(3));
    assert!(states > 1_000, "only {states} states");
}

#[test]
fn so_it_is_when_a_third_one_arrives() {
    let states = explore(3, 1, 0, Duration::from_secs(1));
    assert!(states > 1_000, "only {states} states");
}
