//! What systemd keeps for the next supervisor, if this one is killed or restarted (file descriptor store in
//! systemd.service(5)).

use std::{
    env, io,
    os::{
        fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    rc::{Rc, Weak},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::pipe2,
};

use super::{
    descriptor::{Descriptor, send_at_once},
    device::close_all,
};

/// How long after a failure it is told again. Most failures have nothing that says when they are over: the user has too
/// many descriptors in flight (`ETOOMANYREFS`), or the kernel too little memory (`ENOBUFS`).
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Takes what systemd has kept (sd_listen_fds(3)). To be called once, before this process opens anything. What does not
/// come as systemd gives it is closed, also when `LISTEN_PID` says that it is for another process.
///
/// # Errors
/// When that fails.
pub(super) fn kept_descriptors() -> io::Result<Vec<(String, Rc<Descriptor>)>> {
    match sd_notify::listen_fds_with_names() {
        Ok(kept) if kept.len() > 0 || env::var_os("LISTEN_FDS").is_none() => {
            return Ok(kept.map(|(number, name)| (name, Rc::new(Descriptor::left(number)))).collect());
        }
        Ok(_) => {}
        Err(error) => tracing::warn!("cannot use the descriptors that systemd has kept: {error}"),
    }
    close_all().map(|()| Vec::new())
}

/// systemd, or whoever else has started this process and speaks its protocol.
pub(super) struct Systemd {
    /// `None` when nobody does.
    socket: Option<UnixDatagram>,
    /// What it keeps. A descriptor that is closed here is not the same one as any that is opened later.
    kept: Vec<(String, Weak<Descriptor>)>,
    /// Why it could not be told everything.
    trouble: Option<Errno>,
    /// It was told to close something, and not asked since to say when it has read that.
    has_removed: bool,
    /// Closed at the other end when it has read what it was told to close (`BARRIER=1` in sd_notify(3)). Recent
    /// versions close that in the background.
    barrier: Option<OwnedFd>,
}

impl Systemd {
    /// Connects to it. These are the descriptors that it has kept.
    ///
    /// # Errors
    /// When `NOTIFY_SOCKET` is no socket that is open.
    pub(super) fn connect(kept: &[(String, Rc<Descriptor>)]) -> io::Result<Self> {
        let connect = |path| {
            let socket = UnixDatagram::unbound()?;
            socket.connect(path).map(|()| socket)
        };
        let socket = env::var_os("NOTIFY_SOCKET").map(connect).transpose()?;
        Ok(Self {
            socket,
            kept: kept.iter().map(weak).collect(),
            trouble: None,
            has_removed: false,
            barrier: None,
        })
    }

    /// Whether there is one, which passes on what it keeps when it restarts this process.
    pub(super) fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// Lets it keep these, and nothing else. Nobody waits for it: what it does not take now it gets the next time, and
    /// that is due when [`Self::awaited`] is writable, or after [`Self::until_retry`].
    pub(super) fn keep(&mut self, wanted: &[(String, Rc<Descriptor>)]) {
        let trouble = self.tell(wanted).err();
        if let Some(error) = trouble.filter(|error| trouble != self.trouble && *error != Errno::EAGAIN) {
            tracing::warn!("cannot tell systemd what to keep: {error}");
        }
        self.trouble = trouble;
    }

    /// Whether it has read what it was told to close, as far as it can be told anything.
    pub(super) fn is_settled(&mut self) -> bool {
        self.barrier.take_if(|barrier| is_hung_up(barrier.as_fd()));
        self.barrier.is_none() && self.trouble != Some(Errno::EAGAIN)
    }

    /// What is hung up when it has read what it was told to close.
    pub(super) fn barrier(&self) -> Option<BorrowedFd<'_>> {
        self.barrier.as_ref().map(AsFd::as_fd)
    }

    /// What has to become writable before there is more to be told.
    pub(super) fn awaited(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().filter(|_| self.trouble == Some(Errno::EAGAIN)).map(AsFd::as_fd)
    }

    /// How long to wait at most before it is told again; `None`: it was told everything.
    pub(super) fn until_retry(&self) -> Option<Duration> {
        self.trouble.map(|_| RETRY_AFTER)
    }

    fn tell(&mut self, wanted: &[(String, Rc<Descriptor>)]) -> nix::Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        let is = |kept: &Weak<Descriptor>, wanted: &Rc<Descriptor>| kept.as_ptr() == Rc::as_ptr(wanted);
        // Before anything is added, so that it never keeps more than we do.
        while let Some((name, _)) =
            self.kept.iter().find(|(_, kept)| !wanted.iter().any(|(_, wanted)| is(kept, wanted)))
        {
            let name = name.clone();
            send_at_once(socket, &format!("FDSTOREREMOVE=1\nFDNAME={name}"), None)?;
            // All of that name; others that have it are added again.
            self.kept.retain(|(other, _)| *other != name);
            self.has_removed = true;
        }
        for named in wanted {
            if !self.kept.iter().any(|(_, kept)| is(kept, &named.1)) {
                // Without FDPOLL=0 it drops a socket that has an error to report: an ICMP message suffices.
                let text = format!("FDSTORE=1\nFDNAME={}\nFDPOLL=0", named.0);
                send_at_once(socket, &text, Some(&named.1))?;
                self.kept.push(weak(named));
            }
        }
        if self.has_removed {
            let (near, far) = pipe2(OFlag::O_CLOEXEC)?;
            // A message of its own, or systemd ignores it.
            send_at_once(socket, "BARRIER=1", Some(&Descriptor::left(far.into_raw_fd())))?;
            self.has_removed = false;
            self.barrier = Some(near);
        }
        Ok(())
    }
}

