//! The virtual machine's kernel and its whole file system: an archive that the kernel unpacks into
//! memory (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{
    collections::BTreeSet,
    env,
    fs::{self, File},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};

use super::machine::Job;

/// Programs that the tests run, and those that Debian's scripts among them run, with their packages. Busybox has the
/// rest.
const TOOLS: &[(&str, &str)] = &[
    ("bash", "bash"),
    ("basename", "coreutils"),
    ("cat", "coreutils"),
    ("chmod", "coreutils"),
    ("env", "coreutils"),
    ("ls", "coreutils"),
    ("sleep", "coreutils"),
    ("sort", "coreutils"),
    ("stat", "coreutils"),
    ("timeout", "coreutils"),
    ("true", "coreutils"),
    ("sh", "dash"),
    ("ethtool", "ethtool"),
    ("bridge", "iproute2"),
    ("ip", "iproute2"),
    ("nstat", "iproute2"),
    ("ss", "iproute2"),
    ("tc", "iproute2"),
    ("ping", "iputils-ping"),
    ("modprobe", "kmod"),
    ("mount", "mount"),
    ("nft", "nftables"),
    ("kill", "procps"),
    ("pgrep", "procps"),
    ("ps", "procps"),
    ("sysctl", "procps"),
    ("tcpdump", "tcpdump"),
    ("flock", "util-linux"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("taskset", "util-linux"),
    ("unshare", "util-linux"),
    ("wg", "wireguard-tools"),
];

/// Parts of the module tree that network tests can ask for.
const MODULES: &[&str] = &[
    "arch/x86/crypto",
    "crypto",
    "drivers/net/dummy.ko",
    "drivers/net/tun.ko",
    "drivers/net/veth.ko",
    "drivers/net/vxlan",
    "drivers/net/wireguard",
    "lib",
    "net/802",
    "net/bridge",
    "net/core",
    "net/ipv4",
    "net/ipv6",
    "net/llc",
    "net/netfilter",
    "net/packet",
    "net/sched",
];

const FILES: &[&str] = &["/etc/passwd", "/etc/group", "/etc/protocols", "/etc/services", "/etc/iproute2"];

/// The first process, and the script that it runs for each test.
const SCRIPTS: [(&str, &str); 2] =
    [("init", include_str!("guest/init.sh")), ("run-test", include_str!("guest/run-test.sh"))];

/// What QEMU boots.
pub(crate) struct Image {
    pub(crate) kernel: PathBuf,
    initramfs: PathBuf,
}

impl Image {
    /// Builds it from the present program.
    pub(crate) fn build(tests: &Path) -> anyhow::Result<Self> {
        let work = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm");
        let package = work.join("kernel");
        run(Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/vm-kernel")).arg(&package))
            .context("cannot fetch the kernel")?;
        let root = work.join("root");
        make_directories(&root)?;
        add_programs(&root, tests)?;
        for file in FILES.iter().map(Path::new).filter(|file| file.exists()) {
            run(Command::new("cp").arg("-rL").arg(file).arg(root.join("etc")))?;
        }
        for (name, script) in SCRIPTS {
            fs::write(root.join(name), script)?;
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755))?;
        }
        let kernel = add_modules(&root, &package)?;
        let initramfs = work.join("initramfs");
        pack(&root, File::create(&initramfs)?)?;
        Ok(Self { kernel, initramfs })
    }

    /// The file system with the lists of a machine's tests, as a second archive: the kernel unpacks one after the
    /// other.
    pub(crate) fn with_tests(&self, job: &Job<'_>) -> anyhow::Result<PathBuf> {
        let place =
            |extension| self.initramfs.with_file_name(job.name.replace(' ', "-")).with_extension(extension);
        let lists = place("lists");
        recreate(&lists)?;
        let (alone, together): (Vec<_>, Vec<_>) = job.tests.iter().partition(|test| test.runs_alone());
        for (name, tests) in [("alone", alone), ("together", together)] {
            let lines = tests.iter().map(|test| format!("{} {}\n", test.backend.name(), test.name));
            fs::write(lists.join(name), lines.collect::<String>())?;
        }
        let whole = place("initramfs");
        fs::copy(&self.initramfs, &whole)?;
        pack(&lists, File::options().append(true).open(&whole)?)?;
        Ok(whole)
    }
}

