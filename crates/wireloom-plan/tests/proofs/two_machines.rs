//! Two machines under virtual time. Each sends the other a packet every ten milliseconds, and learns of handshakes and
//! of new records in its own time.

use std::{collections::BTreeSet, time::Duration};

use wireloom_plan::{
    cluster::Cluster,
    proofs::{Memory, Proofs},
};

use crate::world::{START, key, mesh};

const TICK: Duration = Duration::from_millis(10);

/// How often an agent looks.
const LOOK: Duration = Duration::from_secs(1);

/// How often a device sends a keepalive to a peer that may not know of it yet.
const KEEPALIVE: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Encrypted,
    Plain,
    Refused,
}

struct Machine {
    proofs: Proofs,
    other: &'static str,
    other_key: u8,
    /// What its device shows.
    handshakes: BTreeSet<wireloom_types::PublicKey>,
    alive: bool,
    next_look: Duration,
    next_keepalive: Duration,
}

impl Machine {
    fn new(name: &str, other: &'static str, [key_number, other_key]: [u8; 2], first_look: Duration) -> Self {
        let mut proofs = Proofs::new(name.to_owned(), key(key_number), Memory::default());
        proofs.set_cluster(mesh(), START);
        Self {
            proofs,
            other,
            other_key,
            handshakes: BTreeSet::new(),
            alive: true,
            next_look: START + first_look,
            next_keepalive: START,
        }
    }

    /// [`egress`, `ingress`, `fresh`] of the other one.
    fn standing(&self) -> [bool; 3] {
        let standings = self.proofs.standings();
        standings.get(self.other).map_or([false; 3], |it| [it.egress, it.ingress, it.fresh])
    }

    fn look(&mut self, now: Duration) {
        if self.alive && now >= self.next_look {
            self.proofs.look(&self.handshakes, now);
            self.next_look = now + LOOK;
        }
    }

    /// Whether its device sends a keepalive now.
    fn keeps_alive(&mut self, now: Duration) -> bool {
        let due = self.standing()[2] && now >= self.next_keepalive;
        if due {
            self.next_keepalive = now + KEEPALIVE;
        }
        due
    }

    fn set_cluster(&mut self, cluster: Cluster, now: Duration) {
        self.proofs.set_cluster(cluster, now);
    }
}

/// `a` begins the handshake; for `b` the first packet after it counts.
struct Pair {
    a: Machine,
    b: Machine,
    now: Duration,
    /// How many packets from `a` to `b` are lost from the handshake on.
    to_lose: u32,
    fates: [Vec<Fate>; 2],
}

impl Pair {
    fn new(first_looks: [Duration; 2]) -> Self {
        let [of_a, of_b] = first_looks;
        Self {
            a: Machine::new("a", "b", [1, 2], of_a),
            b: Machine::new("b", "a", [2, 1], of_b),
            now: START,
            to_lose: 0,
            fates: [vec![], vec![]],
        }
    }

    fn handshake(&mut self) {
        self.a.handshakes.insert(key(self.a.other_key));
    }

    fn arrives_at_b(&mut self) {
        if self.to_lose > 0 {
            self.to_lose -= 1;
        } else if !self.a.handshakes.is_empty() {
            self.b.handshakes.insert(key(self.b.other_key));
        }
    }

    /// Runs for a while; whether pods send anything is up to the caller.
    fn run(&mut self, time: Duration, pods_talk: bool) {
        let end = self.now + time;
        while self.now < end {
            self.now += TICK;
            self.a.look(self.now);
            self.b.look(self.now);
            if self.a.keeps_alive(self.now) {
                self.arrives_at_b();
            }
            self.b.keeps_alive(self.now);
            if pods_talk {
                let [from_a, from_b] = [fate(&self.a, &self.b), fate(&self.b, &self.a)];
                if from_a == Fate::Encrypted {
                    self.arrives_at_b();
                }
                self.fates[0].push(from_a);
                self.fates[1].push(from_b);
            }
        }
    }

