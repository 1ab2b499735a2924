//! A virtual machine: QEMU, with hardware virtualisation where that works, else emulated.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};

use super::{
    Test,
    initramfs::{Image, tool},
    report::{Line, Report},
};

/// MiB of memory.
const MEMORY: &str = "2048";

/// Time beyond a test's limit for the machine to report that it killed the test.
const GRACE: Duration = Duration::from_secs(60);

/// Lines of the console that are shown when a machine ends too early.
const LAST_WORDS: usize = 30;

/// What executes the machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accelerator {
    Kvm,
    /// QEMU's own, with a thread for each processor.
    Emulation,
}

impl Accelerator {
    fn argument(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Emulation => "tcg,thread=multi",
        }
    }

    /// Time for the first process to report. KVM needs a second where it works. Inside another virtual machine it may
    /// fail at once, or start and then hang.
    fn patience(self) -> Duration {
        match self {
            Self::Kvm => Duration::from_secs(10),
            Self::Emulation => Duration::from_secs(120),
        }
    }

    /// By how much the waits of a test are stretched.
    fn pace(self) -> u32 {
        match self {
            Self::Kvm => 1,
            Self::Emulation => 6,
        }
    }

    /// The time after which a test counts as hanging: several times what the slowest needs on a busy machine.
    fn limit(self) -> Duration {
        match self {
            Self::Kvm => Duration::from_secs(600),
            Self::Emulation => Duration::from_secs(1200),
        }
    }
}

/// What a machine is booted for.
pub(crate) struct Job<'a> {
    /// The machine's name, in messages.
    pub(crate) name: &'a str,
    pub(crate) tests: &'a [Test],
    pub(crate) processors: usize,
    /// How many of them run at the same time.
    pub(crate) parallel: usize,
}

/// Boots the image and runs the tests, until they are done or the machine ends. Results go to `report`.
pub(crate) fn run(image: &Image, job: &Job<'_>, report: &Report) -> anyhow::Result<()> {
    /// The accelerator that works: the next machine need not try others.
    static ACCELERATOR: OnceLock<Accelerator> = OnceLock::new();
    let initramfs = image.with_tests(job)?;
    // An emulated machine that takes 5 s to boot was once silent for 300 s.
    for accelerator in [Accelerator::Kvm, Accelerator::Emulation, Accelerator::Emulation] {
        let accelerator = ACCELERATOR.get().copied().unwrap_or(accelerator);
        let mut machine = Machine::boot(&image.kernel, &initramfs, accelerator, job)?;
        match machine.wait_until_up(report) {
            Ok(()) => {
                ACCELERATOR.get_or_init(|| accelerator);
                return machine.follow(report);
            }
            Err(error) => eprintln!("{}: {accelerator:?} does not work here ({error:#})", job.name),
        }
    }
    bail!("no accelerator works")
}

/// A running QEMU; dropped, it is killed.
struct Machine<'a> {
    qemu: Child,
    accelerator: Accelerator,
    name: &'a str,
    /// The kernel's messages.
    console: PathBuf,
    /// QEMU's messages.
    errors: PathBuf,
    lines: Receiver<String>,
    begun: Instant,
}

