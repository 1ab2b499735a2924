//! The supervisor's decisions, under virtual time.

use proptest::prelude::*;

use super::*;

/// A machine with a clock, and names for what it does.
struct Bench {
    machine: Machine<u32>,
    now: Duration,
    calls: u64,
}

fn killed() -> End {
    End::Killed("SIGKILL")
}

fn failed(why: &str) -> End {
    End::Exited(1, Some(why.into()))
}

impl Bench {
    fn new() -> Self {
        Self { machine: Machine::new(), now: Duration::from_secs(100), calls: 0 }
    }

    fn handle(&mut self, event: Event<u32>) -> Vec<String> {
        self.machine.handle(self.now, event).iter().map(said).collect()
    }

    fn run(&mut self, arguments: &str) -> Vec<String> {
        self.calls += 1;
        let arguments = arguments.split_whitespace().map(str::to_owned).collect();
        self.handle(Event::Run { call: Call(self.calls), arguments, take_over: false })
    }

    fn stop(&mut self) -> Vec<String> {
        self.calls += 1;
        self.handle(Event::Stop(Call(self.calls)))
    }

    fn ready(&mut self, id: u64) -> Vec<String> {
        self.handle(Event::Ready(DeviceId(id)))
    }

    fn store(&mut self, id: u64, name: &str, descriptor: u32) {
        assert!(self.handle(Event::Stored(DeviceId(id), name.into(), descriptor)).is_empty());
    }

    fn end(&mut self, id: u64, end: End) -> Vec<String> {
        self.handle(Event::Ended(DeviceId(id), end))
    }

    /// Lets the time pass until something is due, and returns how long that took.
    fn wait(&mut self) -> (u128, Vec<String>) {
        let due = self.machine.next_time().expect("something is due");
        let waited = due.saturating_sub(self.now).as_millis();
        self.now = due;
        (waited, self.handle(Event::Time))
    }

    /// A device that is ready, with the number 1 and a descriptor of its own.
    fn running() -> Self {
        let mut bench = Self::new();
        assert_eq!(bench.run("wg0"), ["start 1 wg0"]);
        bench.store(1, "udp", 51);
        assert_eq!(bench.ready(1), ["answer 1 done"]);
        assert_eq!(bench.machine.state(), State::Running);
        bench
    }
}

fn said(action: &Action<u32>) -> String {
    match action {
        Action::Start { device, arguments, take_over, descriptors } => {
            let over = if *take_over { " over" } else { "" };
            let with: String = descriptors.iter().map(|(name, number)| format!(" {name}={number}")).collect();
            format!("start {}{over} {}{with}", device.0, arguments.join(" "))
        }
        Action::Terminate(device) => format!("terminate {}", device.0),
        Action::Kill(device) => format!("kill {}", device.0),
        Action::Answer(call, Answer::Done) => format!("answer {} done", call.0),
        Action::Answer(call, Answer::Busy(why)) => format!("answer {} busy: {why}", call.0),
        Action::Answer(call, Answer::Failed(why)) => format!("answer {} failed: {why}", call.0),
        Action::Exit => "exit".into(),
    }
}

#[test]
fn a_device_that_dies_is_started_again_at_once_with_its_descriptors_and_then_after_pauses() {
    let mut bench = Bench::running();
    bench.now += Duration::from_secs(60);
    assert_eq!(bench.end(1, killed()), ["start 2 wg0 udp=51"]);
    assert_eq!(bench.machine.state(), State::Starting);
    // It did not even come to store them again.
    assert!(bench.end(2, failed("no luck")).is_empty());
    assert_eq!(bench.machine.state(), State::Waiting);
    assert_eq!(bench.wait(), (100, vec!["start 3 wg0 udp=51".into()]));
    assert!(bench.ready(3).is_empty(), "nobody waits for an answer");
    assert!(bench.end(3, killed()).is_empty());
    assert_eq!(bench.wait(), (200, vec!["start 4 wg0 udp=51".into()]));
    bench.store(4, "udp", 52);
    bench.ready(4);
    bench.now += Duration::from_secs(10);
    assert_eq!(bench.end(4, End::Exited(101, None)), ["start 5 wg0 udp=52"]);
    assert_eq!((bench.machine.restarts(), bench.machine.descriptors()), (4, 1));
    assert_eq!(bench.machine.last_end(), Some("the device has ended with status 101"));
}

