//! The crypto pool: spreads the encryption and decryption of one queue's batches over cores, and keeps their order.
//!
//! ```text
//!   worker's thread   fill 1  fill 2  fill 3  seal 3  send 1  send 2  send 3
//!   helper 1                  seal 1 ……………
//!   helper 2                          seal 2 ………………………
//! ```
//!
//! A worker submits a batch only when it has another one to fill, so a lone packet is sent without delay. Batches
//! come back in the order in which they were submitted, whichever is finished first, and all of them before the
//! worker's turn ends. So no batch is away between turns, which is when peers are removed and ports are closed.
//!
//! Whole batches are moved, through channels that were allocated in advance. Their memory is reused.

use std::{
    io, mem,
    panic::{self, AssertUnwindSafe},
};

use crate::sync::{
    channel::{Receiver, Sender, bounded},
    thread::{self, JoinHandle},
};

/// Batches of one queue and one direction that may be in the pool at a time.
pub(crate) const IN_POOL_MAX: usize = 8;

/// A batch that the pool can work on.
pub(crate) trait Work: Default + Send + 'static {
    /// Does the work, on whichever thread.
    fn work(&mut self);
}

/// What a helper runs: a [`BatchJob`] of one kind, or an enum of several kinds.
pub(crate) trait Job: Send + 'static {
    /// Does the work and sends the batch back.
    fn run(self);
}

/// Helper threads that run the jobs of all queues. They end when the last clone of the pool is dropped.
pub(crate) struct CryptoPool<J> {
    jobs: Sender<J>,
    waiting: Receiver<J>,
}

/// A batch to be worked on, and where to send it afterwards.
pub(crate) struct BatchJob<W> {
    batch: W,
    done: Sender<Done<W>>,
}

/// A batch, and whether the work on it panicked.
type Done<W> = (W, thread::Result<()>);

impl<W: Work> Job for BatchJob<W> {
    fn run(mut self) {
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| self.batch.work()));
        // It fails when the queue is gone, and with it the need for this batch.
        let _ = self.done.send((self.batch, outcome));
    }
}

impl<J> Clone for CryptoPool<J> {
    fn clone(&self) -> Self {
        Self { jobs: self.jobs.clone(), waiting: self.waiting.clone() }
    }
}

impl<J: Job> CryptoPool<J> {
    /// Starts `helpers` threads for the jobs of `queues` queues, each of which has two directions.
    pub(crate) fn start(helpers: usize, queues: usize) -> io::Result<Self> {
        Self::spawn(helpers, queues).map(|(pool, _)| pool)
    }

    fn spawn(helpers: usize, queues: usize) -> io::Result<(Self, Vec<JoinHandle<()>>)> {
        let (jobs, waiting) = bounded::<J>(2 * queues * IN_POOL_MAX);
        let helper = |number| {
            let waiting = waiting.clone();
            let run = move || waiting.into_iter().for_each(J::run);
            thread::Builder::new().name(format!("helper-{number}")).spawn(run)
        };
        let threads = (1..=helpers).map(helper).collect::<io::Result<_>>()?;
        Ok((Self { jobs, waiting }, threads))
    }

    /// A job that no helper has begun yet.
    fn take(&self) -> Option<J> {
        self.waiting.try_recv().ok()
    }
}

/// The channel that brings one batch back: the end that a job takes along, and ours.
type Slot<W> = (Sender<Done<W>>, Receiver<Done<W>>);

/// The batches of one queue and one direction that are in the pool, in order.
pub(crate) struct InPool<W, J> {
    pool: CryptoPool<J>,
    /// A ring, whose `count` slots from `oldest` on are in use.
    slots: Vec<Slot<W>>,
    oldest: usize,
    count: usize,
    /// Empty batches whose memory is reused.
    idle: Vec<W>,
}

impl<W: Work, J: Job + From<BatchJob<W>>> InPool<W, J> {
    /// No batch is in the pool.
    pub(crate) fn new(pool: CryptoPool<J>) -> Self {
        let slots = (0..IN_POOL_MAX).map(|_| bounded(1)).collect();
        Self { pool, slots, oldest: 0, count: 0, idle: Vec::new() }
    }