impl<'a> Machine<'a> {
    fn boot(
        kernel: &Path,
        initramfs: &Path,
        accelerator: Accelerator,
        job: &Job<'a>,
    ) -> anyhow::Result<Self> {
        let qemu = tool("qemu-system-x86_64", "qemu-system-x86")?;
        let console = initramfs.with_extension("console");
        let errors = initramfs.with_extension("errors");
        // - An oops ends the machine, and with `-no-reboot` QEMU.
        // - Address randomisation, mitigations and the self tests of ciphers cost a second of the boot.
        // - On a busy host the timer of an emulated machine is late, and Linux would take it for broken and panic
        //   (`check_timer` in arch/x86/kernel/apic/io_apic.c).
        // - Network namespaces go at once, not after grace periods.
        let words = format!(
            "console=ttyS0 quiet panic=-1 oops=panic nokaslr mitigations=off cryptomgr.notests no_timer_check \
             rcupdate.rcu_expedited=1 wireloom.pace={} wireloom.parallel={} \
             wireloom.limit={}",
            accelerator.pace(),
            job.parallel,
            accelerator.limit().as_secs(),
        );
        let begun = Instant::now();
        // Whatever becomes of this process, QEMU goes with it.
        let mut qemu = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(qemu)
            .args(["-accel", accelerator.argument()])
            .args(["-cpu", "max", "-m", MEMORY, "-smp", &job.processors.to_string()])
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio", "-kernel"])
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", &words])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors)?)
            .spawn()
            .context("cannot run setpriv: install the Debian package `util-linux`")?;
        let output = qemu.stdout.take().context("QEMU has no output")?;
        // For whoever wants to watch the tests.
        let mut copy = File::create(initramfs.with_extension("report"))?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for mut line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                line.push(b'\n');
                if copy.write_all(&line).is_err() {
                    return;
                }
                if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { qemu, accelerator, name: job.name, console, errors, lines, begun })
    }

    fn wait_until_up(&mut self, report: &Report) -> anyhow::Result<()> {
        let deadline = self.begun + self.accelerator.patience();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(Line::Up { seconds, release }) = report.hear(&line) {
                        let after = self.begun.elapsed().as_secs_f64();
                        eprintln!(
                            "{}: Linux {release} up after {after:.1} s ({seconds} s its own)",
                            self.name
                        );
                        return Ok(());
                    }
                }
                Err(error) => return Err(self.end(error, "it did not come up")),
            }
        }
    }

    /// Follows the report until the machine is done.
    fn follow(&mut self, report: &Report) -> anyhow::Result<()> {
        let name = self.name;
        loop {
            match self.lines.recv_timeout(self.accelerator.limit() + GRACE) {
                Ok(line) => match report.hear(&line) {
                    Some(Line::Done) => {
                        // Until QEMU closes its output, which it does when it ends.
                        while self.lines.recv_timeout(GRACE).is_ok() {}
                        self.qemu.kill()?;
                        self.qemu.wait()?;
                        let took = self.begun.elapsed().as_secs_f64();
                        eprintln!("{name}: done after {took:.0} s; the slowest tests:");
                        for (seconds, test) in report.slowest(5) {
                            eprintln!("{name}: {seconds:6.1} s {test}");
                        }
                        return Ok(());
                    }
                    Some(Line::Figure(figure)) => eprintln!("{name}: {figure}"),
                    Some(Line::Stray(words)) => eprintln!("{name}: {words}"),
                    Some(Line::Up { .. }) | None => (),
                },
                Err(error) => return Err(self.end(error, "it fell silent")),
            }
        }
    }

    /// The error for a machine whose report ends too early.
    fn end(&mut self, error: RecvTimeoutError, silence: &str) -> anyhow::Error {
        let killed = match error {
            RecvTimeoutError::Timeout => self.qemu.kill().map(|()| format!("{silence} and was killed")),
            RecvTimeoutError::Disconnected => Ok("it ended too early".to_owned()),
        };
        let end = killed.and_then(|how| Ok(format!("{how} ({})", self.qemu.wait()?)));
        let words = [&self.errors, &self.console].map(|file| last_words(file));
        match (end, words) {
            (Ok(end), [Ok(errors), Ok(console)]) => {
                anyhow!("the machine: {end}\n{errors}\nits console's last words:\n{console}")
            }
            (Err(error), _) | (_, [Err(error), _] | [_, Err(error)]) => error.into(),
        }
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn last_words(file: &Path) -> io::Result<String> {
    let text = String::from_utf8_lossy(&fs::read(file)?).into_owned();
    let lines: Vec<_> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n"))
}
