//! Visits every state, breadth first.

use std::{
    collections::{HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
};

use super::world::{DIES, Fault, SERVES, Standing, World};

/// What was seen.
#[derive(Default)]
pub(super) struct Explored {
    pub(super) states: usize,
    pub(super) steps: usize,
    /// Whether a hand-over has succeeded at all.
    pub(super) handed_over: bool,
    /// States in which another process could do something, but nobody comes to serve when one of them, whichever it is,
    /// never takes a step again.
    pub(super) stuck_if_hung: usize,
}

/// A step from one state to another.
struct Step {
    from: u32,
    to: u32,
    actor: u8,
}

/// Visits all states that can be reached from this one. States are told apart by 64 bits of a hash: of a million, two
/// are mistaken for each other with a probability of 3 in 100 million.
///
/// # Errors
/// The first state that breaks a promise, with a shortest way there.
pub(super) fn explore(start: &World) -> Result<Explored, Fault> {
    let mut explored = Explored::default();
    let mut numbers = HashMap::from([(hash(start), 0)]);
    let mut waiting = VecDeque::from([(0, start.clone())]);
    // For each state how it was reached first: from which one, and who did what. Then who serves in it.
    let mut reached = vec![(0, (0, ""))];
    let mut standing = vec![start.standing()];
    // Steps that are no faults.
    let mut steps = Vec::new();
    while let Some((from, world)) = waiting.pop_front() {
        for next in world.steps() {
            explored.steps += 1;
            explored.handed_over |= next.what == SERVES;
            let number = match numbers.get(&hash(&next.world)) {
                Some(number) => *number,
                None => {
                    let number = reached.len() as u32;
                    numbers.insert(hash(&next.world), number);
                    reached.push((from, (next.actor, next.what)));
                    if let Some(what) = next.world.broken() {
                        return Err(Fault { what: what.into(), way: way(&reached, number) });
                    }
                    standing.push(next.world.standing());
                    waiting.push_back((number, next.world));
                    number
                }
            };
            if next.what != DIES {
                steps.push(Step { from, to: number, actor: next.actor });
            }
        }
    }
    explored.states = reached.len();
    let hopeful =
        reaching(&steps, standing.iter().map(|standing| standing.somebody_serves(None)).collect(), None);
    if let Some(stuck) = hopeful.iter().position(|hopeful| !hopeful) {
        let what = "nobody comes to serve from here".into();
        return Err(Fault { what, way: way(&reached, stuck as u32) });
    }
    for hung in 0..start.size() {
        let serves = standing.iter().map(|standing| standing.somebody_serves(Some(hung))).collect();
        let hopeful = reaching(&steps, serves, Some(hung));
        let stuck = |(hopeful, standing): &(&bool, &Standing)| !**hopeful && standing.somebody_can(hung);
        explored.stuck_if_hung += hopeful.iter().zip(&standing).filter(stuck).count();
    }
    Ok(explored)
}

/// From which states a good one is reached, without steps of `hung`.
fn reaching(steps: &[Step], mut good: Vec<bool>, hung: Option<u8>) -> Vec<bool> {
    let mut before: Vec<Vec<u32>> = vec![Vec::new(); good.len()];
    for step in steps.iter().filter(|step| Some(step.actor) != hung) {
        before[step.to as usize].push(step.from);
    }
    let mut waiting: Vec<_> = (0..good.len()).filter(|state| good[*state]).collect();
    while let Some(state) = waiting.pop() {
        for from in &before[state] {
            let from = *from as usize;
            if !good[from] {
                good[from] = true;
                waiting.push(from);
            }
        }
    }
    good
}

fn way(reached: &[(u32, (u8, &str))], mut state: u32) -> Vec<String> {
    let mut way = Vec::new();
    while state != 0 {
        let (before, (actor, what)) = reached[state as usize];
        way.push(format!("{actor} {what}"));
        state = before;
    }
    way.reverse();
    way
}

fn hash(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}
