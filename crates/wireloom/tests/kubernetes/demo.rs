//! `wireloom-demo kubernetes`, as a user runs it.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::LazyLock,
    time::Duration,
};

use tempfile::TempDir;
use wireloom_lab::{PATIENCE, finish, until};

use crate::fixtures::{WORKLOAD, image, laboratory_program};

static DEMO: LazyLock<PathBuf> = LazyLock::new(|| {
    // The demo runs it, beside its own program.
    LazyLock::force(&WORKLOAD);
    laboratory_program("wireloom-demo")
});

/// Wireloom's image, under the name that `deploy/image/build` gives it by itself.
static IMAGE: LazyLock<PathBuf> = LazyLock::new(|| image(env!("CARGO_PKG_VERSION")));

/// How long a demo may take before it counts as hanging.
const HANGS: Duration = Duration::from_secs(240);

/// A demo that was started. Dropping it ends it, and what it has left up, also when a test fails.
struct Demo {
    /// Its directory for temporary files.
    temporary: TempDir,
    process: Child,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let temporary = TempDir::with_prefix("wireloom-demo-").unwrap();
        let mut command = Command::new(&*DEMO);
        command.arg("kubernetes").args(arguments).arg("--image").arg(&*IMAGE);
        command.env("TMPDIR", temporary.path()).env(MARKER, temporary.path());
        command.stdin(Stdio::null()).stdout(File::create(said(&temporary)).unwrap()).stderr(Stdio::piped());
        // As a shell starts it: Ctrl-C reaches this process group.
        let process = command.process_group(0).spawn().unwrap();
        Self { temporary, process }
    }

    /// What it has printed.
    fn said(&self) -> String {
        fs::read_to_string(said(&self.temporary)).unwrap()
    }

    /// The command that ends what the demo leaves up; `None` when it leaves nothing.
    fn end(&self) -> Option<String> {
        self.said().lines().find(|line| line.trim().starts_with("kill -KILL")).map(str::to_owned)
    }

    /// Waits until the demo has got somewhere.
    fn until<T>(&mut self, what: &str, mut condition: impl FnMut(&Self) -> Option<T>) -> T {
        until(HANGS, what, || {
            assert_eq!(self.process.try_wait().unwrap(), None, "the demo has ended:\n{}", self.said());
            condition(self)
        })
        .unwrap()
    }

    /// The name of its cluster, which its directory and its control groups have; `None` as long as there is none.
    fn cluster(&self) -> Option<String> {
        let names = names(self.temporary.path());
        names.into_iter().find(|name| name.starts_with("wireloom-cluster-"))
    }

    /// What there is of it on this machine, a line for each thing.
    fn traces(&self, cluster: &str) -> Vec<String> {
        let processes = names("/proc").into_iter().filter_map(|process| {
            let process = Path::new("/proc").join(process);
            let environment = fs::read(process.join("environ")).ok()?;
            let marker = format!("{MARKER}={}", self.temporary.path().display());
            let is_marked =
                environment.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes());
            let line = is_marked.then(|| fs::read(process.join("cmdline")).ok())??;
            Some(format!("process {}: {}", process.display(), String::from_utf8_lossy(&line)))
        });
        // Version 1 has a directory for each hierarchy, version 2 is the directory itself.
        let hierarchies = names("/sys/fs/cgroup").into_iter().chain([".".to_owned()]);
        let groups = hierarchies.flat_map(|hierarchy| names(Path::new("/sys/fs/cgroup").join(hierarchy)));
        let groups =
            groups.filter(|group| group.starts_with(cluster)).map(|group| format!("control group {group}"));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts =
            mounts.lines().filter(|mount| mount.contains(cluster)).map(|mount| format!("mount {mount}"));
        let files = names(self.temporary.path()).into_iter().filter(|name| name != SAID);
        let files = files.map(|name| format!("file {name}"));
        processes.chain(groups).chain(mounts).chain(files).collect()
    }

    /// Waits until nothing is left.
    fn wait_for_the_end(&self, cluster: &str) {
        let mut left = Vec::new();
        let gone = until(2 * PATIENCE, "the cluster to go", || {
            left = self.traces(cluster);
            left.is_empty().then_some(())
        });
        assert!(gone.is_ok(), "{}", left.join("\n"));
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(end) = self.end() {
            let _ = Command::new("sh").args(["-c", &end]).stderr(Stdio::null()).status();
        }
    }
}

/// A variable in the environment of all its processes, with the path of its directory.
const MARKER: &str = "WIRELOOM_DEMO_UNDER_TEST";

