//! Who is connected to the control socket: so many at a time, and who gives way to a newcomer.

use std::{
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// The most clients at a time.
pub(super) const MAX_CLIENTS: usize = 32;

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
    /// Since then it has sent no whole request, or not read its reply. What it sends meanwhile does not matter:
    /// otherwise one that trickles would seem busy.
    Waits(Instant),
    /// The engine has its request.
    IsServed,
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
    /// disconnected. Waits while the engine serves every client, or the one that was disconnected has not gone.
    pub(super) fn admit(self: &Arc<Self>, stream: UnixStream) -> Client {
        let stream = Arc::new(stream);
        let mut present = self.lock();
        while present.len() >= MAX_CLIENTS {
            if present.iter().all(|client| client.state != State::Dismissed) {
                dismiss_idlest(&mut present);
            }
            present = self.changed.wait(present).unwrap_or_else(PoisonError::into_inner);
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
        State::IsServed | State::Dismissed => None,
    });
    if let Some((since, client)) = waiting.min_by_key(|(since, _)| *since) {
        tracing::warn!(
            "a control client that sent no whole request for {} ms was disconnected for another one: {MAX_CLIENTS} \
             are connected",
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

    /// It has a reply to read, or its next request to send, from now on.
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