    fn assert_nothing_refused(&self, what: &str) {
        for (fates, direction) in self.fates.iter().zip(["from a", "from b"]) {
            let refused = fates.iter().filter(|fate| **fate == Fate::Refused).count();
            assert_eq!(refused, 0, "{what}: {refused} packets {direction}");
        }
    }
}

fn fate(from: &Machine, to: &Machine) -> Fate {
    if from.standing()[0] {
        Fate::Encrypted
    } else if to.standing()[1] {
        Fate::Refused
    } else {
        Fate::Plain
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn nothing_is_lost_when_the_two_sides_learn_of_the_proof_at_different_times() {
    for apart in [50, 200, 1000, 3000, 5000] {
        for pods_talk in [true, false] {
            for b_is_late in [true, false] {
                let first_looks =
                    if b_is_late { [millis(0), millis(apart)] } else { [millis(apart), millis(0)] };
                let mut pair = Pair::new(first_looks);
                pair.run(millis(200), pods_talk);
                pair.handshake();
                pair.run(Duration::from_secs(25), pods_talk);
                // From then on at least, packets show whether anything would have been refused.
                pair.run(Duration::from_secs(5), true);
                pair.assert_nothing_refused(&format!("{apart} ms apart"));
                assert_eq!([pair.a.standing(), pair.b.standing()], [[true, true, false]; 2]);
            }
        }
    }
}

#[test]
fn nothing_is_lost_although_keepalives_are() {
    // The first of them is sent with the handshake, the others three seconds apart.
    for lost in 0..=4 {
        let mut pair = Pair::new([millis(0), millis(700)]);
        pair.to_lose = lost;
        pair.handshake();
        pair.run(Duration::from_secs(14), false);
        pair.run(Duration::from_secs(20), true);
        pair.assert_nothing_refused(&format!("{lost} keepalives lost"));
        assert_eq!([pair.a.standing(), pair.b.standing()], [[true, true, false]; 2]);
    }
}

#[test]
fn an_agent_that_is_dead_for_a_moment_costs_nothing_and_one_that_stays_dead_costs_what_it_sends_in_plaintext()
{
    let mut pair = Pair::new([millis(0), millis(500)]);
    pair.b.alive = false;
    pair.handshake();
    pair.run(Duration::from_secs(12), true);
    pair.b.alive = true;
    pair.run(Duration::from_secs(20), true);
    pair.assert_nothing_refused("dead for 12 s");

    let mut pair = Pair::new([millis(0), millis(500)]);
    pair.b.alive = false;
    pair.handshake();
    pair.run(Duration::from_secs(60), true);
    let accepted = pair.fates[1].iter().filter(|fate| **fate == Fate::Plain).count();
    assert!((1490..=1510).contains(&accepted), "plaintext is accepted for 15 s, not for {accepted} packets");
    let of_dead = pair.fates[1].len();
    pair.b.alive = true;
    pair.run(Duration::from_secs(5), true);
    assert_eq!(pair.fates[1][of_dead + 1], Fate::Encrypted, "its device has the proof already");
    assert!(pair.fates[0].iter().all(|fate| *fate != Fate::Refused), "its device decrypts without it");
}

#[test]
fn nothing_is_lost_on_the_way_back() {
    for (whose, apart) in [("a", 50), ("b", 50), ("a", 5000), ("b", 5000), ("a", 14_000), ("b", 14_000)] {
        for a_is_late in [true, false] {
            let mut pair = Pair::new([millis(0), millis(300)]);
            pair.handshake();
            pair.run(Duration::from_secs(20), true);
            let mut direct = mesh();
            direct.nodes.get_mut(whose).unwrap().encrypt = false;
            let first = if a_is_late { &mut pair.b } else { &mut pair.a };
            first.set_cluster(direct.clone(), pair.now);
            pair.run(millis(apart), true);
            let second = if a_is_late { &mut pair.a } else { &mut pair.b };
            second.set_cluster(direct, pair.now);
            pair.run(Duration::from_secs(20), true);
            pair.assert_nothing_refused(&format!("{whose} goes direct, {apart} ms apart"));
            assert_eq!([pair.a.standing(), pair.b.standing()], [[false; 3]; 2]);
        }
    }
}