/// The name of the file that the demo's output goes to, in its directory.
const SAID: &str = "said";

fn said(temporary: &TempDir) -> PathBuf {
    temporary.path().join(SAID)
}

/// The names in a directory; none when it is no directory.
fn names(directory: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn with_keep_the_demo_leaves_a_cluster_to_look_at_and_take_down() {
    let mut demo = Demo::start(&["--keep"]);
    let cluster = demo.until("a cluster", Demo::cluster);
    // Also what stays up lets go of the demo's output.
    let status = until(HANGS, "the demo to end", || demo.process.try_wait().unwrap()).unwrap();
    let mut stderr = String::new();
    std::io::Read::read_to_string(demo.process.stderr.as_mut().unwrap(), &mut stderr).unwrap();
    let said = demo.said();
    assert!(status.success(), "{said}\n{stderr}");
    assert_eq!(said.matches("\n  pod → pod on another node ").count(), 2, "{said}");
    assert!(said.contains(", 0 from pod to pod in plaintext"), "{said}");
    assert!(!said.contains('\u{1b}'), "colours only on a terminal");

    let shell = |line: &str| {
        let mut command = Command::new("bash");
        command.args(["-c", line]).current_dir(demo.temporary.path()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let run = |line: &str| {
        let output = finish(shell(line), line, PATIENCE).unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let kubectl = said.lines().find(|line| line.contains("kubectl() {")).unwrap();
    let answers: Vec<_> =
        hints(&said, "and with it:").map(|hint| run(&format!("{kubectl}\n{hint}"))).collect();
    let is_mode = |line: &str| line.starts_with("mode:") && line.contains(" scoped");
    assert!(answers.concat().lines().any(is_mode), "{answers:?}");
    let enter = hints(&said, "To look around on a node:").next().unwrap();
    let (watching, looking): (Vec<_>, Vec<_>) =
        hints(&said, "and there:").partition(|hint| hint.starts_with("tcpdump"));
    // It ends when it has seen the pings of the other commands.
    let mut watching = shell(&format!("{enter} {}", watching[0]));
    let mut answers = String::new();
    until(2 * PATIENCE, "tcpdump to see pings", || {
        answers.extend(looking.iter().map(|hint| run(&format!("{enter} {hint}"))));
        watching.try_wait().unwrap()
    })
    .unwrap();
    assert!(answers.contains("from 10.161.0.0/16 fwmark 0/0xa lookup 15700"), "{answers}");
    let Output { stdout, .. } = watching.wait_with_output().unwrap();
    let stdout = String::from_utf8(stdout).unwrap();
    assert_eq!(stdout.matches(".51820: UDP, length").count(), 6, "{stdout}");

    run(&demo.end().unwrap());
    demo.wait_for_the_end(&cluster);
}

/// The commands that the demo prints below a title, word for word.
fn hints<'a>(said: &'a str, title: &str) -> impl Iterator<Item = &'a str> {
    let lines = said.lines().skip_while(move |line| *line != title).skip(1);
    let lines = lines.take_while(|line| line.starts_with("  "));
    lines.map(|line| line.split('#').next().unwrap().trim())
}

/// Ends a demo as soon as it has left this trace, and waits until nothing of it is left.
fn end_at(trace: &str, end: impl FnOnce(&mut Child)) {
    let mut demo = Demo::start(&[]);
    let cluster = demo.until(trace, |demo| {
        let cluster = demo.cluster()?;
        demo.traces(&cluster).iter().any(|line| line.contains(trace)).then_some(cluster)
    });
    end(&mut demo.process);
    demo.process.wait().unwrap();
    demo.wait_for_the_end(&cluster);
}

#[test]
fn a_killed_demo_leaves_nothing_behind() {
    // While it makes an image, and while pods start.
    for trace in ["deploy/image/pack", "containerd-shim"] {
        end_at(trace, |demo| demo.kill().unwrap());
    }
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    // While the first node starts. Ctrl-C goes to the whole process group.
    end_at("control group", |demo| {
        let group = format!("-{}", demo.id());
        assert!(Command::new("kill").args(["-INT", "--", &group]).status().unwrap().success());
    });
}

#[test]
fn an_ordinary_user_is_told_to_be_root() {
    // User 1000 of a user namespace, without any right over this one: as ordinary as can be had here.
    let mut command = Command::new("unshare");
    command.args(["--map-user=1000", "--map-group=1000", "--"]).arg(&*DEMO);
    let output = command.args(["kubernetes", "--image"]).arg(&*IMAGE).output().unwrap();
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("needs root of the machine") && stderr.contains("run it with sudo"), "{stderr}");
}
