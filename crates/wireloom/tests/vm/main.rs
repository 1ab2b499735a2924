//! The functional tests on a kernel that has WireGuard: Debian's, booted in QEMU.
//!
//! The virtual machine's only file system is an initramfs with the program, the executable of the functional tests
//! and the tools that they use ([`initramfs`]). Its first process (`guest/`) runs each test in a process of its own,
//! with a time limit, and reports by a serial port ([`report`]). Here each is a test named `BACKEND::TEST`. A machine
//! that falls silent is killed ([`machine`]).
//!
//! `scripts/test-vm` installs what they need (Debian's `qemu-system-x86`, `busybox-static`, `binutils` and `kmod`, and
//! what the functional tests need) and runs them, in each machine `--test-threads` of them at a time.
//! `scripts/vm-kernel` fetches the kernel; `WIRELOOM_VM_KERNEL` names another one.

mod executable;
mod initramfs;
mod machine;
mod report;

use std::{process::ExitCode, sync::Arc, thread};

use anyhow::{Context as _, bail};
use libtest_mimic::{Arguments, Trial};

use self::{initramfs::Image, machine::Job, report::Report};

/// How many tests run at the same time in a machine unless the arguments say otherwise: tests wait most of the time.
const PARALLEL: usize = 3;

/// How many machines share the tests, each with one processor.
const MACHINES: usize = 2;

/// The back end of a test's agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    Kernel,
    Userspace,
}

impl Backend {
    const ALL: [Self; 2] = [Self::Kernel, Self::Userspace];

    /// Its name in `agent.toml`.
    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }

    /// How the names begin of the tests that run with this back end: what this kernel or this back end may do
    /// differently from what the host has shown. The emulated machine is many times slower than the host, so what
    /// differs is shown once.
    fn tests(self) -> &'static [&'static str] {
        /// What programs the kernel's WireGuard, or reads from it: a way of doing that, or a value of it, that no
        /// other test here has. Not what only rules, routes, firewall, sysctls or files decide, which do not know the
        /// back end: the guard, upgrades, interfaces that come late, the demo.
        const KERNEL: [&str; 20] = [
            // Endpoints and sockets of the other family.
            "agent::matrix::both_modes_work_over_an_ipv6_underlay",
            // The mark of its datagrams, which the guard and source validation judge.
            "agent::host_mode::a_node_that_lost_its_key",
            "agent::matrix::host_mode_works_with_strict_source_validation_everywhere",
            "agent::matrix::scoped_mode_encrypts_pod_to_pod_and_nothing_else",
            // Allowed-IPs that move, peers and keys that change or go, endpoints that roam.
            "agent::membership::a_borrowed_address",
            "agent::membership::a_changed_key",
            "agent::membership::a_removed_node",
            "agent::preshared::",
            "agent::upkeep::a_new_endpoint_in_the_mesh_file",
            "agent::upkeep::a_new_private_key",
            "agent::upkeep::a_running_agent_takes_every_setting",
            // The times of its handshakes, its counters.
            "agent::proofs::rollout::half_a_fleet_is_in_plaintext_and_becomes_encrypted_without_losing_a_packet",
            "agent::reports::status_shows_mode_peers_and_rules_and_no_private_key",
            // Its interface: found again, made with a peer's last endpoint, removed.
            "agent::restart::a_new_device_greets",
            "agent::restart::a_restarted_agent_catches_up",
            "agent::restart::down_leaves_the_machine_as_it_was",
            "agent::trouble::a_port_in_use",
            // The choice of the back end, and its size.
            "kernel::backend::",
            "kernel::fleets::",
            // That it is left alone when agents come and go.
            "kernel::instances::",
        ];
        /// How the engine meets this version of the kernel, and the kernel's WireGuard; and how this version takes
        /// rules, routes and firewall. Not what agent and device do when one of them dies: the host shows that.
        const USERSPACE: [&str; 7] = [
            "agent::matrix::host_mode_encrypts_all_four_directions",
            "agent::matrix::scoped_mode_encrypts_pod_to_pod_and_nothing_else",
            // Routes into an interface without a reader.
            "agent::survival::down_removes_an_interface_that_outlived_its_device",
            "interop::kernel::",
            "kernel::machine::",
            "kernel::roundtrip::",
            "kernel::twin::",
        ];
        match self {
            Self::Kernel => &KERNEL,
            Self::Userspace => &USERSPACE,
        }
    }

    /// Those of the functional tests that run with this back end. A test that was renamed must not go missing.
    fn choose(self, names: &[String]) -> anyhow::Result<Vec<Test>> {
        let begins = |name: &String, start: &&str| name.starts_with(*start);
        if let Some(start) = self.tests().iter().find(|start| !names.iter().any(|name| begins(name, start))) {
            bail!("no functional test begins with {start}: fix the list of {self:?} in tests/vm/main.rs");
        }
        let is_here = |name: &&String| self.tests().iter().any(|start| begins(name, start));
        Ok(names.iter().filter(is_here).map(|name| Test { backend: self, name: name.clone() }).collect())
    }
}

