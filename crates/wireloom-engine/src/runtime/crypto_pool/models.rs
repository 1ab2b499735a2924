//! Model checks of the pool. See [`crate::sync::model`]. The work itself takes no step: helpers and queue meet only in
//! the channels.

use super::*;
use crate::sync::model::check;

/// A batch whose work is to be marked, or to panic.
#[derive(Default)]
struct Batch {
    number: usize,
    panics: bool,
    done: bool,
}

impl Work for Batch {
    fn work(&mut self) {
        assert!(!self.done, "worked on twice");
        self.done = true;
        if self.panics {
            // Without the message of a panic, which would be printed in each of the executions.
            panic::resume_unwind(Box::new(self.number));
        }
    }
}

type Pool = CryptoPool<BatchJob<Batch>>;

/// Submits batches with these numbers.
fn submit(queue: &mut InPool<Batch, BatchJob<Batch>>, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let mut batch = Batch { number, ..Batch::default() };
        assert!(queue.submit(&mut batch));
        assert!(!batch.done, "an empty one is in its place");
    }
}

/// Takes everything back, and checks that these are the batches, in order.
fn take_back(queue: &mut InPool<Batch, BatchJob<Batch>>, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let batch = queue.take_back().expect("it was submitted");
        assert!(batch.done);
        assert_eq!(batch.number, number);
    }
    assert!(queue.take_back().is_none());
}

/// Drops the last use of the pool, and waits for the helpers: loom finds out if one never ends.
fn end(queue: InPool<Batch, BatchJob<Batch>>, helpers: Vec<JoinHandle<()>>) {
    drop(queue);
    for helper in helpers {
        helper.join().expect("no panic gets out of a job");
    }
}

#[test]
fn batches_come_back_in_order_and_nobody_waits_for_ever() {
    check(2, || {
        let (pool, helpers) = Pool::spawn(2, 1).unwrap();
        let mut queue = InPool::new(pool);
        submit(&mut queue, 0..2);
        take_back(&mut queue, 0..2);
        submit(&mut queue, 2..3);
        take_back(&mut queue, 2..3);
        end(queue, helpers);
    });
}

#[test]
fn two_queues_share_a_helper() {
    check(2, || {
        let (pool, mut helpers) = Pool::spawn(1, 2).unwrap();
        let other = {
            let mut queue = InPool::new(pool.clone());
            let run = move || {
                submit(&mut queue, 0..1);
                take_back(&mut queue, 0..1);
            };
            thread::Builder::new().spawn(run).unwrap()
        };
        helpers.push(other);
        let mut queue = InPool::new(pool);
        submit(&mut queue, 10..12);
        take_back(&mut queue, 10..12);
        end(queue, helpers);
    });
}

#[test]
fn a_panic_resumes_in_the_queue_in_its_turn_and_the_helper_goes_on() {
    check(2, || {
        let (pool, helpers) = Pool::spawn(1, 1).unwrap();
        let mut queue = InPool::new(pool);
        submit(&mut queue, 0..1);
        assert!(queue.submit(&mut Batch { number: 1, panics: true, done: false }));
        submit(&mut queue, 2..3);
        assert_eq!(queue.take_back().expect("it was submitted").number, 0);
        let panicked = panic::catch_unwind(AssertUnwindSafe(|| queue.take_back().is_some()));
        assert_eq!(panicked.expect_err("it panics").downcast_ref(), Some(&1_usize));
        take_back(&mut queue, 2..3);
        end(queue, helpers);
    });
}

/// The queue ends without taking its batches back, as a worker does that panics.
#[test]
fn helpers_end_when_a_queue_leaves_its_batches_behind() {
    check(2, || {
        let (pool, helpers) = Pool::spawn(2, 1).unwrap();
        let mut queue = InPool::new(pool);
        submit(&mut queue, 0..2);
        end(queue, helpers);
    });
}
