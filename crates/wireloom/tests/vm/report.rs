//! What the virtual machine tells of its tests, line by line (`guest/`), and who waits to hear it.
//!
//! ```text
//! up SECONDS RELEASE                 the machine is ready; its kernel's release
//! start TEST
//! end TEST STATUS BEGUN ENDED        seconds of the machine's uptime; what the test said follows
//! |a line that it said
//! done                               the last word
//! ```

use std::{
    collections::BTreeMap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use libtest_mimic::Trial;

/// Of timeout(1): it had to end the test.
const TIMED_OUT: &str = "124";

/// The state of one machine's tests. Trials wait on it while the machine runs.
#[derive(Debug, Default)]
pub(crate) struct Report {
    heard: Mutex<Heard>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Heard {
    tests: BTreeMap<String, Test>,
    /// The one whose words come now.
    speaker: Option<String>,
    /// Why nothing more comes.
    end: Option<String>,
}

/// As far as it has come.
#[derive(Debug, Default)]
struct Test {
    /// Status, and seconds that it took.
    ended: Option<(String, f64)>,
    said: String,
    /// Its words are complete.
    is_told: bool,
}

impl Report {
    /// Waits for a test's result. The error says how it failed, and what it said.
    pub(crate) fn result_of(&self, name: &str) -> Result<(), String> {
        let is_open = |heard: &mut Heard| {
            heard.end.is_none() && !heard.tests.get(name).is_some_and(|test| test.is_told)
        };
        let heard = self.news.wait_while(self.heard(), is_open).unwrap_or_else(PoisonError::into_inner);
        let end = heard.end.as_deref().unwrap_or("");
        let Some(test) = heard.tests.get(name) else {
            return Err(format!("it was never begun: {end}"));
        };
        match &test.ended {
            None => Err(format!("it was running when the machine ended: {end}")),
            Some((status, _)) if status == "0" => Ok(()),
            Some((status, seconds)) if status == TIMED_OUT => {
                Err(format!("it hung, and was killed after {seconds:.0} s\n{}", test.said))
            }
            Some((status, seconds)) => {
                Err(format!("it ended with status {status} after {seconds:.1} s\n{}", test.said))
            }
        }
    }

    /// Takes a line. What is no line of the report is not lost: it comes back.
    pub(crate) fn hear(&self, line: &str) -> Option<Line> {
        let mut heard = self.heard();
        if let Some(words) = line.strip_prefix('|') {
            let speaker = heard.speaker.clone()?;
            let test = heard.tests.get_mut(&speaker)?;
            test.said.push_str(words);
            test.said.push('\n');
            // The first one stands behind the test's name, on the same line.
            return words.split_once("figure: ").map(|(_, figure)| Line::Figure(figure.into()));
        }
        // The words of the one before are over.
        if let Some(speaker) = heard.speaker.take()
            && let Some(test) = heard.tests.get_mut(&speaker)
        {
            test.is_told = true;
            self.news.notify_all();
        }
        match *line.split(' ').collect::<Vec<_>>() {
            ["up", seconds, release] => Some(Line::Up { seconds: seconds.into(), release: release.into() }),
            ["start", name] => {
                heard.tests.entry(name.to_owned()).or_default();
                None
            }
            ["end", name, status, begun, ended] => {
                let seconds = |text: &str| text.parse::<f64>().unwrap_or(f64::NAN);
                let took = seconds(ended) - seconds(begun);
                heard.tests.entry(name.to_owned()).or_default().ended = Some((status.to_owned(), took));
                heard.speaker = Some(name.to_owned());
                None
            }
            ["done"] => Some(Line::Done),
            _ => Some(Line::Stray(line.to_owned())),
        }
    }

    /// Nothing more comes, for this reason.
    pub(crate) fn close(&self, end: String) {
        self.heard().end.get_or_insert(end);
        self.news.notify_all();
    }

    /// Seconds and names of the tests that took longest.
    pub(crate) fn slowest(&self, count: usize) -> Vec<(f64, String)> {
        let heard = self.heard();
        let took = |(name, test): (&String, &Test)| Some((test.ended.as_ref()?.1, name.clone()));
        let mut all: Vec<_> = heard.tests.iter().filter_map(took).collect();
        all.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        all.truncate(count);
        all
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of a line concerns the machine as a whole.
#[derive(Debug, PartialEq)]
pub(crate) enum Line {
    Up {
        seconds: String,
        release: String,
    },
    /// A measurement that a test prints.
    Figure(String),
    /// Not of the report: a stray write to the port.
    Stray(String),
    Done,
}

/// Tests of this module: silence must not count as success.
pub(crate) fn trials() -> Vec<Trial> {
    const STORY: &str = "up 2.5 6.1.0\nstart a\nstart b\nend b 101 3.0 4.5\n|assertion failed\n|figure: 7 s\n\
                         start c\nend a 0 2.6 9.1\nend c 124 5.0 65.0\n|stuck\nstart d\nend e 0 1 2\n|half a wo";
    let heard = || {
        let report = Report::default();
        let lines: Vec<_> = STORY.lines().filter_map(|line| report.hear(line)).collect();
        report.close("it crashed".into());
        (report, lines)
    };
    let trial = |name: &str, test: &'static str, expected: Result<(), &'static str>| {
        Trial::test(format!("report::{name}"), move || {
            let result = heard().0.result_of(test);
            if result == expected.map_err(str::to_owned) {
                return Ok(());
            }
            Err(format!("{result:?}").into())
        })
    };
    vec![
        trial("status_0_is_success", "a", Ok(())),
        trial(
            "a_failure_comes_with_its_words",
            "b",
            Err("it ended with status 101 after 1.5 s\nassertion failed\nfigure: 7 s\n"),
        ),
        trial("a_hang_is_told", "c", Err("it hung, and was killed after 60 s\nstuck\n")),
        trial(
            "who_ran_when_the_machine_ended_has_failed",
            "d",
            Err("it was running when the machine ended: it crashed"),
        ),
        trial("who_was_never_begun_has_failed", "z", Err("it was never begun: it crashed")),
        Trial::test("report::figures_are_handed_on", move || {
            let expected =
                [Line::Up { seconds: "2.5".into(), release: "6.1.0".into() }, Line::Figure("7 s".into())];
            let (_, lines) = heard();
            if lines == expected { Ok(()) } else { Err(format!("{lines:?}").into()) }
        }),
    ]
}
