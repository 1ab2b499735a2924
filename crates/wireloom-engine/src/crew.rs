//! Spreads the work on one queue's batches over cores, and keeps their order.
//!
//! ```text
//!   queue's thread   fill 1  fill 2  fill 3  seal 3  send 1  send 2  send 3
//!   helper                   seal 1 ……………
//!   helper                           seal 2 ………………………
//! ```
//!
//! A batch is handed over only when another one is waiting to be filled, so that what comes alone goes
//! at once. Batches come back in their order, whoever is done first; and all of them before the turn of
//! the queue is over, so that nothing is on its way between turns: not when a peer is removed, not when
//! the port is closed.
//!
//! What is handed over is a batch, by channels that were allocated in advance; the memory goes round.

use std::{
    io, mem,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

/// Batches of one queue and one direction that may be away at a time.
pub(crate) const AWAY_MAX: usize = 8;

/// Something to be done to a batch, by whichever thread.
pub(crate) trait Work: Default + Send + 'static {
    /// Does it.
    fn work(&mut self);
}

/// What a crew is handed: tasks of one kind, or of several.
pub(crate) trait Errand: Send + 'static {
    /// Does it, and sends back what there is to be sent.
    fn run(self);
}

/// Threads that run the errands of any queue. They end when nobody can hand them anything more.
/// Clones are the same threads.
pub(crate) struct Crew<E> {
    errands: SyncSender<E>,
    waiting: Arc<Mutex<Receiver<E>>>,
}

/// A batch to be worked on, and its way back.
pub(crate) struct Task<W> {
    batch: W,
    back: SyncSender<Done<W>>,
}

/// A batch, and whether the work on it panicked.
type Done<W> = (W, thread::Result<()>);

impl<W: Work> Errand for Task<W> {
    fn run(mut self) {
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| self.batch.work()));
        // The queue is gone if it fails, and its batch with it.
        let _ = self.back.send((self.batch, outcome));
    }
}

impl<E> Clone for Crew<E> {
    fn clone(&self) -> Self {
        Self { errands: self.errands.clone(), waiting: Arc::clone(&self.waiting) }
    }
}

impl<E: Errand> Crew<E> {
    /// Starts so many helpers, for so many queues of two directions.
    pub(crate) fn start(helpers: usize, queues: usize) -> io::Result<Self> {
        let (errands, waiting) = sync_channel::<E>(2 * queues * AWAY_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        for number in 1..=helpers {
            let waiting = Arc::clone(&waiting);
            thread::Builder::new().name(format!("helper-{number}")).spawn(move || {
                loop {
                    // The lock is for receiving alone.
                    let errand = lock(&waiting).recv();
                    let Ok(errand) = errand else { return };
                    errand.run();
                }
            })?;
        }
        Ok(Self { errands, waiting })
    }

    /// An errand that no helper has begun yet.
    fn take(&self) -> Option<E> {
        // Whoever holds the lock waits for one, so that none is left over.
        self.waiting.try_lock().ok()?.try_recv().ok()
    }
}

/// A receiver whose holder panicked is still a receiver.
fn lock<E>(waiting: &Mutex<Receiver<E>>) -> MutexGuard<'_, Receiver<E>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The way back of one batch at a time: the end that goes with it, and ours.
type Place<W> = (SyncSender<Done<W>>, Receiver<Done<W>>);

/// The batches of one queue and one direction that are away, in their order.
pub(crate) struct Away<W, E> {
    crew: Crew<E>,
    /// In a ring.
    places: Vec<Place<W>>,
    oldest: usize,
    count: usize,
    /// Memory for more.
    idle: Vec<W>,
}

impl<W: Work, E: Errand + From<Task<W>>> Away<W, E> {
    /// Nothing is away.
    pub(crate) fn new(crew: Crew<E>) -> Self {
        let places = (0..AWAY_MAX).map(|_| sync_channel(1)).collect();
        Self { crew, places, oldest: 0, count: 0, idle: Vec::new() }
    }

