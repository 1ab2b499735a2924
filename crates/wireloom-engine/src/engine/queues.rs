//! The queues that other threads turn, as the engine sees them.

use std::{io, sync::Arc};

use wireloom_proto::{Device, Now};

use crate::{
    bell::Bell,
    drops::Drops,
    punt::{LinkPunt, Punt, Punted, Punting, punts},
    queue::{Queue, Runner},
    tun::TunQueue,
    udp::Udp,
    worker::{Backlog, Worker},
};

/// How many packets' worth of work is done for one queue before the others, and the packets of the engine's
/// own, get their turn.
const WORK_IN_A_ROW: usize = 256;

/// The queues but the engine's own. They are turned while the port is open.
pub(super) struct Queues<T, U> {
    runner: Box<dyn Runner<Queue<T, U>>>,
    /// Those that nobody turns.
    idle: Vec<Queue<T, U>>,
    punted: Vec<Punted>,
    bell: Bell,
    /// Why there is no going on: one of the threads has ended.
    failure: Option<io::Error>,
}

impl<T: TunQueue, U: Udp> Queues<T, U> {
    /// Makes a queue of each of the interface's.
    pub(super) fn new(
        queues: Vec<T>,
        worker: impl Fn(&Punting) -> Worker,
        drops: &Arc<Drops>,
        runner: Box<dyn Runner<Queue<T, U>>>,
    ) -> io::Result<Self> {
        let bell = Bell::new()?;
        let mut idle = Vec::with_capacity(queues.len());
        let mut punted = Vec::with_capacity(queues.len());
        for tun in queues {
            let (punting, end) = punts(&bell, drops)?;
            idle.push(Queue::new(worker(&punting), punting, tun));
            punted.push(end);
        }
        Ok(Self { runner, idle, punted, bell, failure: None })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.punted.len()
    }

    /// Rung when one of them has something for the device.
    pub(super) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Gives each its sockets, and has them turned.
    pub(super) fn open(&mut self, sockets: Vec<U>, mtu: usize) {
        for (queue, udp) in self.idle.iter_mut().zip(sockets) {
            queue.set_udp(Some(udp));
            queue.set_mtu(mtu);
        }
        self.runner.start(std::mem::take(&mut self.idle));
    }

    /// Takes their sockets away. When this returns, these are closed.
    pub(super) fn close(&mut self) {
        let mut turned = self.stop();
        self.idle.append(&mut turned);
        for queue in &mut self.idle {
            queue.set_udp(None);
        }
        // It was for sessions that are gone.
        self.punted.iter_mut().for_each(Punted::clear);
    }

    /// Changes each of them, while nobody turns it; afterwards all are as busy as before.
    pub(super) fn change(&mut self, change: impl FnMut(&mut Queue<T, U>)) {
        let mut turned = self.stop();
        self.idle.iter_mut().chain(&mut turned).for_each(change);
        self.runner.start(turned);
    }

    fn stop(&mut self) -> Vec<Queue<T, U>> {
        self.runner.stop().unwrap_or_else(|error| {
            self.failure = Some(error);
            Vec::new()
        })
    }

    /// Hands to the device what they have for it, and to `link` what they have for that, which tells how many
    /// packets' worth of work that was; the device's datagrams are to be sent afterwards, and then
    /// [`Self::packets_are_sent`] is to be called.
    ///
    /// # Errors
    /// Why one of the threads has ended.
    pub(super) fn serve(
        &mut self,
        now: Now,
        device: &mut Device,
        mtu: usize,
        drops: &Drops,
        mut link: impl FnMut(&mut Device, LinkPunt) -> usize,
    ) -> io::Result<Backlog> {
        self.bell.silence();
        let mut backlog = Backlog::Empty;
        for place in 0..self.punted.len() {
            let mut work = 0;
            while let Some(punt) = self.punted[place].poll() {
                work += 1;
                let outcome = match punt {
                    Punt::Handshake { from, datagram } => device.handle_handshake(now, from, &datagram),
                    Punt::Packet { peer, packet } => device.handle_outgoing(now, peer, &packet, mtu),
                    Punt::Link(punt) => {
                        work += link(device, punt);
                        Ok(())
                    }
                    Punt::Signal(signal) => {
                        device.handle_signal(now, signal);
                        Ok(())
                    }
                    Punt::Seek(peer) => {
                        device.begin_handshake(now, peer);
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

    /// What the device had to send for them was sent.
    pub(super) fn packets_are_sent(&mut self) {
        self.punted.iter_mut().for_each(Punted::packets_are_sent);
    }
}
