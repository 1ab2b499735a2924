//! When the own record is written, step by step.

use wireloom_types::PublicKey;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

struct World {
    publishing: Publishing,
    now: Instant,
}

fn node(number: u8) -> Node {
    Node { addresses: [[192, 0, 2, number].into()].into(), ..Node::default() }
}

fn text(number: u8) -> String {
    record::write(&node(number), Spelling::Snake)
}

impl World {
    fn new() -> Self {
        Self { publishing: Publishing::new(Spelling::Snake, 3), now: Instant::now() }
    }

    fn want(&mut self, number: Option<u8>) {
        self.publishing.want(number.map(node).as_ref()).unwrap();
    }

    fn show(&mut self, number: Option<u8>, uid: &str) {
        let object = number.map(|number| Object { value: text(number), born: 1, uid: uid.into() });
        self.publishing.show(object.as_ref());
    }

    fn step(&mut self) -> Step {
        self.publishing.step(self.now)
    }

    fn done(&mut self, result: Result<(), &StoreError>) {
        self.publishing.done(result, self.now);
    }

    /// Waits as long as it asks for, and writes then.
    fn wait(&mut self) -> Duration {
        let Step::Wait(due) = self.step() else { panic!("nothing to wait for") };
        let wait = due - self.now;
        self.now = due;
        wait
    }
}

fn error(problem: StoreProblem) -> StoreError {
    StoreError { operation: "write".into(), problem }
}

#[test]
fn nothing_is_written_before_it_is_wanted_and_the_store_is_known() {
    let mut world = World::new();
    assert_eq!(world.step(), Step::Rest);
    world.want(Some(1));
    assert_eq!(world.step(), Step::Rest);
    world.show(None, "");
    assert_eq!(world.step(), Step::Put(text(1)));
    assert_eq!(world.step(), Step::Rest, "one at a time");
    let mut world = World::new();
    world.show(Some(1), "a");
    assert_eq!(world.step(), Step::Rest, "an agent that publishes nothing leaves it");
    world.want(Some(1));
    assert_eq!(world.step(), Step::Rest);
    assert!(world.publishing.is_published());
}

#[test]
fn what_is_written_is_not_written_again_before_it_is_shown() {
    let mut world = World::new();
    world.show(None, "");
    world.want(Some(1));
    assert_eq!(world.step(), Step::Put(text(1)));
    world.done(Ok(()));
    assert_eq!(world.wait(), PATIENCE);
    assert_eq!(world.step(), Step::Put(text(1)), "the store forgot it");
    world.done(Ok(()));
    world.show(Some(1), "a");
    assert_eq!(world.step(), Step::Rest);
    assert!(world.publishing.is_published());
}

#[test]
fn one_that_was_made_anew_by_somebody_else_or_has_another_owner_is_written_again() {
    let mut world = World::new();
    world.show(Some(1), "a");
    world.want(Some(1));
    assert_eq!(world.step(), Step::Rest);
    world.show(Some(1), "b");
    assert_eq!(world.step(), Step::Put(text(1)));
    world.done(Ok(()));
    assert_eq!(world.step(), Step::Rest);
    world.publishing.write_again();
    world.now += SECOND;
    assert_eq!(world.step(), Step::Put(text(1)));
    world.done(Err(&error(StoreProblem::Conflict { why: "changed".into() })));
    assert!(world.wait() <= SECOND);
    assert_eq!(world.step(), Step::Put(text(1)));
}

#[test]
fn failures_are_tried_again_later_and_later() {
    let mut world = World::new();
    world.show(None, "");
    world.want(Some(1));
    let mut waits = Vec::new();
    for _ in 0..8 {
        assert_eq!(world.step(), Step::Put(text(1)));
        let why = "connection refused".into();
        world.done(Err(&error(StoreProblem::Unavailable { why, retry_after: None })));
        waits.push(world.wait());
    }
    assert_eq!(waits[0], SECOND, "own attempts are at most one a second");
    assert!(waits[7] >= LONGEST_OUTAGE / 2 && waits[7] <= LONGEST_OUTAGE, "{waits:?}");
    assert_eq!(world.step(), Step::Put(text(1)));
    let retry_after = Some(100 * SECOND);
    world.done(Err(&error(StoreProblem::Unavailable { why: "busy".into(), retry_after })));
    world.want(Some(2));
    assert_eq!(world.wait(), 100 * SECOND, "the store asked to be left alone");
    assert_eq!(world.step(), Step::Put(text(2)));
}

