//! A file in memory whose writers act between any two steps of its follower, in virtual time.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use proptest::{collection::vec, prelude::*};

use super::super::{
    error::PATIENCE,
    error::ReadError,
    follow::{Disk, Follower},
    whole::{SETTLE, Sign, Stamp},
};

const SECOND: Duration = Duration::from_secs(1);

/// What a writer does.
#[derive(Debug, Clone)]
enum Act {
    /// Opens the file in place and cuts it off, or creates it.
    Truncate,
    /// Writes this at the end.
    Append(&'static str),
    Close,
    /// Renames a finished file of this content into place.
    Rename(&'static str),
    /// Renames a link on the way to the file, which then leads to a finished file of this content.
    Relink(&'static str),
    /// Renames something else in the directory.
    RenameNeighbour,
    Remove,
}

/// A step of the follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Open,
    Read,
}

/// An act and when it happens.
#[derive(Debug, Clone)]
struct Planned {
    after: Duration,
    act: Act,
    /// It does not wait for its time, but happens before this step of the follower.
    sneaks: Option<Step>,
    /// Its sign comes later than the change itself.
    late: bool,
}

/// Acts in sequence, one every `after`.
fn plan(after: Duration, acts: &[Act]) -> Vec<Planned> {
    acts.iter().map(|act| Planned { after, act: act.clone(), sneaks: None, late: false }).collect()
}

#[derive(Debug)]
struct Memory {
    epoch: Instant,
    now: Duration,
    plan: VecDeque<Planned>,
    /// When the first act of `plan` happens.
    due: Duration,
    /// Nothing that happens gives a sign.
    silent: bool,
    /// The file is reached by a link. Of the file itself only what happens to the inode that was opened last is heard.
    linked: bool,
    opened: u64,
    content: Option<String>,
    inode: u64,
    changed: Duration,
    being_written: bool,
    /// Signs that wait to be heard, each with the inode that it is about.
    signs: Vec<(Sign, u64)>,
    late_signs: Vec<(Sign, u64)>,
    /// Every content that the file has had while nobody was writing.
    whole: Vec<String>,
    /// The end of the test: the plan is done, and the follower has had time to see it.
    end: Option<Duration>,
}

impl Memory {
    /// A file of this content that has not changed for a while.
    fn new(content: Option<&str>, plan: Vec<Planned>) -> Self {
        let mut memory = Self {
            epoch: Instant::now(),
            now: 100 * SECOND,
            plan: plan.into(),
            due: Duration::ZERO,
            silent: false,
            linked: false,
            opened: 0,
            content: content.map(str::to_owned),
            inode: 1,
            changed: Duration::ZERO,
            being_written: false,
            signs: Vec::new(),
            late_signs: Vec::new(),
            whole: content.map(str::to_owned).into_iter().collect(),
            end: None,
        };
        memory.schedule();
        memory
    }

    /// As [`Memory::new`], but a writer who goes on with the plan wrote the content a moment ago.
    fn half_written(content: &str, plan: Vec<Planned>) -> Self {
        let memory = Self::new(Some(content), plan);
        Self { changed: memory.now, being_written: true, whole: Vec::new(), ..memory }
    }

    fn schedule(&mut self) {
        match self.plan.front() {
            Some(next) => self.due = self.now + next.after,
            None => self.end = Some(self.now + 30 * SECOND),
        }
    }

    fn act(&mut self) {
        let Some(Planned { act, late, .. }) = self.plan.pop_front() else { return };
        if !matches!(act, Act::RenameNeighbour) {
            self.changed = self.now;
        }
        let sign = match act {
            Act::Truncate => {
                self.being_written = true;
                match self.content.replace(String::new()) {
                    Some(_) => Sign::Written,
                    None => {
                        self.inode += 1;
                        Sign::Created
                    }
                }
            }
            Act::Append(text) => {
                self.content.get_or_insert_default().push_str(text);
                Sign::Written
            }
            Act::Close => {
                self.being_written = false;
                Sign::Closed
            }
            Act::Rename(text) => {
                self.replace(text);
                Sign::Replaced
            }
            Act::Relink(text) => {
                self.replace(text);
                Sign::NeighbourRenamed
            }
            Act::RenameNeighbour => Sign::NeighbourRenamed,
            Act::Remove => {
                self.content = None;
                Sign::Removed
            }
        };
        if !self.silent {
            // Signs never overtake each other.
            let late = late || !self.late_signs.is_empty();
            if late { &mut self.late_signs } else { &mut self.signs }.push((sign, self.inode));
        }
        if !self.being_written {
            self.whole.extend(self.content.clone());
        }
        self.schedule();
    }

    /// The file is another one now. Whoever writes to the one of before writes to nobody.
    fn replace(&mut self, text: &str) {
        self.inode += 1;
        self.content = Some(text.into());
        self.being_written = false;
    }

    fn act_before(&mut self, step: Step) {
        if self.plan.front().is_some_and(|next| next.sneaks == Some(step)) {
            self.act();
        }
    }

    fn stamp(&self) -> Stamp {
        let changed = (i64::try_from(self.changed.as_secs()).unwrap(), self.changed.subsec_nanos().into());
        let size = self.content.as_ref().map_or(0, |content| content.len() as u64);
        Stamp { inode: (1, self.inode), size, modified: changed, changed }
    }
}

fn absent() -> ReadError {
    ReadError::System { path: "mesh.toml".into(), errno: Errno::ENOENT }
}

/// What a test's follower returns when everything is over.
fn over() -> ReadError {
    ReadError::NotText { path: "the end".into() }
}

impl Disk for Memory {
    fn now(&self) -> Instant {
        self.epoch + self.now
    }

    fn wait(&mut self, limit: Duration) -> Vec<Sign> {
        if self.signs.is_empty() && !self.late_signs.is_empty() {
            self.now += Duration::from_millis(1);
            self.signs.append(&mut self.late_signs);
        }
        let end = self.now + limit;
        while self.signs.is_empty() && !self.plan.is_empty() && self.due <= end {
            self.now = self.now.max(self.due);
            self.act();
        }
        if self.signs.is_empty() {
            self.now = end;
        }
        let heard = |(sign, inode): &(Sign, u64)| {
            !self.linked || *sign == Sign::NeighbourRenamed || *inode == self.opened
        };
        let signs = std::mem::take(&mut self.signs);
        signs.into_iter().filter(heard).map(|(sign, _)| sign).collect()
    }

    fn open(&mut self) -> Result<(Stamp, Duration), ReadError> {
        self.act_before(Step::Open);
        if self.end.is_some_and(|end| self.now > end) {
            return Err(over());
        }
        if self.content.is_none() {
            return Err(absent());
        }
        self.opened = self.inode;
        Ok((self.stamp(), self.now - self.changed))
    }

    fn read(&mut self) -> Result<(Vec<u8>, Stamp), ReadError> {
        self.act_before(Step::Read);
        // A file that has lost its name is still there for who has it open; here it is empty then.
        Ok((self.content.clone().unwrap_or_default().into_bytes(), self.stamp()))
    }

    fn unfinished(&self) -> ReadError {
        ReadError::Unfinished { path: "mesh.toml".into() }
    }

    fn changes_are_silent(&self) {}
}

/// Everything that the follower returns, and all contents of the file while nobody was writing.
fn follow(memory: Memory) -> (Vec<Result<String, ReadError>>, Vec<String>) {
    let mut follower = Follower::new(memory);
    let mut returned = Vec::new();
    loop {
        match follower.next() {
            Err(error) if error == over() => return (returned, follower.into_disk().whole),
            next => returned.push(next.map(|content| String::from_utf8(content).unwrap())),
        }
    }
}

fn contents(memory: Memory) -> Vec<Result<String, ReadError>> {
    follow(memory).0
}

#[test]
fn a_file_written_in_place_with_a_pause_is_returned_once_it_is_closed() {
    let acts =
        [Act::Truncate, Act::Append("name = "), Act::Append("\"n2\"\n"), Act::Append("key"), Act::Close];
    let memory = Memory::new(Some("old"), plan(3 * SECOND / 2, &acts));
    let unfinished = || Err(ReadError::Unfinished { path: "mesh.toml".into() });
    assert_eq!(contents(memory), [Ok("old".into()), unfinished(), Ok("name = \"n2\"\nkey".into())]);
}

#[test]
fn a_writer_that_finishes_in_time_is_not_reported() {
    let acts = [Act::Truncate, Act::Append("new"), Act::Close];
    let memory = Memory::new(Some("old"), plan(PATIENCE / 3, &acts));
    assert_eq!(contents(memory), [Ok("old".into()), Ok("new".into())]);
}

#[test]
fn the_same_content_after_a_report_is_returned_again() {
    let acts = [Act::Truncate, Act::Append("same"), Act::Close];
    let memory = Memory::new(Some("same"), plan(2 * PATIENCE, &acts));
    let unfinished = Err(ReadError::Unfinished { path: "mesh.toml".into() });
    assert_eq!(contents(memory), [Ok("same".into()), unfinished, Ok("same".into())]);
}

#[test]
fn a_file_that_takes_the_place_of_one_that_is_being_written_is_returned_at_once() {
    let acts = [Act::Truncate, Act::Append("half"), Act::Rename("whole")];
    let memory = Memory::new(Some("old"), plan(SECOND, &acts));
    assert_eq!(contents(memory), [Ok("old".into()), Ok("whole".into())]);
}

#[test]
fn silent_changes_are_returned_when_the_file_has_settled() {
    let acts = [Act::Truncate, Act::Append("ne"), Act::Append("w"), Act::Close];
    let memory = Memory { silent: true, ..Memory::new(Some("old"), plan(SETTLE * 3 / 4, &acts)) };
    assert_eq!(contents(memory), [Ok("old".into()), Ok("new".into())]);
}

#[test]
fn an_absent_file_is_reported_once() {
    let acts = [Act::Rename("one"), Act::Remove, Act::Rename("one")];
    let memory = Memory::new(None, plan(10 * SECOND, &acts));
    assert_eq!(contents(memory), [Err(absent()), Ok("one".into()), Err(absent()), Ok("one".into())]);
}

const TEXTS: [&str; 4] = ["a", "bc", "def\n", "ghij"];

fn text() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&TEXTS[..])
}

