//! `wireloom-demo`, as a user runs it.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::LazyLock,
    time::Duration,
};

use wireloom_lab::{PATIENCE, become_root, finish, until};

use crate::{laboratory_program, wireloom};

/// The demo's program.
static DEMO: LazyLock<PathBuf> = LazyLock::new(|| laboratory_program("wireloom-demo"));

fn demo() -> Command {
    let mut command = Command::new(&*DEMO);
    command.stdin(Stdio::null());
    command
}

/// How long a demo may take before it counts as hanging.
const HANGS: Duration = Duration::from_secs(120);

/// Runs a program until it ends.
fn output(command: &mut Command) -> Output {
    let what = format!("{command:?}");
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(command.spawn().unwrap(), &what, HANGS).unwrap()
}

#[test]
fn the_demo_keeps_its_promises() {
    become_root().unwrap();
    let output = output(&mut demo());
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert_eq!(stdout.matches("\n     pod → pod     ✓ works  encrypted").count(), 3, "{stdout}");
    assert_eq!(stdout.matches('✗').count(), 4, "{stdout}");
    assert!(!stdout.contains('\u{1b}'), "colours only on a terminal");
}

#[test]
fn the_demo_runs_for_an_ordinary_user() {
    become_root().unwrap();
    // User 1000 of a user namespace, without any right over this one: as ordinary as can be had here.
    let mut command = Command::new("unshare");
    command.args(["--map-user=1000", "--map-group=1000", "--"]).arg(&*DEMO);
    let output = output(&mut command);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
}

#[test]
fn a_killed_demo_leaves_no_process_behind() {
    become_root().unwrap();
    let said = tempfile::NamedTempFile::new().unwrap();
    let stdout = File::options().append(true).open(&said).unwrap();
    let mut process = demo().stdout(stdout).spawn().unwrap();
    // By the end of the first matrix the second state is being built, with devices and agents running.
    until(HANGS, "the demo to print its first matrix", || {
        let ended = process.try_wait().unwrap();
        assert_eq!(ended, None, "the demo has ended");
        std::fs::read_to_string(&said).unwrap().contains("host → host").then_some(())
    })
    .unwrap();
    let children = descendants(process.id());
    assert!(children.len() >= 4, "{children:?}");
    process.kill().unwrap();
    process.wait().unwrap();
    for pid in children {
        until(PATIENCE, "the laboratory to go", || (!alive(pid)).then_some(())).unwrap();
    }
}

/// What the demo of link mode prints for each measurement, in its order.
const LINK_ROWS: [&str; 5] = [
    "prefixes that OSPF teaches the routers  all                 ✓ 12 of 12 in ",
    "hosts that reach each other             all, encrypted      ✓ 12 of 12 pairs          ✓ 12 of 12 pairs",
    "a router is killed: traffic moves       node-c → node-d     ✓ node-c → node-d         ✓ node-c → node-d",
    "  and was lost for                      under 5 s           ✓ ",
    "forged sources: dropped and counted     none arrives        ✓ 20 of 20, 0 arrived     ✓ 20 of 20, 0 arrived",
];

/// Whether the demo of link mode broke no promise but that of a short outage. BIRD notices a dead router by BFD within
/// a second, and loses living ones where it has no processor for as long: a busy machine may break that promise.
fn only_the_outage_was_long(output: &Output) -> bool {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let broken: Vec<_> = stderr.lines().filter(|line| line.contains(": should be \"")).collect();
    matches!(broken[..], [line] if line.trim_start().starts_with("and was lost for"))
}

#[test]
fn the_demo_of_link_mode_keeps_its_promises() {
    const TRIES: usize = 3;
    become_root().unwrap();
    let outputs = (0..TRIES).map(|_| output(demo().arg("link")));
    let output = outputs.enumerate().find(|(n, output)| n + 1 == TRIES || !only_the_outage_was_long(output));
    let (_, output) = output.expect("the last one");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    for row in LINK_ROWS {
        assert!(stdout.contains(row), "{row}\n{stdout}");
    }
    assert!(!stdout.contains('\u{1b}'), "colours only on a terminal");
}

#[test]
fn the_old_command_names_the_new_one() {
    let output = output(Command::new(wireloom()).args(["demo", "link", "--keep"]));
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("`wireloom-demo`") && stderr.contains("`scripts/demo`"), "{stderr}");
}