#[test]
fn another_record_does_not_wait_for_what_the_one_before_waited_for() {
    let mut world = World::new();
    world.show(None, "");
    world.want(Some(1));
    for _ in 0..12 {
        assert_eq!(world.step(), Step::Put(text(1)));
        world.done(Err(&error(StoreProblem::Conflict { why: "the key is taken".into() })));
        world.wait();
    }
    assert_eq!(world.step(), Step::Put(text(1)));
    world.done(Err(&error(StoreProblem::Conflict { why: "the key is taken".into() })));
    world.want(Some(2));
    assert!(world.wait() <= SECOND);
    assert_eq!(world.step(), Step::Put(text(2)));
}

#[test]
fn who_asks_for_it_has_the_record_written_at_once_in_a_fight() {
    let mut world = World::new();
    world.want(Some(1));
    for _ in 0..8 {
        world.show(Some(1), "a");
        assert_eq!(world.step(), Step::Rest);
        world.show(Some(2), "a");
        world.wait();
        assert_eq!(world.step(), Step::Put(text(1)));
        world.done(Ok(()));
    }
    world.show(Some(1), "a");
    assert_eq!(world.step(), Step::Rest);
    world.show(Some(2), "a");
    let Step::Wait(due) = world.step() else { panic!("nothing to wait for") };
    assert!(due - world.now > 10 * SECOND);
    world.publishing.hurry();
    world.now += SECOND;
    assert_eq!(world.step(), Step::Put(text(1)));
}

#[test]
fn a_write_without_an_answer_that_is_shown_is_settled() {
    let mut world = World::new();
    world.show(None, "");
    world.want(Some(1));
    assert_eq!(world.step(), Step::Put(text(1)));
    let why = "timed out".into();
    world.done(Err(&error(StoreProblem::Unavailable { why, retry_after: None })));
    assert!(!world.publishing.is_settled());
    world.show(Some(1), "a");
    assert_eq!(world.step(), Step::Rest);
    assert!(world.publishing.is_settled(), "no further write will say that all is well");
}

#[test]
fn a_record_is_removed_and_stays_so() {
    let mut world = World::new();
    world.show(Some(1), "a");
    world.want(None);
    assert_eq!(world.step(), Step::Delete);
    world.done(Ok(()));
    world.show(None, "");
    assert_eq!(world.step(), Step::Rest);
    assert!(world.publishing.is_published());
    world.show(Some(1), "b");
    assert!(world.wait() <= SECOND);
    assert_eq!(world.step(), Step::Delete);
}

#[test]
fn a_record_that_nobody_would_read_is_refused() {
    let mut world = World::new();
    let wide = Node { workloads: ["0.0.0.0/0".parse().unwrap()].into(), ..Node::default() };
    assert!(world.publishing.want(Some(&wide)).unwrap_err().contains("too wide"));
    world.show(None, "");
    assert_eq!(world.step(), Step::Rest);
}

#[test]
fn a_record_that_is_refused_is_not_published_and_the_one_before_stays() {
    let mut world = World::new();
    world.want(Some(1));
    world.show(Some(1), "u");
    assert_eq!(world.step(), Step::Rest);
    assert!(world.publishing.is_published());
    let addresses = (0..200).map(|number| [192, 0, 2, number].into()).collect();
    let huge = Node { addresses, ..Node::default() };
    assert!(world.publishing.want(Some(&huge)).is_err());
    assert!(!world.publishing.is_published(), "nobody has read what this node is like now");
    assert_eq!(world.step(), Step::Rest);
    world.want(Some(1));
    assert!(world.publishing.is_published());
}