/// One edit of the file from its beginning to its end.
fn edit() -> impl Strategy<Value = Vec<Act>> {
    let step = prop_oneof![4 => text().prop_map(Act::Append), 1 => Just(Act::RenameNeighbour)];
    let rename = || text().prop_map(Act::Rename);
    // A writer that never closes the file is left behind when another file takes its place.
    let end = prop_oneof![4 => Just(Act::Close), 1 => rename()];
    let in_place = (vec(step, 0..4), end)
        .prop_map(|(steps, end)| std::iter::once(Act::Truncate).chain(steps).chain([end]).collect());
    prop_oneof![
        4 => in_place,
        2 => rename().prop_map(|act| vec![act]),
        1 => Just(vec![Act::Remove]),
    ]
}

/// The rest of an edit in place that began before anybody listened.
fn rest_of_an_edit() -> impl Strategy<Value = Vec<Act>> {
    vec(text(), 0..3)
        .prop_map(|texts| texts.into_iter().map(Act::Append).chain([Act::Close]).collect::<Vec<_>>())
}

/// Acts with pauses between them, each shorter than a bound in milliseconds.
fn timed(acts: Vec<Act>, bound: u64) -> impl Strategy<Value = Vec<Planned>> {
    let count = acts.len();
    let step = prop::sample::select(vec![None, Some(Step::Open), Some(Step::Read)]);
    vec((0..bound, step, any::<bool>()), count).prop_map(move |times| {
        let acts = acts.iter().cloned().zip(times);
        acts.map(|(act, (after, sneaks, late))| Planned {
            after: Duration::from_millis(after),
            act,
            sneaks,
            late,
        })
        .collect()
    })
}

