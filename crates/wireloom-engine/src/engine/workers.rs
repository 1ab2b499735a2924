//! The workers, as the engine sees them.

use std::{io, mem, sync::Arc};

use wireloom_proto::{DropReason, Now};

use super::worker::{Runner, Worker};
use crate::{
    data_path::DataPath,
    drops::Drops,
    punt::{KnownAddresses, Punted, punts},
    runtime::wake_up::WakeUp,
    tun::TunQueue,
    udp::Udp,
};

/// The most rounds of receiving before sockets are closed, by all workers together. Each takes up to half a megabyte,
/// so those of one worker empty the receive buffers of both families; a flood that fills these meanwhile is not waited
/// for.
const REST_MAX: usize = 32;

/// The workers for all queues. They run while the port is open.
pub(super) struct Workers<T, U> {
    runner: Box<dyn Runner<Worker<T, U>>>,
    /// Workers that do not run.
    idle: Vec<Worker<T, U>>,
    punted: Vec<Punted>,
    wake_up: WakeUp,
    /// Why the engine cannot go on: one of the threads has ended.
    failure: Option<io::Error>,
}

impl<T: TunQueue, U: Udp> Workers<T, U> {
    /// Makes a worker for each queue.
    pub(super) fn new(
        queues: Vec<T>,
        data_path: impl Fn() -> DataPath,
        known_addresses: &KnownAddresses,
        drops: &Arc<Drops>,
        runner: Box<dyn Runner<Worker<T, U>>>,
    ) -> io::Result<Self> {
        let wake_up = WakeUp::new()?;
        let mut idle = Vec::with_capacity(queues.len());
        let mut punted = Vec::with_capacity(queues.len());
        for tun in queues {
            let (punter, from_worker) = punts(&wake_up, known_addresses, drops);
            idle.push(Worker::new(data_path(), punter, tun)?);
            punted.push(from_worker);
        }
        Ok(Self { runner, idle, punted, wake_up, failure: None })
    }

    /// The number of workers.
    pub(super) fn len(&self) -> usize {
        self.punted.len()
    }

    /// Signalled when a worker has punted something.
    pub(super) fn wake_up(&self) -> &WakeUp {
        &self.wake_up
    }

    /// What the workers have punted.
    pub(super) fn punted(&self) -> &[Punted] {
        &self.punted
    }

    /// Looks whether all threads run that should.
    ///
    /// # Errors
    /// Why one of them has ended.
    pub(super) fn check(&mut self) -> io::Result<()> {
        if self.punted.iter().any(Punted::has_ended) {
            self.stop();
        }
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Gives each worker its sockets. [`Self::resume`] runs them.
    pub(super) fn give(&mut self, sockets: Vec<U>, mtu: usize) {
        for (worker, udp) in self.idle.iter_mut().zip(sockets) {
            worker.set_udp(Some(udp));
            worker.set_mtu(mtu);
        }
    }

    /// Runs the workers, if they have sockets.
    pub(super) fn resume(&mut self) {
        if self.idle.iter().any(|worker| worker.udp().is_some()) {
            self.runner.start(mem::take(&mut self.idle));
        }
    }

    /// Stops the workers, and has each do something last. They keep their sockets.
    pub(super) fn halt(&mut self, last: impl FnMut(&mut Worker<T, U>)) {
        let mut stopped = self.stop();
        stopped.iter_mut().for_each(last);
        self.idle.append(&mut stopped);
    }

    /// Stops the workers, and has them deliver what has arrived at their sockets, which are about to be closed.
    pub(super) fn read_rest(&mut self, now: Now) {
        let rounds = REST_MAX.div_ceil(self.len().max(1));
        self.halt(|worker| worker.read_rest(now, rounds));
    }

    /// Stops the workers and closes their sockets before it returns. What they have punted stays.
    pub(super) fn close(&mut self) {
        self.halt(|_| ());
        for worker in &mut self.idle {
            worker.set_udp(None);
        }
    }

    /// Discards what the workers have punted, and counts its packets: the sessions are about to go. Call
    /// [`Self::close`] first.
    pub(super) fn forget_punts(&self, drops: &Drops) {
        let packets: u64 = self.punted.iter().map(Punted::clear).sum();
        drops.count_many(DropReason::Forgotten, packets);
    }

    /// Changes each worker while none runs. Those that ran before run again afterwards.
    pub(super) fn change(&mut self, change: impl FnMut(&mut Worker<T, U>)) {
        let mut stopped = self.stop();
        self.idle.iter_mut().chain(&mut stopped).for_each(change);
        self.runner.start(stopped);
    }

    /// The workers that do not run.
    #[cfg(test)]
    pub(super) fn into_idle(self) -> Vec<Worker<T, U>> {
        self.idle
    }

    fn stop(&mut self) -> Vec<Worker<T, U>> {
        self.runner.stop().unwrap_or_else(|error| {
            self.failure = Some(error);
            Vec::new()
        })
    }
}
