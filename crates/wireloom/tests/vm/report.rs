//! The virtual machine's report on its tests (`guest/` writes it), and those who wait for it.
//!
//! ```text
//! up SECONDS RELEASE                 the machine is ready; its kernel's release
//! start TEST
//! end TEST STATUS BEGUN ENDED        seconds of the machine's uptime; the test's output follows
//! |a line of its output
//! done                               the last line
//! ```

use std::{
    collections::BTreeMap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use libtest_mimic::Trial;

/// The exit status of timeout(1) when it had to end the test.
const TIMED_OUT: &str = "124";

/// The state of one machine's tests. Trials wait for it to change while the machine runs.
#[derive(Debug, Default)]
pub(crate) struct Report {
    heard: Mutex<Heard>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Heard {
    tests: BTreeMap<String, Test>,
    /// The test whose output comes now.
    speaker: Option<String>,
    /// Why nothing more will come.
    end: Option<String>,
}

/// What is known of a test.
#[derive(Debug, Default)]
struct Test {
    /// Its status, and the seconds that it took.
    ended: Option<(String, f64)>,
    said: String,
    /// Its output is complete.
    is_told: bool,
}

impl Report {
    /// Waits for a test's result. The error says how it failed, with its output.
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

    /// Takes a line. Returns what concerns more than one test: a line that is not of the report is not lost.
    pub(crate) fn hear(&self, line: &str) -> Option<Line> {
        let mut heard = self.heard();
        if let Some(words) = line.strip_prefix('|') {
            let speaker = heard.speaker.clone()?;
            let test = heard.tests.get_mut(&speaker)?;
            test.said.push_str(words);
            test.said.push('\n');
            // libtest prints the first one on the same line as the test's name.
            return words.split_once("figure: ").map(|(_, figure)| Line::Figure(figure.into()));
        }
        // The output of the test before is complete.
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

    /// Says that nothing more will come, and why. The first reason counts.
    pub(crate) fn close(&self, end: String) {
        self.heard().end.get_or_insert(end);
        self.news.notify_all();
    }

    /// The tests that took longest, with their seconds.
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

/// A line that concerns the machine as a whole.
#[derive(Debug, PartialEq)]
pub(crate) enum Line {
    Up {
        seconds: String,
        release: String,
    },
    /// A figure that a test measured.
    Figure(String),
    /// Not a line of the report: something else wrote to the port.
    Stray(String),
    Done,
}

/// The tests of this module: silence must not count as success.
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
            "a_failure_comes_with_its_output",
            "b",
            Err("it ended with status 101 after 1.5 s\nassertion failed\nfigure: 7 s\n"),
        ),
        trial("a_hang_is_a_failure_that_says_so", "c", Err("it hung, and was killed after 60 s\nstuck\n")),
        trial(
            "a_test_that_ran_when_the_machine_ended_has_failed",
            "d",
            Err("it was running when the machine ended: it crashed"),
        ),
        trial("a_test_that_never_began_has_failed", "z", Err("it was never begun: it crashed")),
        Trial::test("report::figures_are_handed_on", move || {
            let expected =
                [Line::Up { seconds: "2.5".into(), release: "6.1.0".into() }, Line::Figure("7 s".into())];
            let (_, lines) = heard();
            if lines == expected { Ok(()) } else { Err(format!("{lines:?}").into()) }
        }),
    ]
}