    /// Submits a batch and puts an empty one in its place. Returns false, and leaves the batch as it is, when
    /// [`IN_POOL_MAX`] batches are in the pool already.
    pub(crate) fn submit(&mut self, batch: &mut W) -> bool {
        if self.count == self.slots.len() {
            return false;
        }
        let (done, _) = &self.slots[(self.oldest + self.count) % self.slots.len()];
        let empty = self.idle.pop().unwrap_or_default();
        let job = BatchJob { batch: mem::replace(batch, empty), done: done.clone() };
        self.pool
            .jobs
            .try_send(job.into())
            .expect("the channel has room for everything that may be in the pool");
        self.count += 1;
        true
    }

    /// The oldest batch in the pool, finished. While it is not, this thread runs jobs that no helper has begun.
    pub(crate) fn take_back(&mut self) -> Option<W> {
        if self.count == 0 {
            return None;
        }
        let (_, done) = &self.slots[self.oldest];
        let (batch, outcome) = loop {
            if let Ok(done) = done.try_recv() {
                break done;
            }
            match self.pool.take() {
                Some(job) => job.run(),
                None => break done.recv().expect("the slot holds the channel's other end"),
            }
        };
        self.oldest = (self.oldest + 1) % self.slots.len();
        self.count -= 1;
        if let Err(panic) = outcome {
            panic::resume_unwind(panic);
        }
        Some(batch)
    }

    /// Keeps a batch that came back, and is empty again, for reuse.
    pub(crate) fn recycle(&mut self, batch: W) {
        self.idle.push(batch);
    }
}

#[cfg(test)]
mod models;

#[cfg(test)]
mod tests {
    use std::{
        thread,
        time::{Duration, Instant},
    };

    use proptest::prelude::*;

    use super::*;

    /// A batch whose work is to sleep.
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

    /// Plays a queue that submits its batches, except those marked `alone`, and checks that all come back in order.
    fn queue(pool: CryptoPool<BatchJob<Nap>>, naps: &[(u64, bool)]) {
        let mut in_pool = InPool::<Nap, _>::new(pool);
        let mut returned = 0;
        let mut take = |nap: &mut Nap| {
            assert!(nap.done && nap.number == returned, "{} instead of {returned}", nap.number);
            returned += 1;
            *nap = Nap::default();
        };
        let mut nap = Nap::default();
        for (number, (microseconds, alone)) in naps.iter().enumerate() {
            (nap.number, nap.microseconds) = (number, *microseconds);
            if !alone && in_pool.submit(&mut nap) {
                continue;
            }
            while let Some(mut done) = in_pool.take_back() {
                take(&mut done);
                in_pool.recycle(done);
            }
            nap.work();
            take(&mut nap);
        }
        while let Some(mut done) = in_pool.take_back() {
            take(&mut done);
            in_pool.recycle(done);
        }
        assert_eq!(returned, naps.len());
        assert!(in_pool.idle.len() <= IN_POOL_MAX, "memory is reused");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn batches_come_back_in_order(
            helpers in 1..6_usize,
            queues in prop::collection::vec(
                prop::collection::vec((0..200_u64, prop::bool::weighted(0.1)), 0..40), 1..4,
            ),
        ) {
            let pool = CryptoPool::start(helpers, queues.len()).unwrap();
            thread::scope(|scope| {
                for naps in &queues {
                    let pool = pool.clone();
                    scope.spawn(move || queue(pool, naps));
                }
            });
        }
    }

    #[test]
    fn a_panic_in_a_helper_resumes_in_the_queue_and_the_helper_goes_on() {
        let mut in_pool = InPool::<Nap, BatchJob<Nap>>::new(CryptoPool::start(1, 1).unwrap());
        let mut nap = Nap { done: true, ..Nap::default() };
        assert!(in_pool.submit(&mut nap));
        let panicked = panic::catch_unwind(AssertUnwindSafe(|| in_pool.take_back().is_some()));
        assert!(panicked.is_err());
        assert!(in_pool.submit(&mut nap) && in_pool.take_back().is_some_and(|nap| nap.done));
    }

    #[test]
    fn helpers_end_when_the_last_user_of_the_pool_is_gone() {
        let (pool, threads) = CryptoPool::<BatchJob<Nap>>::spawn(3, 1).unwrap();
        drop(InPool::<Nap, _>::new(pool));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !threads.iter().all(JoinHandle::is_finished) {
            assert!(Instant::now() < deadline, "a helper is still waiting for jobs");
            thread::yield_now();
        }
    }
}
