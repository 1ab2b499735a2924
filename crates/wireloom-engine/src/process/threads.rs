//! The threads that run workers.

use std::{
    io, mem,
    os::fd::AsFd,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use nix::poll::PollFd;

use super::{
    clock,
    poll::{self, nothing, readable},
};
use crate::{
    engine::{Runner, Worker},
    runtime::{
        busy_poll::busy_poll,
        turn::{Backlog, Ready},
        wake_up::WakeUp,
    },
    tun::LinuxQueue,
    udp::LinuxUdp,
};

type LinuxWorker = Worker<LinuxQueue, LinuxUdp>;

/// Threads that were started in advance, one for each worker. They end when this value is dropped.
pub(crate) struct Threads(Vec<Thread>);

struct Thread {
    workers: Sender<LinuxWorker>,
    back: Receiver<(LinuxWorker, thread::Result<io::Result<()>>)>,
    halt: Arc<AtomicBool>,
    /// The wake-up of the worker that it runs.
    wake_up: Option<WakeUp>,
}

impl Threads {
    /// Starts the threads, with the signal mask and the privileges of the caller.
    pub(crate) fn start(count: usize) -> io::Result<Self> {
        (1..=count).map(Thread::start).collect::<io::Result<_>>().map(Self)
    }
}

impl Runner<LinuxWorker> for Threads {
    fn start(&mut self, workers: Vec<LinuxWorker>) {
        for (thread, worker) in self.0.iter_mut().zip(workers) {
            thread.halt.store(false, Ordering::Relaxed);
            thread.wake_up = Some(worker.wake_up().clone());
            thread.workers.send(worker).expect("the thread waits for workers");
        }
    }

    fn stop(&mut self) -> io::Result<Vec<LinuxWorker>> {
        // Tell all threads before waiting for the first one.
        for thread in &self.0 {
            thread.halt();
        }
        let mut outcome = Ok(());
        let mut workers = Vec::new();
        for thread in &mut self.0 {
            if thread.wake_up.take().is_some() {
                let (worker, ended) = thread.back.recv().expect("the thread gives its worker back");
                workers.push(worker);
                outcome = outcome.and(ended.unwrap_or_else(|panic| panic::resume_unwind(panic)));
            }
        }
        outcome.map(|()| workers)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for thread in &self.0 {
            thread.halt();
        }
        for thread in mem::take(&mut self.0) {
            if thread.wake_up.is_some() {
                // Nobody is left to report an error to.
                let _ = thread.back.recv();
            }
        }
    }
}

impl Thread {
    fn start(number: usize) -> io::Result<Self> {
        let (workers, waiting) = channel::<LinuxWorker>();
        let (done, back) = channel();
        let halt = Arc::new(AtomicBool::new(false));
        let told_to_halt = Arc::clone(&halt);
        thread::Builder::new().name(format!("queue-{number}")).spawn(move || {
            for mut worker in waiting {
                let ended = panic::catch_unwind(AssertUnwindSafe(|| run(&mut worker, &told_to_halt)));
                if !matches!(ended, Ok(Ok(()))) {
                    worker.report_end();
                }
                if done.send((worker, ended)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { workers, back, halt, wake_up: None })
    }

    fn halt(&self) {
        self.halt.store(true, Ordering::Relaxed);
        if let Some(wake_up) = &self.wake_up {
            wake_up.signal();
        }
    }
}

/// Runs the worker until it is told to halt.
fn run(worker: &mut LinuxWorker, halt: &AtomicBool) -> io::Result<()> {
    let mut ready = Ready::ALL;
    while !halt.load(Ordering::Relaxed) {
        let timeout = match worker.turn(clock::now()?, ready)? {
            Backlog::More => Some(Duration::ZERO),
            Backlog::MoreExpected if busy_poll(&mut traffic(worker))? => Some(Duration::ZERO),
            Backlog::MoreExpected | Backlog::Empty => None,
        };
        ready = wait(worker, timeout)?;
    }
    Ok(())
}

/// The sources of packets and datagrams, to be polled: the interface, and the port's sockets, one for each family.
fn traffic(worker: &LinuxWorker) -> [PollFd<'_>; 3] {
    let mut sockets = worker.udp().into_iter().flat_map(LinuxUdp::sockets);
    let mut socket = || sockets.next().map_or(nothing(worker.wake_up().as_fd()), readable);
    [readable(worker.tun().packets()), socket(), socket()]
}

/// Waits until there is something to do, but no longer than `timeout`; `None` means for ever.
fn wait(worker: &LinuxWorker, timeout: Option<Duration>) -> io::Result<Ready> {
    let [packets, v4, v6] = traffic(worker);
    let fds = [packets, v4, v6, readable(worker.wake_up().as_fd())];
    let [packets, v4, v6, woken] = poll::wait(fds, timeout)?;
    if woken {
        // To halt, or it was meant for the last time that this worker ran.
        worker.wake_up().clear();
    }
    Ok(Ready { packets, datagrams: v4 || v6 })
}
