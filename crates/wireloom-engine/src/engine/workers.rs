//! The workers, as the engine sees them.

use std::{io, sync::Arc};

use arc_swap::ArcSwap;
use wireloom_proto::{Device, DropReason};

use super::worker::{Runner, Worker};
use crate::{
    data_path::{DataPath, Forwarder, PublishedTable, Turn},
    drops::Drops,
    icmp::Limiter,
    link::{Link, NeighbourTable},
    punt::{Punt, Punted, SlowPath, punts},
    runtime::{turn::Backlog, wake_up::WakeUp},
    tun::TunQueue,
    udp::Udp,
};

/// The most packets' worth of work that is done for one worker before the others, and the engine's own packets, have
/// their turn.
const WORK_IN_A_ROW: usize = 256;

/// The workers for all queues but the engine's own. They run while the port is open.
pub(super) struct Workers<T, U> {
    runner: Box<dyn Runner<Worker<T, U>>>,
    /// Workers that do not run.
    idle: Vec<Worker<T, U>>,
    punted: Vec<Punted>,
    wake_up: WakeUp,
    /// The neighbour table that the workers read, in link mode.
    neighbours: Option<PublishedTable>,
    /// Why the engine cannot go on: one of the threads has ended.
    failure: Option<io::Error>,
}

impl<T: TunQueue, U: Udp> Workers<T, U> {
    /// Makes a worker for each queue, with a data path for each forwarder. `link` is given in link mode.
    pub(super) fn new(
        queues: Vec<T>,
        data_path: impl Fn(Forwarder) -> DataPath,
        link: Option<&Link>,
        drops: &Arc<Drops>,
        runner: Box<dyn Runner<Worker<T, U>>>,
    ) -> io::Result<Self> {
        let wake_up = WakeUp::new()?;
        let neighbours = link.map(|link| Arc::new(ArcSwap::new(Arc::clone(link.table()))));
        let mut idle = Vec::with_capacity(queues.len());
        let mut punted = Vec::with_capacity(queues.len());
        for tun in queues {
            let (punter, engine_end) = punts(&wake_up, drops)?;
            let forwarder = match &neighbours {
                None => Forwarder::AllowedIps(Limiter::default()),
                Some(table) => Forwarder::Neighbours { table: Arc::clone(table), punter: punter.clone() },
            };
            idle.push(Worker::new(data_path(forwarder), punter, tun));
            punted.push(engine_end);
        }
        Ok(Self { runner, idle, punted, wake_up, neighbours, failure: None })
    }

    /// The number of workers.
    pub(super) fn len(&self) -> usize {
        self.punted.len()
    }

    /// Signalled when a worker has punted something.
    pub(super) fn wake_up(&self) -> &WakeUp {
        &self.wake_up
    }

    /// Lets the workers see the neighbour table as it is now.
    pub(super) fn publish(&self, table: &Arc<NeighbourTable>) {
        if let Some(published) = &self.neighbours
            && !Arc::ptr_eq(&published.load(), table)
        {
            published.store(Arc::clone(table));
        }
    }

    /// Gives each worker its sockets, and runs it.
    pub(super) fn open(&mut self, sockets: Vec<U>, mtu: usize) {
        for (worker, udp) in self.idle.iter_mut().zip(sockets) {
            worker.set_udp(Some(udp));
            worker.set_mtu(mtu);
        }
        self.runner.start(std::mem::take(&mut self.idle));
    }

    /// Stops the workers and closes their sockets before it returns. What they have punted stays.
    pub(super) fn close(&mut self) {
        let mut stopped = self.stop();
        self.idle.append(&mut stopped);
        for worker in &mut self.idle {
            worker.set_udp(None);
        }
    }

    /// Discards what the workers have punted, and counts its packets: the sessions are about to go. Call
    /// [`Self::close`] first.
    pub(super) fn forget_punts(&mut self, drops: &Drops) {
        let packets: u64 = self.punted.iter_mut().map(Punted::clear).sum();
        drops.count_many(DropReason::Forgotten, packets);
    }

    /// Changes each worker while none runs. Those that ran before run again afterwards.
    pub(super) fn change(&mut self, change: impl FnMut(&mut Worker<T, U>)) {
        let mut stopped = self.stop();
        self.idle.iter_mut().chain(&mut stopped).for_each(change);
        self.runner.start(stopped);
    }

    fn stop(&mut self) -> Vec<Worker<T, U>> {
        self.runner.stop().unwrap_or_else(|error| {
            self.failure = Some(error);
            Vec::new()
        })
    }

    /// Hands what the workers have punted to the device, and to `data_path`, which owns the link. Afterwards, send the
    /// device's datagrams and then call [`Self::packets_are_sent`].
    ///
    /// # Errors
    /// Why one of the threads has ended.
    pub(super) fn serve(
        &mut self,
        data_path: &mut DataPath,
        drops: &Drops,
        turn: &mut Turn<'_, Device, T, U>,
    ) -> io::Result<Backlog> {
        self.wake_up.clear();
        let mut backlog = Backlog::Empty;
        for number in 0..self.punted.len() {
            let mut work = 0;
            while let Some(punt) = self.punted[number].poll() {
                work += 1;
                let outcome = match punt {
                    Punt::Handshake { from, datagram } => {
                        turn.slow_path.handle_handshake(turn.now, from, &datagram)
                    }
                    Punt::Packet { peer, packet } => {
                        turn.slow_path.handle_outgoing(turn.now, peer, &packet, turn.mtu)
                    }
                    Punt::Frame { header, frame } => {
                        work += data_path.handle_frame(header, frame, turn);
                        Ok(())
                    }
                    Punt::PathMtus(reports) => {
                        turn.slow_path.learn_path_mtus(turn.now, reports);
                        Ok(())
                    }
                    Punt::Signal(signal) => {
                        turn.slow_path.handle_signal(turn.now, signal);
                        Ok(())
                    }
                    Punt::BeginHandshake(peer) => {
                        turn.slow_path.begin_handshake(turn.now, peer);
                        Ok(())
                    }
                    Punt::Ended => {
                        self.stop();
                        break;
                    }
                };
                if let Err(reason) = outcome {
                    drops.count(reason);
                }
                if work >= WORK_IN_A_ROW {
                    backlog = Backlog::More;
                    break;
                }
            }
        }
        self.failure.take().map_or(Ok(backlog), Err)
    }

    /// Releases the workers: the datagrams that the device had for them were sent.
    pub(super) fn packets_are_sent(&mut self) {
        self.punted.iter_mut().for_each(Punted::packets_are_sent);
    }
}