#[test]
fn without_bird_the_demo_of_link_mode_names_its_package() {
    let empty = tempfile::tempdir().unwrap();
    for program in ["ip", "nft", "unshare", "mount"] {
        std::fs::write(empty.path().join(program), "").unwrap();
    }
    // A program that is not in PATH is looked for where Debian keeps it. A mount hides it from this demo alone.
    become_root().unwrap();
    let script = "mount -t tmpfs tmpfs /usr/sbin && PATH=$1 exec $2 link";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(empty.path()).arg(&*DEMO);
    let output = output(&mut command);
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("`bird` is missing: install the Debian package `bird2`"), "{stderr}");
}

#[test]
fn with_keep_the_demo_leaves_a_link_to_look_at_and_take_down() {
    look_around(&["link", "--keep"], |look| {
        assert!(look("birdc show ospf neighbors").contains("Full/"));
        assert!(look("ip route").contains("10.161.2.0/24 via 100.64.0.2 dev wg0 proto bird"));
    });
}

#[test]
fn with_keep_the_demo_leaves_a_mesh_to_look_at_and_take_down() {
    look_around(&["--keep"], |look| {
        assert!(look("ip rule show pref 99").contains("not from all fwmark 0xa/0xa lookup 1"));
    });
}

/// A mesh or link that a demo has left up, by the processes that hold it. Dropping it takes it down, also when a test
/// fails.
struct Kept(Vec<u32>);

impl Kept {
    /// The processes are those that the demo names at its end.
    fn of(stdout: &str) -> Self {
        let takedown = stdout.lines().find(|line| line.trim().starts_with("kill -KILL"));
        let takedown = takedown.unwrap_or_else(|| panic!("the demo left nothing up:\n{stdout}"));
        Self(takedown.split_whitespace().skip(2).map(|pid| pid.parse().unwrap()).collect())
    }

    /// Takes it down as the demo says, and waits until it is gone.
    fn take_down(mut self) {
        let pids = std::mem::take(&mut self.0);
        assert!(kill(&pids));
        for pid in pids {
            until(PATIENCE, "the laboratory to go", || (!alive(pid)).then_some(())).unwrap();
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            kill(&self.0);
        }
    }
}

/// Kills these processes, and returns whether all of them existed.
fn kill(pids: &[u32]) -> bool {
    let status = Command::new("kill").arg("-KILL").args(pids.iter().map(ToString::to_string)).status();
    status.is_ok_and(|status| status.success())
}

/// Runs a demo with `--keep`, tries on `node-a` what its hints promise, then `check`, and takes it down.
fn look_around(arguments: &[&str], check: impl Fn(&dyn Fn(&str) -> String)) {
    become_root().unwrap();
    let output = output(demo().args(arguments));
    let stdout = String::from_utf8_lossy(&output.stdout);
    // A demo that breaks a promise stays up as well.
    let kept = Kept::of(&stdout);
    assert!(output.status.success() || only_the_outage_was_long(&output), "{stdout}");
    let enter = stdout.lines().find(|line| line.contains("# node-a")).unwrap();
    let enter: Vec<_> = enter.split('#').next().unwrap().split_whitespace().collect();
    let look = |words: &str| {
        let mut command = Command::new(enter[0]);
        let output = self::output(command.args(&enter[1..]).args(words.split_whitespace()));
        assert!(output.status.success(), "{words}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    // The commands of the hints, word for word.
    let hints = stdout.lines().skip_while(|line| !line.contains("and there:")).skip(1);
    for hint in hints.take_while(|line| line.starts_with("  ")) {
        let command = hint.split('#').next().unwrap().trim();
        if !command.starts_with("editor") {
            look(command);
        }
    }
    check(&look);
    kept.take_down();
}

fn alive(pid: u32) -> bool {
    // A process that has ended stays visible, as a zombie, until its parent waits for it.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
        && Path::new(&format!("/proc/{pid}")).exists()
}

/// The children of a process, their children, and so on.
fn descendants(of: u32) -> Vec<u32> {
    let parent = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let all: Vec<u32> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let descends =
        |pid: u32| std::iter::successors(Some(pid), |pid| parent(*pid)).skip(1).any(|pid| pid == of);
    all.into_iter().filter(|pid| descends(*pid)).collect()
}
