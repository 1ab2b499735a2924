//! `wireloom boot-guard`: the systemd unit that loads the last guard while a machine boots.

use std::{
    fs::{self, Permissions},
    io::{self, ErrorKind},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use owo_colors::OwoColorize;
use wireloom_kernel::state::{StateDir, read_file, remove_written, write_atomically};

/// Install or remove the systemd unit that loads the last guard while the machine boots
///
/// The agent saves its guard in the state directory. Until the agent runs again after a boot, nothing else keeps the
/// traffic of workloads from leaving in plaintext.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Write the unit and enable it, as `systemctl enable` does; systemctl is not needed
    ///
    /// systemd reads it at the next boot, or with `systemctl daemon-reload`. A unit that is masked stays masked.
    Install {
        #[command(flatten)]
        host: Host,
        /// Only warn when the host cannot have the unit: without nft, without systemd, with a read-only /etc
        #[arg(long)]
        if_possible: bool,
    },
    /// Disable and remove the unit; `wireloom down` does it too, with the root directory /
    Remove {
        #[command(flatten)]
        host: Host,
    },
}

#[derive(Debug, clap::Args)]
struct Host {
    /// Where the host's root directory is, for a container that has mounted it
    #[arg(long = "root", value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// The unit, for the default state directory.
const UNIT: &str = include_str!("../../../../deploy/systemd/wireloom-guard.service");

/// What the unit calls the state directory and nft.
const STATE: &str = "/var/lib/wireloom";
const NFT: &str = "/usr/sbin/nft";

/// The unit's name.
const NAME: &str = "wireloom-guard.service";

/// How a unit begins that is ours to change and to remove.
const MARKER: &str = "# Managed by `wireloom boot-guard`";

/// Where administrators' units are: they go before those of packages (systemd.unit(5)).
const UNITS: &str = "/etc/systemd/system";

/// Where a host may have nft. Most have the second one as another name of the first.
const PROGRAMS: [&str; 2] = [NFT, "/sbin/nft"];

/// What `install` found and did.
#[derive(Debug, PartialEq, Eq)]
enum Installed {
    /// The unit is there and enabled now.
    Now,
    /// It was before, with the same content.
    Already,
    /// The administrator forbids it.
    Masked,
}

/// What is in the place of the unit.
enum Present {
    Nothing,
    Ours(Vec<u8>),
    Masked,
    Foreign,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    match &arguments.command {
        Command::Install { host, if_possible } => match install(&host.root, StateDir::locate().path()) {
            Ok(Installed::Now) => anstream::println!(
                "installed {UNITS}/{NAME}; systemd reads it at the next boot, or with `systemctl daemon-reload`"
            ),
            Ok(Installed::Already) => anstream::println!("{UNITS}/{NAME} is installed already"),
            Ok(Installed::Masked) => anstream::println!("{UNITS}/{NAME} is masked, and stays so"),
            Err(error) if *if_possible => anstream::eprintln!(
                "{} no boot unit: {error:#}; from a boot until the agent runs, traffic of workloads can \
                 leave in plaintext",
                "warning:".yellow().bold()
            ),
            Err(error) => return Err(error),
        },
        Command::Remove { host } => {
            let removed = remove(&host.root)?;
            for path in &removed {
                anstream::println!("{} remove {}", "-".red(), path.display());
            }
            if removed.is_empty() {
                anstream::println!("nothing to remove: there is no boot unit of Wireloom");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the unit and enables it, on the host with this root directory and state directory (as the host sees it).
fn install(root: &Path, state: &Path) -> anyhow::Result<Installed> {
    let units = on(root, UNITS);
    if !units.is_dir() {
        bail!("the host has no {UNITS}: it does not run systemd");
    }
    let path = units.join(NAME);
    let content = unit(nft(root)?, state)?;
    let present = match present(&path)? {
        Present::Masked => return Ok(Installed::Masked),
        Present::Foreign => {
            bail!("{UNITS}/{NAME} is not Wireloom's, and stays as it is; rename it, or remove it")
        }
        Present::Ours(present) => present,
        Present::Nothing => Vec::new(),
    };
    let is_new = present != content.as_bytes();
    if is_new {
        write_atomically(&path, content.as_bytes()).with_context(|| cannot("write", &path))?;
    }
    // Readable by all, as units are: systemd warns otherwise. Again each time, in case we were killed in between.
    fs::set_permissions(&path, Permissions::from_mode(0o644)).with_context(|| cannot("write", &path))?;
    let mut is_enabled = true;
    for link in links(root) {
        is_enabled &= !enable(&link).with_context(|| cannot("make", &link))?;
    }
    Ok(if is_new || !is_enabled { Installed::Now } else { Installed::Already })
}

/// Disables and removes the unit, if it is ours, on the host with this root directory. Returns what it has removed.
///
/// # Errors
/// The operating system's.
pub(super) fn remove(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let path = on(root, UNITS).join(NAME);
    let unit = match present(&path)? {
        Present::Ours(_) => Some(path),
        // What is left when we were killed below.
        Present::Nothing => None,
        Present::Masked | Present::Foreign => return Ok(Vec::new()),
    };
    let mut removed = Vec::new();
    for link in links(root) {
        if disable(&link).with_context(|| cannot("remove", &link))? {
            removed.push(link);
        }
    }
    if let Some(path) = unit {
        remove_written(&path).with_context(|| cannot("remove", &path))?;
        removed.push(path);
    }
    Ok(removed)
}

/// A path of the host, as seen from here.
fn on(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn cannot(action: &str, path: &Path) -> String {
    format!("cannot {action} {}", path.display())
}

fn present(path: &Path) -> anyhow::Result<Present> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Present::Nothing),
        Err(error) => return Err(error).with_context(|| cannot("read", path)),
        Ok(metadata) if metadata.is_symlink() => {
            let target = fs::read_link(path).with_context(|| cannot("read", path))?;
            let is_masked = target == Path::new("/dev/null");
            return Ok(if is_masked { Present::Masked } else { Present::Foreign });
        }
        Ok(_) => {}
    }
    let content = read_file(path).with_context(|| cannot("read", path))?.unwrap_or_default();
    Ok(if content.starts_with(MARKER.as_bytes()) { Present::Ours(content) } else { Present::Foreign })
}

/// Where the host has nft.
fn nft(root: &Path) -> anyhow::Result<&'static str> {
    // A link may lead to another place of the host, which is elsewhere as seen from here: it is not followed.
    let found = PROGRAMS.into_iter().find(|path| fs::symlink_metadata(on(root, path)).is_ok());
    found.with_context(|| {
        format!("the host has no nft, neither {} nor {}; install nftables on it", PROGRAMS[0], PROGRAMS[1])
    })
}

/// The unit for a host with this nft and this state directory.
fn unit(nft: &str, state: &Path) -> anyhow::Result<String> {
    // systemd gives a meaning to white space, quotes, % and $.
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@".contains(c);
    let name = state.to_str().filter(|name| state.is_absolute() && name.chars().all(is_plain));
    let name = name.with_context(|| {
        format!(
            "a unit cannot name the state directory {}: it takes an absolute path of letters, digits and /._-+:@",
            state.display()
        )
    })?;
    Ok(UNIT.replace(NFT, nft).replace(STATE, name))
}

/// What enables the unit: a symbolic link for each unit of `WantedBy=`.
fn links(root: &Path) -> impl Iterator<Item = PathBuf> {
    let units = on(root, UNITS);
    let wanted =
        UNIT.lines().filter_map(|line| line.strip_prefix("WantedBy=")).flat_map(str::split_whitespace);
    wanted.map(move |by| units.join(format!("{by}.wants")).join(NAME))
}

/// Makes such a link, and says whether it was missing.
fn enable(link: &Path) -> io::Result<bool> {
    match fs::read_link(link) {
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if let Some(directory) = link.parent() {
        fs::create_dir_all(directory)?;
    }
    symlink(Path::new(UNITS).join(NAME), link)?;
    Ok(true)
}

/// Removes such a link, and its directory when that is empty, as `systemctl disable` does. Says whether it was there.
/// One that leads to the unit of a package stays.
fn disable(link: &Path) -> io::Result<bool> {
    match fs::read_link(link) {
        Ok(unit) if unit != Path::new(UNITS).join(NAME) => return Ok(false),
        Ok(_) => fs::remove_file(link)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    match link.parent().map(fs::remove_dir) {
        Some(Err(error)) if error.kind() != ErrorKind::DirectoryNotEmpty => Err(error),
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A host with systemd and nft.
    struct TestHost(TempDir);

    impl TestHost {
        fn new(program: &str) -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(host.path("/etc/systemd/system/sysinit.target.wants")).unwrap();
            fs::create_dir_all(host.path(program).parent().unwrap()).unwrap();
            fs::write(host.path(program), "").unwrap();
            host
        }

        fn path(&self, path: &str) -> PathBuf {
            on(self.0.path(), path)
        }

        fn unit(&self) -> PathBuf {
            self.path("/etc/systemd/system/wireloom-guard.service")
        }

        fn install(&self) -> anyhow::Result<Installed> {
            install(self.0.path(), Path::new(STATE))
        }

        fn remove(&self) -> Vec<PathBuf> {
            remove(self.0.path()).unwrap()
        }

        /// Everything below `/etc`, in order.
        fn files(&self) -> Vec<String> {
            fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
                for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
                    found.push(entry.path());
                    if entry.file_type().unwrap().is_dir() {
                        walk(&entry.path(), found);
                    }
                }
            }
            let mut found = Vec::new();
            let etc = self.path("/etc/systemd/system");
            walk(&etc, &mut found);
            found.sort();
            found.iter().map(|path| path.strip_prefix(&etc).unwrap().display().to_string()).collect()
        }
    }

    #[test]
    fn it_installs_once_and_removes_exactly_that() {
        let host = TestHost::new("/usr/sbin/nft");
        assert_eq!(host.install().unwrap(), Installed::Now);
        assert_eq!(fs::read_to_string(host.unit()).unwrap(), UNIT);
        assert_eq!(fs::metadata(host.unit()).unwrap().permissions().mode() & 0o777, 0o644);
        let installed = [
            "nftables.service.wants",
            "nftables.service.wants/wireloom-guard.service",
            "sysinit.target.wants",
            "sysinit.target.wants/wireloom-guard.service",
            "wireloom-guard.service",
        ];
        assert_eq!(host.files(), installed);
        // As `systemctl --root=DIR enable` makes it.
        let link =
            fs::read_link(host.path("/etc/systemd/system/sysinit.target.wants/wireloom-guard.service"));
        assert_eq!(link.unwrap(), Path::new("/etc/systemd/system/wireloom-guard.service"));
        assert_eq!(host.install().unwrap(), Installed::Already);
        assert_eq!(host.files(), installed);

        fs::write(host.path("/etc/systemd/system/sysinit.target.wants/other.service"), "").unwrap();
        assert_eq!(host.remove().len(), 3);
        assert_eq!(host.files(), ["sysinit.target.wants", "sysinit.target.wants/other.service"]);
        assert_eq!(host.remove(), Vec::<PathBuf>::new());
    }

    #[test]
    fn it_replaces_an_older_unit_and_completes_what_was_interrupted() {
        let host = TestHost::new("/usr/sbin/nft");
        fs::write(host.unit(), format!("{MARKER} of an older version.\n")).unwrap();
        assert_eq!(host.install().unwrap(), Installed::Now);
        assert_eq!(fs::read_to_string(host.unit()).unwrap(), UNIT);

        let link = host.path("/etc/systemd/system/sysinit.target.wants/wireloom-guard.service");
        fs::remove_file(&link).unwrap();
        assert_eq!(host.install().unwrap(), Installed::Now);
        assert!(link.is_symlink());
        fs::remove_file(host.unit()).unwrap();
        assert_eq!(host.remove().len(), 2, "links without a unit");
    }

    #[test]
    fn the_unit_of_a_package_stays_enabled() {
        let host = TestHost::new("/usr/sbin/nft");
        let link = host.path("/etc/systemd/system/sysinit.target.wants/wireloom-guard.service");
        symlink("/usr/lib/systemd/system/wireloom-guard.service", &link).unwrap();
        assert_eq!(host.install().unwrap(), Installed::Now);
        assert_eq!(host.remove().len(), 2, "the unit, and the link of nftables.service");
        assert!(link.is_symlink());
        assert_eq!(host.remove(), Vec::<PathBuf>::new());
    }

    #[test]
    fn the_unit_names_the_nft_and_the_state_directory_of_the_host() {
        let host = TestHost::new("/sbin/nft");
        let state = Path::new("/srv/wireloom-2");
        assert_eq!(install(host.0.path(), state).unwrap(), Installed::Now);
        let unit = fs::read_to_string(host.unit()).unwrap();
        for line in [
            "RequiresMountsFor=/srv/wireloom-2",
            "ConditionPathExists=/srv/wireloom-2/guard.nft",
            "ExecStart=/sbin/nft -f /srv/wireloom-2/guard.nft",
            "ExecReload=/sbin/nft -f /srv/wireloom-2/guard.nft",
        ] {
            assert!(unit.lines().any(|other| other == line), "{line} is missing in\n{unit}");
        }
        assert!(!unit.contains(STATE) && !unit.contains(NFT));
        for state in ["state", "/srv/a b", "/srv/100%"] {
            let error = install(host.0.path(), Path::new(state)).unwrap_err().to_string();
            assert!(error.contains("a unit cannot name the state directory"), "{error}");
        }
    }

    #[test]
    fn a_host_without_nft_or_systemd_is_told_so() {
        let host = TestHost::new("/usr/sbin/nft");
        fs::remove_file(host.path("/usr/sbin/nft")).unwrap();
        let error = host.install().unwrap_err().to_string();
        assert_eq!(error, "the host has no nft, neither /usr/sbin/nft nor /sbin/nft; install nftables on it");
        assert_eq!(host.files(), ["sysinit.target.wants"]);
        // A link of the host may lead nowhere as seen from a container.
        symlink("/opt/nftables/nft", host.path("/usr/sbin/nft")).unwrap();
        assert_eq!(host.install().unwrap(), Installed::Now);

        let empty = tempfile::tempdir().unwrap();
        let error = install(empty.path(), Path::new(STATE)).unwrap_err().to_string();
        assert_eq!(error, "the host has no /etc/systemd/system: it does not run systemd");
        assert_eq!(remove(empty.path()).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_unit_of_somebody_else_stays_and_so_does_a_masked_one() {
        let host = TestHost::new("/usr/sbin/nft");
        let link = host.path("/etc/systemd/system/sysinit.target.wants/wireloom-guard.service");
        fs::write(host.unit(), "[Service]\nExecStart=/bin/true\n").unwrap();
        symlink("/etc/systemd/system/wireloom-guard.service", &link).unwrap();
        let before = host.files();
        let error = host.install().unwrap_err().to_string();
        assert!(error.contains("is not Wireloom's"), "{error}");
        assert_eq!(host.remove(), Vec::<PathBuf>::new());
        assert_eq!(host.files(), before);

        fs::remove_file(host.unit()).unwrap();
        symlink("/dev/null", host.unit()).unwrap();
        assert_eq!(host.install().unwrap(), Installed::Masked);
        assert_eq!(host.remove(), Vec::<PathBuf>::new());
        assert_eq!(fs::read_link(host.unit()).unwrap(), Path::new("/dev/null"));
    }
}
