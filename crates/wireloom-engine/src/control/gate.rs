//! Lets clients in, or has them wait in the socket's queue.

use std::{
    io,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::runtime::wake_up::WakeUp;

/// What the thread that accepts clients is to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Clients wait, for whoever accepts next.
    Closed,
    Open,
    /// The thread ends.
    Ended,
}

/// Tells that thread.
pub(super) struct Gate {
    state: Mutex<State>,
    changed: WakeUp,
}

impl Gate {
    /// A gate that is closed.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { state: Mutex::new(State::Closed), changed: WakeUp::new()? })
    }

    /// Changes it. Unless it is open, no client is accepted from now on.
    pub(super) fn set(&self, state: State) {
        *self.lock() = state;
        self.changed.signal();
    }

    /// Waits for the next client. `None` when the thread is to end, or the socket was shut down.
    pub(super) fn accept(&self, listener: &UnixListener) -> Option<io::Result<UnixStream>> {
        loop {
            self.changed.clear();
            // Locked while it accepts: whoever closes the gate knows that nobody comes in afterwards.
            let state = self.lock();
            let is_open = match *state {
                State::Ended => return None,
                State::Closed => false,
                State::Open => match listener.accept() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return None,
                    accepted => return Some(accepted.map(|(stream, _)| stream)),
                },
            };
            drop(state);
            let mut awaited =
                [self.changed.as_fd(), listener.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            let _interrupted = poll(&mut awaited[..1 + usize::from(is_open)], PollTimeout::NONE);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    #[test]
    fn clients_come_in_only_while_it_is_open_and_the_thread_ends_when_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("wg0.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        listener.set_nonblocking(true).expect("a flag");
        let gate = Arc::new(Gate::new().expect("an event"));
        let (told, accepts) = (Arc::clone(&gate), listener.try_clone().expect("a descriptor"));
        let thread = thread::spawn(move || {
            let clients = std::iter::from_fn(|| told.accept(&accepts));
            clients.map(|client| drop(client.expect("a client"))).count()
        });
        let connect = || UnixStream::connect(&path).expect("it listens");
        let is_served = |mut client: UnixStream| io::Read::read(&mut client, &mut [0]).is_ok();
        let early = connect();
        gate.set(State::Open);
        assert!(is_served(early) && is_served(connect()));
        gate.set(State::Closed);
        // More than the thread could miss.
        for _ in 0..1000 {
            let _waits = connect();
            listener.accept().expect("nobody else has accepted it");
        }
        gate.set(State::Open);
        assert!(is_served(connect()));
        gate.set(State::Ended);
        assert_eq!(thread.join().expect("it ends"), 3);
    }
}
