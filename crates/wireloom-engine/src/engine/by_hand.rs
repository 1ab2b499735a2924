//! Workers that get their turns from a test.

use std::{cell::RefCell, io, mem, rc::Rc};

use wireloom_proto::Now;

use super::{Runner, Worker};
use crate::{
    runtime::turn::{Backlog, Ready},
    tun::MemoryQueue,
    udp::MemoryUdp,
};

pub(crate) type MemoryWorker = Worker<MemoryQueue, MemoryUdp>;

/// The workers that run. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct ByHand(Rc<RefCell<Vec<MemoryWorker>>>);

impl Runner<MemoryWorker> for ByHand {
    fn start(&mut self, workers: Vec<MemoryWorker>) {
        self.0.borrow_mut().extend(workers);
    }

    fn stop(&mut self) -> io::Result<Vec<MemoryWorker>> {
        Ok(mem::take(&mut self.0.borrow_mut()))
    }
}

impl ByHand {
    /// Gives a turn to the worker of a queue, if there is such a one.
    pub(crate) fn turn(&self, now: Now, queue: usize) -> Option<Backlog> {
        let mut workers = self.0.borrow_mut();
        Some(workers.get_mut(queue)?.turn(now, Ready::ALL).expect("memory does not fail"))
    }
}
