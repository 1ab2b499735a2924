//! Threads that turn queues.

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

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};

use crate::{
    bell::Bell,
    clock,
    doze::doze,
    queue::{Queue, Runner},
    tun::LinuxQueue,
    turn::{Ready, Rest},
    udp::LinuxUdp,
};

type LinuxQueues = Queue<LinuxQueue, LinuxUdp>;

/// Threads that were started in advance, each for one queue. They end with this value.
pub(crate) struct Threads(Vec<Thread>);

struct Thread {
    queues: Sender<LinuxQueues>,
    back: Receiver<(LinuxQueues, thread::Result<io::Result<()>>)>,
    halt: Arc<AtomicBool>,
    /// Of the queue that it has.
    bell: Option<Bell>,
}

impl Threads {
    /// Starts them. They have the signal mask and the privileges of the one who calls.
    pub(crate) fn start(count: usize) -> io::Result<Self> {
        (1..=count).map(Thread::start).collect::<io::Result<_>>().map(Self)
    }
}

impl Runner<LinuxQueues> for Threads {
    fn start(&mut self, queues: Vec<LinuxQueues>) {
        for (thread, queue) in self.0.iter_mut().zip(queues) {
            thread.halt.store(false, Ordering::Relaxed);
            thread.bell = Some(queue.bell().clone());
            thread.queues.send(queue).expect("the thread waits for queues");
        }
    }

    fn stop(&mut self) -> io::Result<Vec<LinuxQueues>> {
        // All are told before the first one is waited for.
        for thread in &self.0 {
            thread.halt();
        }
        let mut outcome = Ok(());
        let mut queues = Vec::new();
        for thread in &mut self.0 {
            if thread.bell.take().is_some() {
                let (queue, ended) = thread.back.recv().expect("the thread gives its queue back");
                queues.push(queue);
                outcome = outcome.and(ended.unwrap_or_else(|panic| panic::resume_unwind(panic)));
            }
        }
        outcome.map(|()| queues)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for thread in &self.0 {
            thread.halt();
        }
        for thread in mem::take(&mut self.0) {
            if thread.bell.is_some() {
                // Whatever it ended with: nobody is left to tell.
                let _ = thread.back.recv();
            }
        }
    }
}

impl Thread {
    fn start(number: usize) -> io::Result<Self> {
        let (queues, waiting) = channel::<LinuxQueues>();
        let (done, back) = channel();
        let halt = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&halt);
        thread::Builder::new().name(format!("queue-{number}")).spawn(move || {
            for mut queue in waiting {
                let ended = panic::catch_unwind(AssertUnwindSafe(|| turn(&mut queue, &told)));
                if !matches!(ended, Ok(Ok(()))) {
                    queue.give_up();
                }
                if done.send((queue, ended)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { queues, back, halt, bell: None })
    }

    fn halt(&self) {
        self.halt.store(true, Ordering::Relaxed);
        if let Some(bell) = &self.bell {
            bell.ring();
        }
    }
}

/// Turns the queue until it is told to halt.
fn turn(queue: &mut LinuxQueues, halt: &AtomicBool) -> io::Result<()> {
    let mut ready = Ready::ALL;
    while !halt.load(Ordering::Relaxed) {
        let rest = match queue.turn(clock::now()?, ready)? {
            Rest::None => Some(Duration::ZERO),
            Rest::Light(_) if doze(&mut traffic(queue))? => Some(Duration::ZERO),
            Rest::Light(_) | Rest::Until(_) | Rest::Forever => None,
        };
        ready = wait(queue, rest)?;
    }
    Ok(())
}

/// Where packets and datagrams come from, to be polled: the interface, unless its packets have to wait,
/// and the port's sockets.
fn traffic(queue: &LinuxQueues) -> [PollFd<'_>; 3] {
    let nobody = || PollFd::new(queue.bell().as_fd(), PollFlags::empty());
    let packets = queue.takes_packets().then(|| queue.tun().packets());
    let mut sockets = queue.udp().into_iter().flat_map(LinuxUdp::sockets);
    [packets, sockets.next(), sockets.next()]
        .map(|fd| fd.map_or_else(nobody, |fd| PollFd::new(fd, PollFlags::POLLIN)))
}

/// Waits until there is something to do, but no longer than `rest`; `None` is for ever.
fn wait(queue: &LinuxQueues, rest: Option<Duration>) -> io::Result<Ready> {
    let [packets, v4, v6] = traffic(queue);
    let mut fds = [packets, v4, v6, PollFd::new(queue.bell().as_fd(), PollFlags::POLLIN)];
    match ppoll(&mut fds, rest.map(TimeSpec::from), None) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let [packets, v4, v6, bell] = fds.map(|fd| fd.any().unwrap_or_default());
    // The bell may tell that packets need not wait any more.
    Ok(Ready { packets: packets || bell, events: false, datagrams: v4 || v6 })
}