/// Edits with pauses between their acts, each shorter than a bound in milliseconds.
fn edits(bound: u64) -> impl Strategy<Value = Vec<Planned>> {
    vec(edit(), 0..6).prop_flat_map(move |edits| timed(edits.concat(), bound))
}

/// What the follower returned is whole, and the last of it is what the file is at the end.
fn check(memory: Memory, expected_end: Option<&str>) {
    let shown = format!("{memory:?}");
    let (returned, whole) = follow(memory);
    for content in returned.iter().flatten() {
        assert!(whole.contains(content), "{content:?} was never whole, only {whole:?} were: {shown}");
    }
    let last = returned.last().cloned();
    assert_eq!(last, Some(expected_end.map(str::to_owned).ok_or_else(absent)), "{shown}");
}

/// The file's content after all these acts.
fn end_of(content: Option<&str>, plan: &[Planned]) -> Option<String> {
    let mut memory = Memory::new(content, plan.to_vec());
    while !memory.plan.is_empty() {
        memory.act();
    }
    memory.content
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_prefix_of_a_file_written_in_place_is_ever_returned(
        before in prop::option::of(text()), edits in edits(8_000),
    ) {
        let end = end_of(before, &edits);
        check(Memory::new(before, edits), end.as_deref());
    }

    /// Where nothing is announced, that holds for writers whose pauses are shorter than [`SETTLE`].
    #[test]
    fn no_prefix_that_is_written_silently_and_swiftly_is_ever_returned(
        before in prop::option::of(text()), mut edits in edits(1_000),
    ) {
        // These would make pauses longer.
        edits.retain(|planned| !matches!(planned.act, Act::RenameNeighbour));
        let end = end_of(before, &edits);
        check(Memory { silent: true, ..Memory::new(before, edits) }, end.as_deref());
    }

    /// A link that leads to another file is noticed at once. No writer acts between that and the look.
    #[test]
    fn no_prefix_of_a_file_behind_a_link_is_ever_returned(before in text(), mut edits in edits(8_000)) {
        edits.retain(|planned| !matches!(planned.act, Act::Remove));
        for planned in &mut edits {
            planned.sneaks = None;
            if let Act::Rename(text) = planned.act {
                planned.act = Act::Relink(text);
            }
        }
        let end = end_of(Some(before), &edits);
        check(Memory { linked: true, ..Memory::new(Some(before), edits) }, end.as_deref());
    }

    #[test]
    fn a_file_that_was_being_written_from_the_start_is_returned_whole(
        (half, rest, edits) in (text(), rest_of_an_edit(), edits(8_000)).prop_flat_map(|(half, rest, edits)| {
            (Just(half), timed(rest, 1_000), Just(edits))
        }),
    ) {
        let plan = [rest, edits].concat();
        let end = end_of(Some(half), &plan);
        check(Memory::half_written(half, plan), end.as_deref());
    }
}