#[test]
fn a_node_leaves_although_its_record_would_be_refused() {
    let mut world = World::new();
    world.want(Some(1));
    world.show(Some(1), "u");
    let numbers = || (0..=u16::MAX).step_by(40).map(u16::to_be_bytes);
    let singles = numbers().map(|[high, low]| format!("10.1.{high}.{low}/32").parse().unwrap());
    let leaving = Node {
        public_key: Some(PublicKey::from_bytes([7; 32])),
        endpoint: Some("127.0.0.1:51820".parse().unwrap()),
        other_endpoints: numbers().map(|[high, low]| ([10, 2, high, low], 51820).into()).collect(),
        addresses: numbers()
            .map(|[high, low]| [127, 3, high, low].into())
            .chain([[10, 3, 0, 1].into()])
            .collect(),
        workloads: singles.chain(["0.0.0.0/0".parse().unwrap()]).collect(),
        link_addresses: numbers().map(|[high, low]| [169, 254, high, low].into()).collect(),
        tunnel_addresses: numbers().map(|[high, low]| [10, 1, high, low].into()).collect(),
        encrypt: false,
        ..Node::default()
    };
    world.publishing.want(Some(&leaving)).unwrap();
    assert!(!world.publishing.is_published());
    let Step::Put(announcement) = world.step() else { panic!("nothing is announced") };
    world.done(Ok(()));
    let read = record::read(&announcement).unwrap();
    assert_eq!((read.public_key, read.encrypt), (leaving.public_key, false));
    assert_eq!(read.addresses, [[10, 3, 0, 1].into()].into());
    assert_eq!(
        (read.workloads.len(), read.tunnel_addresses.len(), read.link_addresses.len()),
        (1024, 128, 0)
    );
    world.publishing.show(Some(&Object { value: announcement, born: 1, uid: "u".into() }));
    assert!(world.publishing.is_published(), "now the peers know it");
}

#[test]
fn a_node_whose_key_is_another_ones_leaves_without_it() {
    let mut world = World::new();
    let leaving = Node { public_key: Some(PublicKey::from_bytes([7; 32])), encrypt: false, ..node(1) };
    world.show(None, "");
    world.publishing.want(Some(&leaving)).unwrap();
    let keyless = |node: &Node| record::write(&Node { public_key: None, ..node.clone() }, Spelling::Snake);
    let mut show = |value| {
        world.publishing.show(Some(&Object { value, born: 1, uid: "u".into() }));
        world.publishing.is_published()
    };
    assert!(show(keyless(&leaving)));
    let member = Node { encrypt: true, ..leaving.clone() };
    assert!(!show(keyless(&member)), "nobody has read that it leaves");
    world.publishing.want(Some(&member)).unwrap();
    assert!(!world.publishing.is_published(), "its key is missing");
}

#[test]
fn a_record_whose_keys_entry_is_gone_is_written_again() {
    let key = PublicKey::from_bytes([7; 32]);
    let keyed = Node { public_key: Some(key), ..node(1) };
    let value = record::write(&keyed, Spelling::Snake);
    let mut world = World::new();
    // It may be gone before anybody has said what is wanted.
    world.publishing.show(Some(&Object { value: value.clone(), born: 1, uid: String::new() }));
    world.publishing.claim_is_gone(&key);
    world.publishing.want(Some(&keyed)).unwrap();
    assert_eq!(world.step(), Step::Put(value));
    world.done(Ok(()));
    assert_eq!(world.step(), Step::Rest);
    world.publishing.claim_is_gone(&PublicKey::from_bytes([8; 32]));
    assert_eq!(world.step(), Step::Rest, "another key is none of its business");
    world.publishing.claim_is_gone(&key);
    assert!(world.wait() <= SECOND);
    assert!(matches!(world.step(), Step::Put(_)));
}

#[test]
fn another_machine_of_the_same_name_is_noticed_once_it_has_replaced_the_record_again_and_again() {
    let of = |number: u8, workloads: &[&str]| Node {
        public_key: Some(PublicKey::from_bytes([number; 32])),
        endpoint: Some(([192, 0, 2, number], 51820).into()),
        workloads: workloads.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        ..Node::default()
    };
    let mut world = World::new();
    world.publishing.want(Some(&of(1, &[]))).unwrap();
    let show = |world: &mut World, node: &Node| {
        let value = record::write(node, Spelling::Snake);
        world.publishing.show(Some(&Object { value, born: 1, uid: String::new() }));
        world.step();
    };
    for _ in 0..10 {
        show(&mut world, &of(1, &[]));
        show(&mut world, &of(1, &["10.1.1.0/24"]));
    }
    assert_eq!(world.publishing.rival(), None, "an operator edits it");
    for _ in 0..4 {
        assert_eq!(world.publishing.rival(), None);
        show(&mut world, &of(1, &[]));
        show(&mut world, &of(2, &[]));
    }
    let key = PublicKey::from_bytes([2; 32]);
    assert_eq!(world.publishing.rival().unwrap(), format!("with the key {key} at 192.0.2.2:51820"));
    world.done(Ok(()));
    show(&mut world, &of(1, &[]));
    assert_eq!(world.wait(), LONGEST_FIGHT, "it asks to be looked at again");
    assert!(world.publishing.rival().is_some());
    assert_eq!(world.step(), Step::Rest);
    assert_eq!(world.publishing.rival(), None, "it is over");
}