#[test]
fn a_device_that_ends_because_it_was_asked_or_has_handed_over_is_not_started_again() {
    for status in [0, HANDED_OVER] {
        let mut bench = Bench::running();
        assert!(bench.end(1, End::Exited(status, None)).is_empty());
        assert_eq!((bench.machine.state(), bench.machine.descriptors()), (State::Idle, 0), "{status}");
        assert_eq!(bench.machine.next_time(), None);
        assert_eq!(bench.handle(Event::Signalled), ["exit"]);
    }
}

#[test]
fn a_device_that_finds_another_one_on_the_interface_is_not_started_again() {
    // A device of another supervisor has killed the first, and has the interface now.
    let mut bench = Bench::running();
    assert_eq!(bench.end(1, killed()), ["start 2 wg0 udp=51"]);
    assert!(bench.end(2, End::Exited(HANDED_OVER, None)).is_empty());
    assert_eq!((bench.machine.state(), bench.machine.descriptors()), (State::Idle, 0));
    assert_eq!((bench.machine.wanted(), bench.machine.next_time()), (None, None));
    // One with other arguments says nothing about the one that is wanted.
    let mut bench = Bench::running();
    bench.end(1, killed());
    bench.end(2, failed("no"));
    assert_eq!(bench.run("wg1"), ["start 3 wg1 udp=51"]);
    let taken = End::Exited(HANDED_OVER, None);
    assert_eq!(bench.end(3, taken), ["answer 2 failed: another device has the interface"]);
    assert_eq!(bench.wait(), (200, vec!["start 4 wg0 udp=51".into()]));
}

#[test]
fn a_start_that_fails_is_answered_with_the_devices_words_and_not_repeated() {
    let mut bench = Bench::new();
    assert_eq!(bench.run("wg0"), ["start 1 wg0"]);
    assert_eq!(bench.run("wg1"), ["answer 2 busy: a device is being started"]);
    assert_eq!(bench.end(1, failed("wg0 exists already")), ["answer 1 failed: wg0 exists already"]);
    assert_eq!((bench.machine.state(), bench.machine.next_time()), (State::Idle, None));
    // It hangs.
    assert_eq!(bench.run("wg0"), ["start 2 wg0"]);
    assert_eq!(bench.wait(), (20_000, vec!["terminate 2".into()]));
    assert!(bench.ready(2).is_empty(), "too late");
    assert_eq!(bench.wait(), (5_000, vec!["kill 2".into()]));
    assert_eq!(bench.end(2, killed()), ["answer 3 failed: the device was not ready within 20 s"]);
    assert_eq!(bench.machine.state(), State::Idle);
}

#[test]
fn a_second_device_takes_over_and_the_first_goes() {
    let mut bench = Bench::running();
    assert_eq!(bench.run("wg0 --new"), ["start 2 over wg0 --new udp=51"]);
    bench.store(2, "udp", 61);
    // It has handed over before the other one says so.
    assert!(bench.end(1, End::Exited(HANDED_OVER, None)).is_empty());
    assert_eq!(bench.machine.state(), State::Starting);
    assert_eq!(bench.ready(2), ["answer 2 done"]);
    assert_eq!(bench.machine.arguments(), ["wg0", "--new"]);
    // The same with one that takes its time, and has nothing to hand over.
    assert_eq!(bench.run("wg1"), ["start 3 over wg1 udp=61"]);
    assert_eq!(bench.ready(3), ["answer 3 done"]);
    assert_eq!(bench.machine.first(), Some(DeviceId(3)));
    assert_eq!(bench.wait(), (2_000, vec!["terminate 2".into()]));
    assert_eq!(bench.wait(), (5_000, vec!["kill 2".into()]));
    assert!(bench.end(2, killed()).is_empty());
    assert_eq!((bench.machine.state(), bench.machine.restarts()), (State::Running, 0));
    bench.now += Duration::from_secs(10);
    assert_eq!(bench.end(3, killed()), ["start 4 wg1 udp=61"], "it had stored nothing itself");
}

