//! Who is connected to the control socket: so many at a time, and who gives way to a newcomer.

use std::{
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The most clients at a time.
pub(super) const MAX_CLIENTS: usize = 32;

/// How long nobody takes the place of a client that has a reply to read: it must learn what became of its request.
const READING: Duration = Duration::from_secs(1);

/// All clients that are connected.
#[derive(Default)]
pub(super) struct Clients {
    present: Mutex<Vec<Present>>,
    /// Signalled when a newcomer may have room.
    changed: Condvar,
}

struct Present {
    stream: Arc<UnixStream>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Since then it has sent no whole request. What it sends meanwhile does not matter: otherwise one that trickles
    /// would seem busy.
    Waits(Instant),
    /// The engine has its request.
    IsServed,
    /// Since then it has a reply to read.
    Reads(Instant),
    /// It has given way. Its thread ends soon.
    Dismissed,
}

/// A client's place, which is free again when this value is dropped.
pub(super) struct Client {
    all: Arc<Clients>,
    stream: Arc<UnixStream>,
}

impl Clients {
    /// Gives a newcomer a place. If all are taken, the client that has waited longest without a whole request is
    /// disconnected. Waits while the engine serves every client, replies are read, or the one that was disconnected has
    /// not gone.
    pub(super) fn admit(self: &Arc<Self>, stream: UnixStream) -> Client {
        let stream = Arc::new(stream);
        let mut present = self.lock();
        while present.len() >= MAX_CLIENTS {
            if present.iter().all(|client| client.state != State::Dismissed) {
                dismiss_idlest(&mut present);
            }
            // Somebody who reads may have had the time for it until then.
            let waited = self.changed.wait_timeout(present, READING);
            present = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        present.push(Present { stream: Arc::clone(&stream), state: State::Waits(Instant::now()) });
        Client { all: Arc::clone(self), stream }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Present>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn dismiss_idlest(present: &mut [Present]) {
    let waiting = present.iter_mut().filter_map(|client| match client.state {
        State::Waits(since) => Some((since, client)),
        State::Reads(since) if since.elapsed() >= READING => Some((since, client)),
        State::IsServed | State::Reads(_) | State::Dismissed => None,
    });
    if let Some((since, client)) = waiting.min_by_key(|(since, _)| *since) {
        tracing::warn!(
            "a control client that sent no whole request, or did not read its reply, for {} ms was disconnected for \
             another one: {MAX_CLIENTS} are connected",
            since.elapsed().as_millis()
        );
        client.state = State::Dismissed;
        // Its thread, which reads or writes, notices.
        let _ = client.stream.shutdown(Shutdown::Both);
    }
}

impl Client {
    /// Its connection.
    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Keeps its place while the engine has its request. Returns false when it has given way already: then nobody
    /// would learn what became of the request.
    pub(super) fn is_served(&self) -> bool {
        self.change(State::IsServed)
    }

    /// It has a reply to read from now on, and some time for that.
    pub(super) fn reads(&self) {
        self.change(State::Reads(Instant::now()));
    }

    /// It has its next request to send from now on.
    pub(super) fn waits(&self) {
        self.change(State::Waits(Instant::now()));
        self.all.changed.notify_all();
    }

    fn change(&self, state: State) -> bool {
        let mut present = self.all.lock();
        let own = present.iter_mut().find(|client| Arc::ptr_eq(&client.stream, &self.stream));
        let own = own.filter(|client| client.state != State::Dismissed);
        own.map(|client| client.state = state).is_some()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.all.lock().retain(|client| !Arc::ptr_eq(&client.stream, &self.stream));
        self.all.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        thread,
    };

    use super::*;

    /// Clients on every place, and the other ends of their connections.
    fn full() -> (Arc<Clients>, Vec<(Client, UnixStream)>) {
        let all = Arc::<Clients>::default();
        let admit = |_| {
            let (near, far) = UnixStream::pair().expect("two sockets");
            far.set_read_timeout(Some(10 * READING)).expect("a timeout");
            (all.admit(near), far)
        };
        let present = (0..MAX_CLIENTS).map(admit).collect();
        (all, present)
    }

    #[test]
    fn nobody_loses_a_reply_to_a_newcomer() {
        let (all, mut present) = full();
        assert!(present.iter().all(|(client, _)| client.is_served()));
        let (near, _far) = UnixStream::pair().expect("two sockets");
        let newcomer = thread::spawn(move || all.admit(near));
        let (client, mut far) = present.pop().expect("a client");
        client.reads();
        // Long enough for the newcomer to look.
        thread::sleep(READING / 10);
        client.all.changed.notify_all();
        thread::sleep(READING / 10);
        client.stream().write_all(b"errno=0\n\n").expect("it is still connected");
        client.waits();
        let mut read = String::new();
        far.read_to_string(&mut read).expect("its place is taken now");
        assert_eq!(read, "errno=0\n\n");
        drop(client);
        newcomer.join().expect("it is admitted");
    }

    #[test]
    fn a_client_that_does_not_read_its_reply_gives_way() {
        let (all, mut present) = full();
        assert!(present.iter().all(|(client, _)| client.is_served()));
        let (client, mut far) = present.pop().expect("a client");
        client.reads();
        let (near, _far) = UnixStream::pair().expect("two sockets");
        let newcomer = thread::spawn(move || all.admit(near));
        assert_eq!(far.read(&mut [0]).expect("it is disconnected"), 0);
        assert!(!client.is_served());
        drop(client);
        newcomer.join().expect("it is admitted");
    }
}