/// Whether the other end of a pipe is closed.
fn is_hung_up(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::empty())];
    // An error is no reason to wait.
    !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
}

fn weak((name, descriptor): &(String, Rc<Descriptor>)) -> (String, Weak<Descriptor>) {
    (name.clone(), Rc::downgrade(descriptor))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::sys::socket::{setsockopt, sockopt::SndBuf};

    use super::super::descriptor::receive;
    use super::*;

    /// One end of a socket pair as systemd, and the other one as its end.
    fn pair() -> (Systemd, UnixDatagram) {
        let (near, far) = UnixDatagram::pair().unwrap();
        let kept = Vec::new();
        (Systemd { socket: Some(near), kept, trouble: None, has_removed: false, barrier: None }, far)
    }

    fn named(name: &str) -> (String, Rc<Descriptor>) {
        let file = File::open("/dev/null").unwrap();
        (name.into(), Rc::new(Descriptor::left(file.into_raw_fd())))
    }

    /// What it was told since, each as its first and its second line, and how many descriptors came with it. Says when
    /// it has read what it was to close.
    fn told(far: &UnixDatagram) -> Vec<String> {
        let mut text = [0; 256];
        let mut all = Vec::new();
        while let Ok(received) = receive(far, &mut text) {
            let text = std::str::from_utf8(&text[..received.length]).unwrap();
            let words: Vec<&str> = text.lines().take(2).collect();
            all.push(format!("{} {}", words.join(" "), received.descriptors.len()));
        }
        all
    }

    #[test]
    fn it_is_told_what_is_new_and_what_is_gone() {
        let (mut systemd, far) = pair();
        let mut wanted = vec![named("tun-0"), named("udp4-0")];
        systemd.keep(&wanted);
        assert_eq!(told(&far), ["FDSTORE=1 FDNAME=tun-0 1", "FDSTORE=1 FDNAME=udp4-0 1"]);
        systemd.keep(&wanted);
        assert_eq!(told(&far), [""; 0], "nothing is new");
        wanted[1] = named("udp4-0");
        systemd.keep(&wanted);
        let other_port = ["FDSTOREREMOVE=1 FDNAME=udp4-0 0", "FDSTORE=1 FDNAME=udp4-0 1", "BARRIER=1 1"];
        assert_eq!(told(&far), other_port);
        // Of two that have one name, one goes.
        wanted.push(named("udp4-0"));
        systemd.keep(&wanted);
        assert_eq!(told(&far), ["FDSTORE=1 FDNAME=udp4-0 1"]);
        wanted.remove(1);
        systemd.keep(&wanted);
        assert_eq!(told(&far), other_port);
        systemd.keep(&[]);
        assert_eq!(
            told(&far),
            ["FDSTOREREMOVE=1 FDNAME=tun-0 0", "FDSTOREREMOVE=1 FDNAME=udp4-0 0", "BARRIER=1 1"]
        );
    }

    #[test]
    fn it_says_when_it_has_read_what_it_is_to_close() {
        let (mut systemd, far) = pair();
        let wanted = [named("tun-0"), named("udp4-0")];
        assert!(systemd.is_settled());
        systemd.keep(&wanted);
        assert!(systemd.is_settled(), "it is to close nothing");
        systemd.keep(&wanted[..1]);
        assert!(!systemd.is_settled() && systemd.barrier().is_some());
        // Once more, before it has read the first.
        systemd.keep(&[]);
        assert!(!systemd.is_settled());
        told(&far);
        assert!(systemd.is_settled() && systemd.barrier().is_none());
        // It reads nothing more.
        systemd.keep(&wanted);
        drop(far);
        systemd.keep(&[]);
        assert!(systemd.is_settled(), "nobody answers");
    }

    #[test]
    fn one_that_takes_nothing_is_not_waited_for_and_gets_the_rest_later() {
        let (mut systemd, far) = pair();
        // The kernel makes it 4,608 bytes (SOCK_MIN_SNDBUF in include/net/sock.h). Each message takes more than 256.
        setsockopt(systemd.socket.as_ref().unwrap(), SndBuf, &0).unwrap();
        let wanted: Vec<_> = (0..50).map(|number| named(&number.to_string())).collect();
        systemd.keep(&wanted);
        assert!(systemd.awaited().is_some(), "it does not take all at once");
        let mut all = Vec::new();
        while systemd.awaited().is_some() {
            let some = told(&far);
            assert!(!some.is_empty());
            all.extend(some);
            systemd.keep(&wanted);
        }
        all.extend(told(&far));
        assert!(all.iter().all(|told| told.starts_with("FDSTORE=1")));
        assert_eq!((all.len(), systemd.until_retry()), (wanted.len(), None));
        drop(far);
        systemd.keep(&[]);
        assert!(systemd.awaited().is_none(), "it is gone");
        assert_eq!(systemd.until_retry(), Some(RETRY_AFTER));
    }

    #[test]
    fn what_was_kept_and_is_of_no_use_is_dropped() {
        let (mut systemd, far) = pair();
        let kept = [named("tun-0"), named("udp4-0")];
        systemd.kept = kept.iter().map(weak).collect();
        systemd.keep(&kept[..1]);
        assert_eq!(told(&far), ["FDSTOREREMOVE=1 FDNAME=udp4-0 0", "BARRIER=1 1"]);
        drop(kept);
        systemd.keep(&[]);
        assert_eq!(told(&far), ["FDSTOREREMOVE=1 FDNAME=tun-0 0", "BARRIER=1 1"]);
    }
}