#[test]
fn a_second_device_that_fails_leaves_the_first() {
    let mut bench = Bench::running();
    assert_eq!(bench.run("wg0 --new"), ["start 2 over wg0 --new udp=51"]);
    assert_eq!(bench.end(2, failed("not so")), ["answer 2 failed: not so"]);
    assert_eq!((bench.machine.state(), bench.machine.first()), (State::Running, Some(DeviceId(1))));
    assert_eq!(bench.end(1, killed()), ["start 3 wg0 udp=51"]);
}

#[test]
fn when_both_die_the_first_is_started_again() {
    for end in [killed(), End::Exited(HANDED_OVER, None)] {
        let mut bench = Bench::running();
        bench.run("wg0 --new");
        assert!(bench.end(1, end).is_empty(), "the second has all that it needs");
        assert_eq!(
            bench.end(2, killed()),
            ["answer 2 failed: the device was killed by SIGKILL", "start 3 wg0 udp=51"]
        );
    }
    // Its interface was removed meanwhile: nobody wants it any more.
    let mut bench = Bench::running();
    bench.run("wg0 --new");
    bench.end(1, End::Exited(0, None));
    assert_eq!(bench.end(2, failed("gone")), ["answer 2 failed: gone"]);
    assert_eq!((bench.machine.state(), bench.machine.descriptors()), (State::Idle, 0));
}

#[test]
fn a_new_run_replaces_one_that_fails_again_and_again() {
    let mut bench = Bench::running();
    assert_eq!(bench.end(1, killed()), ["start 2 wg0 udp=51"]);
    assert_eq!(bench.run("wg0 --new"), ["answer 2 busy: a device is being started"]);
    bench.end(2, failed("no"));
    assert_eq!(bench.run("wg0 --new"), ["start 3 wg0 --new udp=51"]);
    assert_eq!(bench.end(3, failed("neither")), ["answer 3 failed: neither"]);
    assert_eq!(bench.wait(), (200, vec!["start 4 wg0 udp=51".into()]), "the one that was there before");
    bench.end(4, failed("no"));
    assert_eq!(bench.run("wg0 --new"), ["start 5 wg0 --new udp=51"]);
    assert_eq!(bench.ready(5), ["answer 4 done"]);
    assert_eq!(bench.end(5, killed()), ["start 6 wg0 --new udp=51"]);
}

#[test]
fn stop_and_signals_end_everything() {
    let mut bench = Bench::new();
    assert_eq!(bench.stop(), ["answer 1 done"]);
    let mut bench = Bench::running();
    bench.run("wg0 --new");
    assert_eq!(bench.stop(), ["answer 2 failed: somebody stopped the device", "terminate 1", "terminate 2"]);
    assert_eq!(bench.run("wg0"), ["answer 4 busy: a device is being ended"]);
    assert!(bench.ready(2).is_empty());
    assert!(bench.end(1, End::Exited(0, None)).is_empty());
    assert_eq!(bench.machine.state(), State::Ending);
    assert_eq!(bench.wait(), (5_000, vec!["kill 2".into()]));
    assert_eq!(bench.end(2, killed()), ["answer 3 done"]);
    assert_eq!((bench.machine.state(), bench.machine.descriptors()), (State::Idle, 0));
    assert_eq!(bench.run("wg0"), ["start 3 wg0"]);
    assert_eq!(bench.handle(Event::Signalled), ["answer 5 failed: the supervisor ends", "terminate 3"]);
    assert_eq!(bench.run("wg0"), ["answer 6 failed: the supervisor ends"]);
    assert_eq!(bench.end(3, End::Exited(0, None)), ["exit"]);
    // While it waits to start one again.
    let mut bench = Bench::running();
    bench.end(1, killed());
    bench.end(2, failed("no"));
    assert_eq!(bench.stop(), ["answer 2 done"]);
    assert_eq!(bench.machine.next_time(), None);
}

