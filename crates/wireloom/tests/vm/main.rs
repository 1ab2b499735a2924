//! The functional tests on a kernel that has WireGuard: Debian's, booted in QEMU.
//!
//! The virtual machine's only file system is an initramfs of the program, the functional tests' own
//! executable and the tools that they use ([`initramfs`]). Its first process runs the tests (`guest/`),
//! each in a process of its own with a limit of time, and tells of them by a serial port ([`report`]);
//! here each is a test by the name `BACKEND::TEST`. A machine that falls silent is killed ([`machine`]).
//!
//! `cargo test --features vm --test vm` runs them, `--test-threads` of them at a time inside. They need
//! Debian's `qemu-system-x86`, `busybox-static`, `binutils` and `kmod`, and what the functional tests
//! need; `scripts/vm-kernel` fetches the kernel.

mod executable;
mod initramfs;
mod machine;
mod report;

use std::{process::ExitCode, sync::Arc, thread};

use anyhow::Context as _;
use libtest_mimic::{Arguments, Trial};

use self::{initramfs::Image, machine::Job, report::Report};

/// How many tests run at the same time, when the arguments do not say.
const PARALLEL: usize = 4;

/// How the agents of a machine carry packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    Userspace,
}

impl Backend {
    const ALL: [Self; 1] = [Self::Userspace];

    /// As `agent.toml` has it.
    fn name(self) -> &'static str {
        match self {
            Self::Userspace => "userspace",
        }
    }

    /// Link mode needs the userspace engine, and is tested outside. What has nothing to do with the
    /// agents' back end runs once.
    fn has(self, test: &str) -> bool {
        !test.contains("link")
    }
}

/// The tests of one machine.
struct Run {
    backend: Backend,
    tests: Vec<String>,
    report: Report,
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    match test(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn test(mut arguments: Arguments) -> anyhow::Result<ExitCode> {
    let executable = executable::functional_tests().context("cannot build the functional tests")?;
    let names = executable::names(&executable).context("cannot list the functional tests")?;
    let mut trials = Vec::new();
    let mut runs = Vec::new();
    for backend in Backend::ALL {
        let names: Vec<_> = names.iter().filter(|name| backend.has(name)).collect();
        let title = |name: &str| format!("{}::{name}", backend.name());
        let chosen = names.iter().filter(|name| is_chosen(&arguments, &title(name)));
        let tests = chosen.map(|name| String::clone(name)).collect();
        let run = Arc::new(Run { backend, tests, report: Report::default() });
        trials.extend(names.iter().map(|name| {
            let (run, name) = (Arc::clone(&run), String::clone(name));
            Trial::test(title(&name), move || Ok(run.report.result_of(&name)?))
        }));
        runs.push(run);
    }
    let parallel = arguments.test_threads.replace(1).unwrap_or(PARALLEL);
    if !arguments.list {
        thread::spawn(move || {
            let image = Image::build(&executable).map_err(|error| format!("{error:#}"));
            for run in runs {
                let end = match &image {
                    Ok(image) => boot(image, &run, parallel),
                    Err(error) => error.clone(),
                };
                run.report.close(end);
            }
        });
    }
    Ok(libtest_mimic::run(&arguments, trials).exit_code())
}

/// How it ended.
fn boot(image: &Image, run: &Run, parallel: usize) -> String {
    if run.tests.is_empty() {
        return "no test was chosen".into();
    }
    let job = Job { backend: run.backend.name(), tests: &run.tests, parallel };
    match machine::run(image, &job, &run.report) {
        Ok(()) => "the machine was done".into(),
        Err(error) => format!("{error:#}"),
    }
}

/// As libtest-mimic will choose, so that the machine runs nothing for nobody.
fn is_chosen(arguments: &Arguments, title: &str) -> bool {
    let matches = |filter: &String| if arguments.exact { title == filter } else { title.contains(filter) };
    arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
}
