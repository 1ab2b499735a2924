//! Steps that take a while.

use std::{
    io::{Write as _, stdout},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

/// Does a part of the demo, and prints what it is, a dot each second, and how long it took.
pub(super) fn step<T>(what: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let began = Instant::now();
    print(&format!("{what} "));
    let outcome = thread::scope(|scope| {
        // Dropped when the work is done, also by a panic.
        let (_working, watch) = channel::<()>();
        scope.spawn(move || {
            while watch.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                print(".");
            }
        });
        work()
    });
    match outcome {
        Ok(_) => anstream::println!(" {:.1} s", began.elapsed().as_secs_f64()),
        Err(_) => anstream::println!(),
    }
    outcome
}

fn print(text: &str) {
    anstream::print!("{text}");
    // There is nothing to do about a terminal that is gone.
    let _ = stdout().flush();
}
