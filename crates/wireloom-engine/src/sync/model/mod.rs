//! Stand-ins that loom takes over within [`check`], and that are the real ones elsewhere.
//!
//! Loom runs a test again and again, once for every order in which its threads can go on. Its threads are coroutines
//! of one thread of the system. `wireloom-proto` has the same for atomics, in its own unit tests.

pub(crate) mod channel;
pub(crate) mod event;
pub(crate) mod thread;

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread runs a model. What is created then belongs to the model.
fn is_running() -> bool {
    RUNNING.get()
}

/// Says that a model runs, until it is dropped.
struct Running;

impl Running {
    fn begin() -> Self {
        assert!(!RUNNING.replace(true), "models are not nested");
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.set(false);
    }
}

/// Runs a test of several threads in every interleaving in which a thread that could go on is interrupted at most
/// `preemptions` times. Panics as soon as the test does in one, or when all threads wait for each other.
pub(crate) fn check(preemptions: usize, test: impl Fn() + Send + Sync + 'static) {
    let executions = Arc::new(AtomicUsize::new(0));
    let _running = Running::begin();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    let counted = Arc::clone(&executions);
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        test();
    });
    let executions = executions.load(Ordering::Relaxed);
    println!("{executions} executions, {preemptions} preemptions");
    assert!(executions > 1, "nothing is concurrent in it");
}