#[test]
fn a_released_device_goes_on_but_is_not_started_again() {
    let mut bench = Bench::running();
    assert_eq!(bench.handle(Event::Release(Call(2))), ["answer 2 done"]);
    assert_eq!((bench.machine.state(), bench.machine.descriptors()), (State::Running, 1));
    assert!(bench.machine.is_released());
    // Who takes over has killed it.
    assert!(bench.end(1, killed()).is_empty());
    assert_eq!((bench.machine.state(), bench.machine.descriptors()), (State::Idle, 0));
    bench.calls = 2;
    assert_eq!(bench.run("wg0"), ["start 2 wg0"]);
    assert_eq!(bench.ready(2), ["answer 3 done"]);
    assert!(!bench.machine.is_released());
    assert_eq!(bench.end(2, killed()), ["start 3 wg0"]);
    bench.end(3, failed("no"));
    bench.handle(Event::Release(Call(4)));
    assert_eq!((bench.machine.state(), bench.machine.next_time()), (State::Idle, None));
}

#[test]
fn what_a_killed_supervisor_had_run_is_tried_once() {
    let found = || Event::Found { arguments: vec!["wg0".into()], descriptors: Vec::new() };
    let mut bench = Bench::new();
    assert_eq!(bench.handle(found()), ["start 1 wg0"]);
    assert_eq!(bench.run("wg0"), ["answer 1 busy: a device is being started"]);
    assert!(bench.end(1, failed("wg0 exists already")).is_empty());
    assert_eq!((bench.machine.state(), bench.machine.next_time()), (State::Idle, None));
    assert_eq!(bench.machine.wanted(), None);
    assert_eq!(bench.handle(found()), ["start 2 wg0"]);
    assert!(bench.ready(2).is_empty());
    assert_eq!(bench.machine.wanted(), Some(&["wg0".to_owned()][..]));
    assert_eq!(bench.end(2, killed()), ["start 3 wg0"]);
    assert!(bench.handle(found()).is_empty(), "one runs");
    // Whoever ends it, or takes it over, does not want it again.
    bench.handle(Event::Release(Call(2)));
    assert_eq!(bench.machine.wanted(), None);
}

