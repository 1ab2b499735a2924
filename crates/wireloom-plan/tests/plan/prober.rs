//! The prober and paths that drop what is too long for them, under virtual time.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use wireloom_plan::paths::{Check, Prober, Target, overhead};
use wireloom_plan::routing::Family;
use wireloom_types::PublicKey;

use crate::world::ip;

/// How often the shell looks.
const TICK: Duration = Duration::from_millis(50);

/// Peers behind paths of these MTUs in bytes; 0 is one that answers nothing.
struct World {
    prober: Prober,
    targets: BTreeMap<PublicKey, Target>,
    mtus: BTreeMap<IpAddr, u32>,
    round_trip: Duration,
    now: Duration,
    /// Replies on their way: when they arrive, from where, and how long they are.
    replies: Vec<(Duration, IpAddr, u32)>,
    sent: Vec<Duration>,
    /// Which request is lost although it is short enough: every so many.
    loses: Option<usize>,
}

impl World {
    fn new(mtus: &[u32]) -> Self {
        let mut world = Self {
            prober: Prober::new(7, BTreeMap::new()),
            targets: BTreeMap::new(),
            mtus: BTreeMap::new(),
            round_trip: Duration::from_millis(30),
            now: Duration::from_secs(1000),
            replies: Vec::new(),
            sent: Vec::new(),
            loses: None,
        };
        for (number, mtu) in mtus.iter().enumerate() {
            let to = IpAddr::from([10, 161, (number / 200) as u8, (number % 200) as u8]);
            let from = ip("10.161.250.1");
            let target = Target { endpoint: ip("192.0.2.1"), from, to, full: 1420 };
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&(number as u32 + 1).to_be_bytes());
            world.targets.insert(PublicKey::from_bytes(bytes), target);
            world.mtus.insert(to, *mtu);
        }
        world
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let (arrived, later) = self.replies.iter().partition(|(when, ..)| *when <= self.now);
            self.replies = later;
            let arrived: Vec<(Duration, IpAddr, u32)> = arrived;
            arrived.into_iter().for_each(|(_, from, length)| self.prober.note_reply(from, length));
            for echo in self.prober.turn(&self.targets, self.now) {
                self.sent.push(self.now);
                let lost = self.loses.is_some_and(|every| self.sent.len().is_multiple_of(every));
                let outer = Family::of(self.targets.values().next().unwrap().endpoint);
                let padded = echo.length.next_multiple_of(16).min(1420) + overhead(outer);
                if padded <= self.mtus[&echo.to] && !lost {
                    self.replies.push((self.now + self.round_trip, echo.to, echo.length));
                }
            }
            self.now += TICK;
        }
    }

    fn only(&self) -> (Check, Option<u32>) {
        let key = *self.targets.keys().next().unwrap();
        (self.prober.check(key), self.prober.narrow().get(&key).copied())
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_path_that_carries_everything_costs_two_packets_in_ten_minutes() {
    let mut world = World::new(&[1500]);
    world.run(2 * SECOND);
    assert_eq!((world.only(), world.sent.len()), ((Check::Passed, None), 2));
    world.run(590 * SECOND);
    assert_eq!(world.sent.len(), 2);
    world.run(80 * SECOND);
    assert_eq!(world.sent.len(), 4);
}

#[test]
fn every_mtu_is_found_to_the_last_sixteen_bytes_within_two_seconds() {
    for mtu in (560..1480).step_by(53).chain([1400, 1368, 1280]) {
        for (endpoint, outer) in [("192.0.2.1", Family::V4), ("2001:db8::1", Family::V6)] {
            let mut world = World::new(&[mtu]);
            world.targets.values_mut().for_each(|target| target.endpoint = ip(endpoint));
            world.run(2 * SECOND);
            let longest = (mtu - overhead(outer)) / 16 * 16;
            assert_eq!(world.only(), (Check::Narrowed, Some(longest)), "{mtu} {outer}");
            assert!(world.sent.len() < 150, "{mtu}: {}", world.sent.len());
        }
    }
}

#[test]
fn a_slow_path_and_one_that_loses_packets_are_not_taken_for_narrow() {
    for (round_trip, loses) in [(950, None), (30, Some(2)), (30, Some(3)), (30, Some(5))] {
        let mut world = World::new(&[1500]);
        (world.round_trip, world.loses) = (Duration::from_millis(round_trip), loses);
        world.run(5 * SECOND);
        assert_eq!(world.only(), (Check::Passed, None), "{round_trip} ms, {loses:?}");
    }
}

#[test]
fn a_slow_narrow_path_is_measured_as_well_as_a_quick_one() {
    for mtu in [1400, 1390, 1330, 900] {
        for round_trip in [150, 250, 650, 950] {
            let mut world = World::new(&[mtu]);
            world.round_trip = Duration::from_millis(round_trip);
            world.run(4 * SECOND);
            let longest = (mtu - overhead(Family::V4)) / 16 * 16;
            assert_eq!(world.only(), (Check::Narrowed, Some(longest)), "{mtu}, {round_trip} ms");
        }
    }
}

#[test]
fn an_absent_peer_is_not_probed_and_its_result_stays() {
    let mut world = World::new(&[1232, 1500]);
    world.run(4 * SECOND);
    let (key, target) = world.targets.pop_first().unwrap();
    world.sent.clear();
    world.run(60 * SECOND);
    assert_eq!(world.sent.len(), 0);
    assert_eq!(world.prober.narrow(), [(key, 1168)].into());
    let due = world.prober.due(world.now).unwrap();
    assert!(due > 400 * SECOND, "only the other one counts: {due:?}");
    // It is probed once it is back.
    world.targets.insert(key, target);
    world.mtus.insert(target.to, 1500);
    world.run(SECOND);
    assert_eq!((world.sent.len(), world.only()), (2, (Check::Passed, None)));
}

#[test]
fn a_peer_that_answers_nothing_is_asked_less_and_less_and_found_when_it_does() {
    let mut world = World::new(&[0]);
    world.run(120 * SECOND);
    assert_eq!(world.only(), (Check::Unanswered, None));
    assert!(world.sent.len() < 60, "{}", world.sent.len());
    // It was away, and is in a session again.
    let targets = std::mem::take(&mut world.targets);
    world.prober.turn(&world.targets, world.now);
    (world.targets, world.mtus) = (targets, world.mtus.keys().map(|to| (*to, 1400)).collect());
    world.run(4 * SECOND);
    assert_eq!(world.only(), (Check::Narrowed, Some(1328)));
}

#[test]
fn a_path_that_widens_is_noticed_and_a_silent_peer_keeps_its_result() {
    let mut world = World::new(&[1400]);
    world.run(4 * SECOND);
    world.mtus.values_mut().for_each(|mtu| *mtu = 0);
    world.run(670 * SECOND);
    assert_eq!(world.only(), (Check::Unanswered, Some(1328)));
    world.mtus.values_mut().for_each(|mtu| *mtu = 1500);
    world.run(700 * SECOND);
    assert_eq!(world.only(), (Check::Passed, None));
}

#[test]
fn what_an_earlier_prober_found_holds_until_it_is_found_again() {
    let mut world = World::new(&[1500]);
    let key = *world.targets.keys().next().unwrap();
    world.prober = Prober::new(7, [(key, 1200)].into());
    assert_eq!(world.only().1, Some(1200));
    world.prober.turn(&world.targets, world.now);
    assert_eq!(world.only().1, Some(1200));
    world.run(2 * SECOND);
    assert_eq!(world.only(), (Check::Passed, None));
}

#[test]
fn another_endpoint_is_another_path() {
    let mut world = World::new(&[1400]);
    world.run(4 * SECOND);
    world.targets.values_mut().for_each(|target| target.endpoint = ip("198.51.100.9"));
    world.prober.turn(&world.targets, world.now);
    assert_eq!(world.only().1, None);
    world.run(4 * SECOND);
    assert_eq!(world.only(), (Check::Narrowed, Some(1328)));
    // What the kernel knows to be too long is not tried again.
    world.targets.values_mut().for_each(|target| target.full = 1312);
    world.run(SECOND);
    assert_eq!(world.only(), (Check::Passed, None));
}

#[test]
fn a_large_fleet_is_probed_over_time() {
    let mut world = World::new(&[1500; 300]);
    world.run(8 * SECOND);
    assert_eq!(world.sent.len(), 600);
    let in_one_second =
        |from: Duration| world.sent.iter().filter(|at| (from..from + SECOND).contains(at)).count();
    assert!((0..8).all(|second| in_one_second(Duration::from_secs(1000 + second)) <= 100));
}