/// A test with a back end.
#[derive(Debug, Clone)]
struct Test {
    backend: Backend,
    name: String,
}

impl Test {
    /// The name of the trial, and of the test in the report.
    fn title(&self) -> String {
        format!("{}::{}", self.backend.name(), self.name)
    }

    /// Whether it must not run beside others.
    ///
    /// - The kernel's WireGuard counts the handshakes of all namespaces together: a flood of one interface makes all of
    ///   them demand cookies (`last_under_load` in drivers/net/wireguard/receive.c).
    /// - Between two steps of a hand-over, a device has milliseconds. An emulated machine that programs thousands of
    ///   peers beside it was late again and again.
    fn runs_alone(&self) -> bool {
        self.name.contains("under_load") || self.name.contains("hands_over")
    }
}

/// A machine with its tests.
#[derive(Default)]
struct Run {
    tests: Vec<Test>,
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
    let [kernel, userspace] = Backend::ALL.map(|backend| backend.choose(&names));
    let mut tests = [kernel?, userspace?].concat();
    // About the order in which the results come: those that take minutes, the agent's, are first.
    tests.sort_by_key(|test| (test.runs_alone(), test.name.clone()));
    let (chosen, others): (Vec<_>, Vec<_>) =
        tests.into_iter().partition(|test| is_chosen(&arguments, &test.title()));
    // Two emulated processors that share a memory are slower than two machines with one each.
    let count = chosen.len().clamp(1, MACHINES);
    let mut runs: Vec<_> = (0..count).map(|_| Run::default()).collect();
    for (place, test) in chosen.into_iter().enumerate() {
        runs[place % count].tests.push(test);
    }
    let runs: Vec<_> = runs.into_iter().map(Arc::new).collect();
    let mut trials = report::trials();
    // One from each machine in turn, as they were dealt out.
    let longest = runs.iter().map(|run| run.tests.len()).max().unwrap_or(0);
    for place in 0..longest {
        for run in &runs {
            if let Some(test) = run.tests.get(place) {
                let (run, title) = (Arc::clone(run), test.title());
                trials.push(Trial::test(test.title(), move || Ok(run.report.result_of(&title)?)));
            }
        }
    }
    // For the list, and the count of those that were filtered out.
    trials.extend(others.iter().map(|test| Trial::test(test.title(), || Err("it was not chosen".into()))));
    let parallel = arguments.test_threads.replace(1).unwrap_or(PARALLEL);
    if !arguments.list && !runs[0].tests.is_empty() {
        thread::spawn(move || {
            let _panicked: Vec<_> = runs.iter().map(|run| CloseOnDrop(&run.report)).collect();
            let image = Image::build(&executable).map_err(|error| format!("{error:#}"));
            thread::scope(|scope| {
                for (run, name) in runs.iter().zip(["first machine", "second machine"]) {
                    let job = Job { name, tests: &run.tests, processors: MACHINES / count, parallel };
                    let image = image.as_ref();
                    scope.spawn(move || {
                        let end = match image {
                            Ok(image) => boot(image, &job, &run.report),
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

/// Ends the wait for a report that will not come because the thread that should have closed it panicked.
struct CloseOnDrop<'a>(&'a Report);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close("the machine's thread panicked".into());
    }
}

/// Runs the tests of one machine. Returns how it ended.
fn boot(image: &Image, job: &Job<'_>, report: &Report) -> String {
    match machine::run(image, job, report) {
        Ok(()) => "the machine was done".into(),
        Err(error) => format!("{error:#}"),
    }
}

/// Whether libtest-mimic will choose this test: the machine must not run tests that nobody asks for.
fn is_chosen(arguments: &Arguments, title: &str) -> bool {
    let matches = |filter: &String| if arguments.exact { title == filter } else { title.contains(filter) };
    arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
}