#[test]
fn a_supervisor_that_is_asked_to_end_leaves_what_it_had_to_the_next() {
    let wanted = |bench: &Bench| bench.machine.wanted().map(|words| words.join(" "));
    let kept = |bench: &Bench| bench.machine.wanted_descriptors();
    let mut bench = Bench::running();
    assert!(!bench.machine.is_exiting());
    assert_eq!(bench.handle(Event::Signalled), ["terminate 1"]);
    assert!(bench.machine.is_exiting());
    assert_eq!((wanted(&bench).as_deref(), kept(&bench)), (Some("wg0"), vec![("udp".into(), 51)]));
    assert_eq!(bench.end(1, End::Exited(0, None)), ["exit"]);
    assert_eq!((wanted(&bench).as_deref(), kept(&bench)), (Some("wg0"), vec![("udp".into(), 51)]));
    // It waits to start one again.
    let mut bench = Bench::running();
    bench.end(1, killed());
    bench.end(2, failed("no"));
    assert_eq!(bench.handle(Event::Signalled), ["exit"]);
    assert_eq!((wanted(&bench).as_deref(), kept(&bench)), (Some("wg0"), vec![("udp".into(), 51)]));
    // Another device takes over, and may have done so: the next supervisor gets what the first one had.
    let mut bench = Bench::running();
    bench.run("wg0 --new");
    bench.store(2, "udp", 61);
    bench.end(1, End::Exited(HANDED_OVER, None));
    assert_eq!(bench.handle(Event::Signalled), ["answer 2 failed: the supervisor ends", "terminate 2"]);
    assert_eq!(bench.end(2, End::Exited(0, None)), ["exit"]);
    assert_eq!((wanted(&bench).as_deref(), kept(&bench)), (Some("wg0"), vec![("udp".into(), 51)]));
    // Nobody wants it: it was stopped, or released.
    let mut bench = Bench::running();
    bench.stop();
    bench.handle(Event::Signalled);
    bench.end(1, End::Exited(0, None));
    assert_eq!((wanted(&bench), kept(&bench)), (None, Vec::new()));
    let mut bench = Bench::running();
    bench.handle(Event::Signalled);
    bench.stop();
    bench.end(1, End::Exited(0, None));
    assert_eq!((wanted(&bench), kept(&bench)), (None, Vec::new()));
    let mut bench = Bench::running();
    bench.handle(Event::Release(Call(2)));
    bench.handle(Event::Signalled);
    bench.end(1, End::Exited(0, None));
    assert_eq!((wanted(&bench), kept(&bench)), (None, Vec::new()));
}

#[test]
fn a_supervisor_that_ends_before_the_device_that_it_found_is_ready_leaves_it_to_the_next() {
    let left = |bench: &Bench| {
        let wanted = bench.machine.wanted().map(|words| words.join(" "));
        (wanted, bench.machine.wanted_descriptors())
    };
    let found = || {
        let descriptors = vec![("tun".into(), 7), ("udp".into(), 51)];
        let mut bench = Bench::new();
        bench.handle(Event::Found { arguments: vec!["wg0".into()], descriptors });
        bench
    };
    let all = (Some("wg0".to_owned()), vec![("tun".into(), 7), ("udp".into(), 51)]);
    // It may be killed at any moment.
    let mut bench = found();
    assert_eq!(left(&bench), all);
    assert_eq!(bench.handle(Event::Signalled), ["terminate 1"]);
    assert_eq!(left(&bench), all);
    assert_eq!(bench.end(1, End::Killed("SIGTERM")), ["exit"]);
    assert_eq!(left(&bench), all);
    // Whoever stops or releases it does not want it, and one that is started later is started again.
    for event in [Event::Stop(Call(1)), Event::Release(Call(1))] {
        let mut bench = found();
        bench.calls = 1;
        bench.handle(event);
        assert_eq!(left(&bench), (None, Vec::new()));
        bench.end(1, killed());
        assert_eq!((left(&bench), bench.machine.state()), ((None, Vec::new()), State::Idle));
        assert_eq!(bench.run("wg0"), ["start 2 wg0"]);
        assert_eq!(left(&bench), (None, Vec::new()), "nobody has seen it ready");
        bench.ready(2);
        assert_eq!(bench.end(2, killed()), ["start 3 wg0"]);
        assert!(bench.end(3, failed("no")).is_empty());
        assert_eq!(bench.machine.state(), State::Waiting);
    }
}

