//! The functional tests on a kernel that has WireGuard: Debian's, booted in QEMU.
//!
//! The virtual machine's only file system is an initramfs of the program, the functional tests' own
//! executable and the tools that they use ([`initramfs`]). Its first process runs the tests (`guest/`),
//! each in a process of its own with a limit of time, and tells of them by a serial port ([`report`]);
//! here each is a test by the name `BACKEND::TEST`. A machine that falls silent is killed ([`machine`]).
//!
//! `scripts/test-vm` installs what they need (Debian's `qemu-system-x86`, `busybox-static`, `binutils` and
//! `kmod`, and what the functional tests need) and runs them, `--test-threads` of them at a time in a machine;
//! `scripts/vm-kernel` fetches the kernel, another one where `WIRELOOM_VM_KERNEL` says so.

mod executable;
mod initramfs;
mod machine;
mod report;

use std::{process::ExitCode, sync::Arc, thread};

use anyhow::Context as _;
use libtest_mimic::{Arguments, Trial};

use self::{initramfs::Image, machine::Job, report::Report};

/// How many tests run at the same time in a machine, when the arguments do not say: much of their time they
/// wait.
const PARALLEL: usize = 3;

/// How the agents of a machine carry packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    Kernel,
    Userspace,
}

impl Backend {
    const ALL: [Self; 2] = [Self::Kernel, Self::Userspace];

    /// As `agent.toml` has it.
    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }

    /// Link mode and our device by itself have nothing of this kernel's, and are tested outside. What has no
    /// agents, or agents with back ends of the test's choice, runs once.
    fn has(self, test: &str) -> bool {
        const OF_OUR_DEVICE: [&str; 6] =
            ["data_path::", "device::", "interop::wireguard_go::", "laboratory::", "link_", "threads::"];
        const OF_THE_KERNELS: [&str; 4] =
            ["interop::kernel::", "kernel_fleet::", "kernel_roundtrip::", "kernel_wireguard::"];
        let of_link_mode = test.starts_with("demo::") && test.contains("_link");
        let is_among = |modules: &[&str]| modules.iter().any(|module| test.starts_with(module));
        let elsewhere = match self {
            Self::Kernel => test.starts_with("agent::down_ends_a_device_that_hangs"),
            Self::Userspace => is_among(&OF_THE_KERNELS),
        };
        !is_among(&OF_OUR_DEVICE) && !of_link_mode && !elsewhere
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
    let mut names = executable::names(&executable).context("cannot list the functional tests")?;
    // In the order in which their results come.
    names.sort_by_key(|name| runs_alone(name));
    let mut trials = report::trials();
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
        // Two emulated processors that share a memory are slower than two that do not.
        let machines = runs.iter().filter(|run| !run.tests.is_empty()).count();
        let processors = if machines > 1 { 1 } else { 2 };
        thread::spawn(move || {
            let image = Image::build(&executable).map_err(|error| format!("{error:#}"));
            thread::scope(|scope| {
                for run in &runs {
                    let image = image.as_ref();
                    scope.spawn(move || {
                        let end = match image {
                            Ok(image) => boot(image, run, processors, parallel),
                            Err(error) => error.clone(),
                        };
                        run.report.close(end);
                    });
                }
            });
        });
    }
    Ok(libtest_mimic::run(&arguments, trials).exit_code())
}

/// The kernel's WireGuard counts handshakes of all namespaces together, so that whoever floods one interface
/// makes all of them demand cookies (`last_under_load` in drivers/net/wireguard/receive.c).
fn runs_alone(test: &str) -> bool {
    test.contains("under_load")
}

/// How it ended.
fn boot(image: &Image, run: &Run, processors: usize, parallel: usize) -> String {
    if run.tests.is_empty() {
        return "no test was chosen".into();
    }
    let job = Job { backend: run.backend.name(), tests: &run.tests, processors, parallel };
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
