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

use anyhow::Context as _;
use libtest_mimic::{Arguments, Trial};

use self::{initramfs::Image, machine::Job, report::Report};

/// How many tests run at the same time in a machine unless the arguments say otherwise: tests wait most of the time.
const PARALLEL: usize = 3;

/// The back end of the agents in a machine.
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

    /// Whether a test runs in the machine of this back end: what this kernel or this back end may do differently from
    /// what the host has shown. The emulated machine is many times slower than the host, so what differs is shown once,
    /// and both machines have about as much to do.
    fn has(self, test: &str) -> bool {
        /// What programs the kernel's WireGuard, or asks it. Of the guard and of proofs, which take minutes here, one
        /// test each; of rules and routes, which do not know the back end, and of the agent's files and messages, none.
        const KERNEL: [&str; 29] = [
            "agent::guard::routing::changes_of_rules_and_routes_leak_nothing_in_scoped_mode",
            "agent::host_mode::a_node_that_lost_its_key",
            "agent::matrix::both_modes_work_over_an_ipv6_underlay",
            "agent::matrix::host_mode_encrypts_all_four_directions",
            "agent::matrix::host_mode_works_with_strict_source_validation_everywhere",
            "agent::matrix::nothing_between_pods_is_readable_on_the_underlay",
            "agent::matrix::scoped_mode_encrypts_pod_to_pod_and_nothing_else",
            "agent::membership::a_borrowed_address",
            "agent::membership::a_changed_",
            "agent::membership::a_removed_node",
            "agent::preshared::",
            "agent::proofs::rollout::half_a_fleet_is_in_plaintext_and_becomes_encrypted_without_losing_a_packet",
            "agent::reports::status_shows_mode_peers_and_rules_and_no_private_key",
            "agent::restart::a_deleted_interface_is_made_again",
            "agent::restart::a_new_device_greets",
            "agent::restart::a_restarted_agent_catches_up",
            "agent::restart::an_agent_that_is_killed_leaves_the_data_path_up_in_host_mode",
            "agent::restart::down_leaves_the_machine_as_it_was",
            "agent::trouble::a_port_in_use",
            "agent::upgrade::the_scoped_rule_comes_before_the_unscoped_one_goes",
            "agent::upkeep::a_new_endpoint_in_the_mesh_file",
            "agent::upkeep::a_new_private_key",
            "agent::upkeep::a_node_with_ipv6_turned_off",
            "agent::upkeep::a_running_agent_takes_every_setting",
            "agent::upkeep::an_interface_that_comes_up_late",
            "agent::upkeep::whatever_others_break_is_repaired",
            "demo::the_demo_keeps_its_promises",
            "kernel::backend::",
            "kernel::fleets::",
        ];
        /// How the engine meets another version of the kernel, and the kernel's WireGuard; and how this version takes
        /// rules, routes and firewall.
        const USERSPACE: [&str; 10] = [
            "agent::matrix::host_mode_encrypts_all_four_directions",
            "agent::matrix::scoped_mode_encrypts_pod_to_pod_and_nothing_else",
            "agent::matrix::scoped_mode_works_with_strict_source_validation_everywhere",
            "agent::restart::an_agent_that_is_killed_leaves_the_data_path_up",
            "agent::restart::down_leaves_the_machine_as_it_was",
            "agent::survival::",
            "interop::kernel::",
            "kernel::machine::",
            "kernel::roundtrip::",
            "kernel::twin::",
        ];
        let is_in = |tests: &[&str]| tests.iter().any(|start| test.starts_with(start));
        match self {
            Self::Kernel => is_in(&KERNEL),
            Self::Userspace => is_in(&USERSPACE),
        }
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
    // In the order in which the results come.
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
        // Two emulated processors that share a memory are slower than two machines with one each.
        let machines = runs.iter().filter(|run| !run.tests.is_empty()).count();
        let processors = if machines > 1 { 1 } else { 2 };
        thread::spawn(move || {
            let _panicked: Vec<_> = runs.iter().map(|run| CloseOnDrop(&run.report)).collect();
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

/// Ends the wait for a report that will not come because the thread that should have closed it panicked.
struct CloseOnDrop<'a>(&'a Report);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close("the machine's thread panicked".into());
    }
}

/// Whether a test must not run beside others. The kernel's WireGuard counts the handshakes of all namespaces together:
/// a flood of one interface makes all of them demand cookies (`last_under_load` in
/// drivers/net/wireguard/receive.c).
fn runs_alone(test: &str) -> bool {
    test.contains("under_load")
}

/// Runs the tests of one machine. Returns how it ended.
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

/// Whether libtest-mimic will choose this test: the machine must not run tests that nobody asks for.
fn is_chosen(arguments: &Arguments, title: &str) -> bool {
    let matches = |filter: &String| if arguments.exact { title == filter } else { title.contains(filter) };
    arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
}