#[test]
fn what_systemd_has_kept_goes_to_the_device_that_is_found_or_to_nobody() {
    let descriptors = || vec![("tun".into(), 7), ("udp".into(), 51), ("odd".into(), 9)];
    let found = || Event::Found { arguments: vec!["wg0".into()], descriptors: descriptors() };
    let kept = |bench: &Bench| bench.machine.wanted_descriptors();
    let mut bench = Bench::new();
    assert_eq!(bench.handle(found()), ["start 1 wg0 tun=7 udp=51 odd=9"]);
    assert_eq!(kept(&bench), descriptors(), "for the next supervisor, if this one ends now");
    bench.store(1, "udp", 52);
    bench.handle(Event::Removed(DeviceId(1), "odd".into()));
    assert!(bench.ready(1).is_empty());
    let stored = [("tun".into(), 7), ("udp".into(), 52)];
    assert_eq!(kept(&bench), stored);
    // While it is dead, and while it is replaced, too.
    assert_eq!(bench.end(1, killed()), ["start 2 wg0 tun=7 udp=52"]);
    assert_eq!(kept(&bench), stored);
    bench.end(2, failed("no"));
    assert_eq!((bench.machine.state(), kept(&bench)), (State::Waiting, stored.to_vec()));
    assert_eq!(bench.run("wg0 --new"), ["start 3 wg0 --new tun=7 udp=52"]);
    bench.store(3, "udp", 99);
    assert_eq!(kept(&bench), [], "the arguments that are wanted are not those of its device");
    // If that one fails, the one before gets what was its own.
    assert_eq!(bench.end(3, failed("no")), ["answer 1 failed: no"]);
    assert_eq!(kept(&bench), stored);
    assert_eq!(bench.run("wg0 --new"), ["start 4 wg0 --new tun=7 udp=52"]);
    bench.ready(4);
    assert_eq!(kept(&bench), stored);
    assert_eq!(bench.run("wg1"), ["start 5 over wg1 tun=7 udp=52"]);
    bench.store(5, "udp", 53);
    assert_eq!(kept(&bench), stored);
    bench.ready(5);
    assert_eq!(kept(&bench), [("udp".into(), 53)]);
    // Nobody is to have it any more, although it runs.
    bench.handle(Event::Release(Call(9)));
    assert_eq!((bench.machine.state(), kept(&bench)), (State::Running, Vec::new()));
    let mut bench = Bench::running();
    assert_eq!(kept(&bench).len(), 1);
    assert_eq!(bench.stop(), ["terminate 1"]);
    assert_eq!(kept(&bench), []);
    // It does not start: another instance may have the interface.
    let mut bench = Bench::new();
    bench.handle(found());
    bench.end(1, failed("wg0 is taken"));
    assert_eq!((bench.machine.state(), bench.machine.descriptors()), (State::Idle, 0));
    assert_eq!(bench.run("wg0"), ["start 2 wg0"]);
}

#[test]
fn what_a_device_removes_is_not_kept() {
    let mut bench = Bench::running();
    bench.store(1, "tun", 7);
    bench.handle(Event::Removed(DeviceId(1), "udp".into()));
    assert_eq!(bench.end(1, killed()), ["start 2 wg0 tun=7"]);
}

/// Something that may happen at any moment; devices are chosen among those that live.
#[derive(Clone, Debug)]
enum Step {
    Run(usize, bool),
    Stop,
    Release,
    Found,
    Signalled,
    Ready(usize),
    Stored(usize),
    Ended(usize, i32),
    Wait,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..2usize, any::<bool>()).prop_map(|(which, over)| Step::Run(which, over)),
        1 => Just(Step::Stop),
        1 => Just(Step::Release),
        1 => Just(Step::Found),
        1 => Just(Step::Signalled),
        4 => (0..3usize).prop_map(Step::Ready),
        2 => (0..3usize).prop_map(Step::Stored),
        4 => (0..3usize, prop_oneof![Just(0), Just(1), Just(HANDED_OVER)])
            .prop_map(|(id, status)| Step::Ended(id, status)),
        3 => Just(Step::Wait),
    ];
    // In half of the cases, a dead device waits for its restart at first.
    let dies = [Step::Run(0, false), Step::Ready(0), Step::Ended(0, 1), Step::Ended(0, 1)];
    let first = prop_oneof![Just(Vec::new()), Just(dies.to_vec())];
    (first, prop::collection::vec(step, 1..40)).prop_map(|(first, then)| [first, then].concat())
}

