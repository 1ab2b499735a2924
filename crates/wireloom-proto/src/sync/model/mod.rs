//! Stand-ins that loom takes over within [`check`], and that are the real ones elsewhere.
//!
//! Loom runs a test again and again, once for every order in which its threads' accesses can happen and for every
//! value that a load may return under the C11 memory model. Its threads are coroutines of one thread of the system.

mod arc_swap;
pub(crate) mod atomic;
mod mutex;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) use self::arc_swap::{ArcSwap, ArcSwapOption, Guard};
pub(crate) use self::mutex::{Mutex, MutexGuard};

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

/// Which interleavings are tried.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    /// All of them.
    Exhaustive,
    /// Those in which a thread that could go on is interrupted at most this often. Most faults need two (Musuvathi and
    /// Qadeer, PLDI 2007).
    Preemptions(usize),
}

/// The stacks of a model's threads, in bytes. Loom's own are 32 KiB, too small for a block of the session table.
const STACK: usize = 1 << 19;

/// Runs a test of several threads in every interleaving within the bound. Panics as soon as the test does in one.
pub(crate) fn check(bound: Bound, test: impl Fn() + Send + Sync + 'static) {
    let executions = Arc::new(AtomicUsize::new(0));
    let _running = Running::begin();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = match bound {
        Bound::Exhaustive => None,
        Bound::Preemptions(times) => Some(times),
    };
    let (test, counted) = (Arc::new(test), Arc::clone(&executions));
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        let test = Arc::clone(&test);
        spawn(move || test()).join().expect("the test");
    });
    let executions = executions.load(Ordering::Relaxed);
    println!("{executions} executions, {bound:?}");
    assert!(executions > 1, "nothing is concurrent in it");
}

/// Starts a thread of the model. With the one that runs the test there may be four.
pub(crate) fn spawn<T: Send + 'static>(
    run: impl FnOnce() -> T + Send + 'static,
) -> loom::thread::JoinHandle<T> {
    loom::thread::Builder::new().stack_size(STACK / size_of::<usize>()).spawn(run).expect("loom starts it")
}