/// The path of a program, where a root shell would find it.
pub(crate) fn tool(program: &str, debian_package: &str) -> anyhow::Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let administrators = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut candidates = env::split_paths(&path).chain(administrators).map(|place| place.join(program));
    candidates
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("{program} is missing: install the Debian package `{debian_package}`"))
}

/// Makes the directories as Debian has them: every path to a program or a library works in the machine as well.
fn make_directories(root: &Path) -> anyhow::Result<()> {
    recreate(root)?;
    for directory in ["dev", "etc", "proc", "run", "sys", "tmp", "usr/bin", "usr/lib", "var/lib"] {
        fs::create_dir_all(root.join(directory))?;
    }
    for (link, target) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/bin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib"),
        ("usr/sbin", "bin"),
        ("usr/lib64", "lib"),
        ("var/run", "../run"),
    ] {
        symlink(target, root.join(link))?;
    }
    Ok(())
}

/// Adds programs with the libraries that they need.
fn add_programs(root: &Path, tests: &Path) -> anyhow::Result<()> {
    let mut libraries = BTreeSet::new();
    for (program, debian_package) in TOOLS {
        let found = tool(program, debian_package)?;
        copy(&found, &root.join("usr/bin").join(program))?;
        libraries.extend(libraries_of(&found)?);
    }
    copy(&tool("busybox", "busybox-static")?, &root.join("usr/bin/busybox"))?;
    let strip = tool("strip", "binutils")?;
    // The tests know `wireloom` by the path at which it was built.
    let wireloom = Path::new(env!("CARGO_BIN_EXE_wireloom"));
    for (program, place) in [(tests, Path::new("/functional")), (wireloom, wireloom)] {
        let place = root.join(place.strip_prefix("/").unwrap_or(place));
        copy(program, &place)?;
        // Nine tenths of the file are for debuggers.
        run(Command::new(&strip).arg(&place))?;
        libraries.extend(libraries_of(program)?);
    }
    for library in libraries {
        let name = library.file_name().context("a library without a name")?;
        copy(&library, &root.join("usr/lib").join(name))?;
    }
    Ok(())
}

/// The libraries that the dynamic linker would load, and itself. A script has none.
fn libraries_of(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(|path| path.trim_end_matches(':').into()).collect())
}

/// Adds the kernel's modules, and returns the path of the kernel.
fn add_modules(root: &Path, package: &Path) -> anyhow::Result<PathBuf> {
    let trees = package.join("modules");
    let release = fs::read_dir(&trees)?.next().context("the package has no modules")??.file_name();
    let from = trees.join(&release);
    let to = root.join("usr/lib/modules").join(&release);
    for part in MODULES.iter().map(|part| Path::new("kernel").join(part)) {
        let place = to.join(&part);
        let parent = place.parent().context("a part without a parent")?;
        fs::create_dir_all(parent)?;
        // Debian compresses modules since Linux 6.6. There is no module of what is built in.
        let compressed = part.with_extension("ko.xz");
        if let Some(part) = [&part, &compressed].into_iter().find(|part| from.join(part).exists()) {
            run(Command::new("cp").arg("-r").arg(from.join(part)).arg(parent))?;
        }
    }
    for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        fs::copy(from.join(list), to.join(list))?;
    }
    run(Command::new(tool("depmod", "kmod")?).arg("-b").arg(root.join("usr")).arg(&release))?;
    Ok(package.join("vmlinuz"))
}

/// Writes an archive in the format "newc" of cpio(1).
fn pack(directory: &Path, archive: File) -> anyhow::Result<()> {
    let mut list = Command::new("find").arg(".").current_dir(directory).stdout(Stdio::piped()).spawn()?;
    let names = list.stdout.take().context("find has no output")?;
    let busybox = tool("busybox", "busybox-static")?;
    let mut cpio = Command::new(busybox);
    run(cpio.args(["cpio", "-o", "-H", "newc"]).current_dir(directory).stdin(names).stdout(archive))?;
    ensure!(list.wait()?.success(), "find failed");
    Ok(())
}

fn recreate(directory: &Path) -> std::io::Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    fs::create_dir_all(directory)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stderr(Stdio::piped()).spawn()?.wait_with_output()?;
    if !output.status.success() {
        let program = command.get_program().display();
        bail!("{program} ended ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