proptest! {
    /// Whatever happens: each call is answered once, at most two devices are meant to run, none is started after a
    /// signal, no descriptors come with the arguments of another device, and the supervisor ends when no device is
    /// left, not before.
    #[test]
    fn calls_are_answered_and_devices_end(steps in steps()) {
        let mut bench = Bench::new();
        let mut living: Vec<DeviceId> = Vec::new();
        let (mut asked, mut answered) = (0, std::collections::BTreeSet::new());
        let (mut signalled, mut exited) = (false, false);
        let (mut arguments_of, mut ready) = (std::collections::BTreeMap::new(), Vec::new());
        // Who has stored the descriptor 1, and so on, and whether its arguments were wanted then.
        let mut stored: Vec<(DeviceId, bool)> = Vec::new();
        let end = std::iter::once(Step::Signalled).chain((0..40).flat_map(|_| [Step::Wait, Step::Ended(0, 0)]));
        for step in steps.into_iter().chain(end) {
            if exited {
                break;
            }
            let chosen = |index: usize| living.get(index % living.len().max(1)).copied();
            let mut call = || { asked += 1; Call(asked) };
            let event = match step {
                Step::Run(which, take_over) => {
                    Event::Run { call: call(), arguments: vec![format!("wg{which}")], take_over }
                }
                Step::Stop => Event::Stop(call()),
                Step::Release => Event::Release(call()),
                Step::Found => {
                    Event::Found { arguments: vec!["wg0".into()], descriptors: vec![("udp".into(), 0)] }
                }
                Step::Signalled => { signalled = true; Event::Signalled }
                Step::Ready(index) => {
                    ready.extend(chosen(index));
                    chosen(index).map_or(Event::Time, Event::Ready)
                }
                Step::Stored(index) => chosen(index).map_or(Event::Time, |id| {
                    stored.push((id, bench.machine.wanted.as_ref() == arguments_of.get(&id.0)));
                    Event::Stored(id, "udp".into(), stored.len() as u32)
                }),
                Step::Ended(index, status) => match chosen(index) {
                    Some(id) => {
                        living.retain(|other| *other != id);
                        Event::Ended(id, End::Exited(status, None))
                    }
                    None => Event::Time,
                },
                Step::Wait => {
                    bench.now = bench.machine.next_time().unwrap_or(bench.now).max(bench.now);
                    Event::Time
                }
            };
            for action in bench.machine.handle(bench.now, event) {
                match action {
                    Action::Start { device, arguments, .. } => {
                        prop_assert!(!signalled, "started after a signal");
                        arguments_of.insert(device.0, arguments);
                        living.push(device);
                    }
                    Action::Terminate(id) | Action::Kill(id) => prop_assert!(living.contains(&id)),
                    Action::Answer(call, _) => prop_assert!(answered.insert(call.0), "answered twice"),
                    Action::Exit => {
                        prop_assert!(signalled && living.is_empty());
                        exited = true;
                    }
                }
            }
            let (wanted, descriptors) = (bench.machine.wanted(), bench.machine.wanted_descriptors());
            prop_assert!(wanted.is_some() || descriptors.is_empty(), "descriptors of nobody");
            prop_assert!(descriptors.len() <= bench.machine.descriptors());
            // One that was never wanted has left nothing to a device with other arguments.
            let owners = descriptors.iter().filter_map(|(_, number)| stored.get(number.checked_sub(1)? as usize));
            for (owner, was_wanted) in owners {
                prop_assert!(*was_wanted || ready.contains(owner), "of another device");
            }
            prop_assert_eq!(bench.machine.devices().count(), living.len());
            prop_assert!(bench.machine.next_time().is_none_or(|at| at > bench.now));
        }
        prop_assert!(exited);
        prop_assert_eq!(answered.len() as u64, asked);
    }
}