    /// Hands a batch over and puts an empty one into its place; false when too many are away, and the
    /// caller keeps it.
    pub(crate) fn hand_over(&mut self, batch: &mut W) -> bool {
        if self.count == self.places.len() {
            return false;
        }
        let (back, _) = &self.places[(self.oldest + self.count) % self.places.len()];
        let empty = self.idle.pop().unwrap_or_default();
        let task = Task { batch: mem::replace(batch, empty), back: back.clone() };
        self.crew.errands.try_send(task.into()).expect("there is a place for all that may be away");
        self.count += 1;
        true
    }

    /// The oldest batch that is away, when it is done. Until then this thread does what others wait for.
    pub(crate) fn take_back(&mut self) -> Option<W> {
        if self.count == 0 {
            return None;
        }
        let (_, back) = &self.places[self.oldest];
        let (batch, outcome) = loop {
            if let Ok(done) = back.try_recv() {
                break done;
            }
            match self.crew.take() {
                Some(errand) => errand.run(),
                None => break back.recv().expect("the other end stands in the same place"),
            }
        };
        self.oldest = (self.oldest + 1) % self.places.len();
        self.count -= 1;
        if let Err(panic) = outcome {
            panic::resume_unwind(panic);
        }
        Some(batch)
    }

    /// Takes the memory of a batch that came back and is empty again.
    pub(crate) fn keep(&mut self, batch: W) {
        self.idle.push(batch);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// Sleeps as long as it says, and then says that it is done.
    #[derive(Default)]
    struct Nap {
        number: usize,
        microseconds: u64,
        done: bool,
    }

    impl Work for Nap {
        fn work(&mut self) {
            thread::sleep(Duration::from_micros(self.microseconds));
            assert!(!self.done, "worked on twice");
            self.done = true;
        }
    }

    /// One queue's batches, some of which it hands over and all of which it takes back.
    fn queue(crew: Crew<Task<Nap>>, naps: &[(u64, bool)]) {
        let mut away = Away::<Nap, _>::new(crew);
        let mut returned = 0;
        let mut take = |nap: &mut Nap| {
            assert!(nap.done && nap.number == returned, "{} instead of {returned}", nap.number);
            returned += 1;
            *nap = Nap::default();
        };
        let mut nap = Nap::default();
        for (number, (microseconds, alone)) in naps.iter().enumerate() {
            (nap.number, nap.microseconds) = (number, *microseconds);
            if !alone && away.hand_over(&mut nap) {
                continue;
            }
            while let Some(mut done) = away.take_back() {
                take(&mut done);
                away.keep(done);
            }
            nap.work();
            take(&mut nap);
        }
        while let Some(mut done) = away.take_back() {
            take(&mut done);
            away.keep(done);
        }
        assert_eq!(returned, naps.len());
        assert!(away.idle.len() <= AWAY_MAX, "memory goes round");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn batches_come_back_in_their_order(
            helpers in 1..6_usize,
            queues in prop::collection::vec(
                prop::collection::vec((0..200_u64, prop::bool::weighted(0.1)), 0..40), 1..4,
            ),
        ) {
            let crew = Crew::start(helpers, queues.len()).unwrap();
            thread::scope(|scope| {
                for naps in &queues {
                    let crew = crew.clone();
                    scope.spawn(move || queue(crew, naps));
                }
            });
        }
    }

    #[test]
    fn a_panic_comes_out_at_the_queue() {
        let mut away = Away::<Nap, Task<Nap>>::new(Crew::start(1, 1).unwrap());
        let mut nap = Nap { done: true, ..Nap::default() };
        assert!(away.hand_over(&mut nap));
        let panicked = panic::catch_unwind(AssertUnwindSafe(|| away.take_back().is_some()));
        assert!(panicked.is_err());
        // The helper goes on.
        assert!(away.hand_over(&mut nap) && away.take_back().is_some_and(|nap| nap.done));
    }

    #[test]
    fn helpers_end_with_the_last_who_could_need_them() {
        let crew = Crew::<Task<Nap>>::start(3, 1).unwrap();
        let waiting = Arc::downgrade(&crew.waiting);
        drop(Away::<Nap, _>::new(crew));
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while waiting.strong_count() > 0 {
            assert!(std::time::Instant::now() < deadline, "they wait for ever");
            thread::yield_now();
        }
    }
}
