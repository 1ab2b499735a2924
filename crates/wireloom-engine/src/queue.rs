//! A queue of the interface, with UDP sockets of its own, for a thread of its own.

use std::io;

use wireloom_proto::Now;

use crate::{
    bell::Bell,
    punt::{Punt, Punting},
    slow_path::SlowPath,
    tun::TunQueue,
    turn::{Ready, Rest},
    udp::Udp,
    worker::{Backlog, Worker},
};

/// Carries packets between one queue of the interface and one set of sockets, without the device.
///
/// Nothing in it waits, as with the [`Engine`](crate::engine::Engine), which carries the packets of the
/// first queue itself. What there is to be set is set while nobody turns it: see [`Runner`].
pub(crate) struct Queue<T, U> {
    worker: Worker,
    punting: Punting,
    tun: T,
    /// While the interface is up.
    udp: Option<U>,
    mtu: usize,
}

/// Has queues turned, each by a thread of its own.
pub(crate) trait Runner<Q> {
    /// Has these turned from now on.
    fn start(&mut self, queues: Vec<Q>);

    /// Gives them all back, in their order, when the turns that they are in are over.
    ///
    /// # Errors
    /// Why one of the threads has ended; then there is no going on, and no queue comes back.
    fn stop(&mut self) -> io::Result<Vec<Q>>;
}

impl<T: TunQueue, U: Udp> Queue<T, U> {
    pub(crate) fn new(worker: Worker, punting: Punting, tun: T) -> Self {
        Self { worker, punting, tun, udp: None, mtu: 0 }
    }

    pub(crate) fn worker_mut(&mut self) -> &mut Worker {
        &mut self.worker
    }

    pub(crate) fn set_udp(&mut self, udp: Option<U>) {
        self.udp = udp;
    }

    pub(crate) fn udp_mut(&mut self) -> Option<&mut U> {
        self.udp.as_mut()
    }

    /// The interface's largest packet in bytes.
    pub(crate) fn set_mtu(&mut self, mtu: usize) {
        self.mtu = mtu;
    }

    /// Does what there is to do, for a bounded time.
    ///
    /// # Errors
    /// When the interface can no longer be used.
    pub(crate) fn turn(&mut self, now: Now, ready: Ready) -> io::Result<Rest> {
        self.punting.bell().silence();
        let mut backlog = Backlog::Empty;
        let Some(udp) = &mut self.udp else { return Ok(Rest::Until(None)) };
        if ready.datagrams {
            backlog = self.worker.receive(now, &mut self.punting, &mut self.tun, udp);
        }
        if (ready.packets || self.worker.is_amid_a_packet()) && self.punting.may_have_more() {
            let sent = self.worker.send(now, self.mtu, &mut self.punting, &mut self.tun, udp)?;
            backlog = backlog.max(sent);
        }
        Ok(match backlog {
            Backlog::More => Rest::None,
            Backlog::Expected => Rest::Light(None),
            Backlog::Empty => Rest::Until(None),
        })
    }

    /// What to wait for: datagrams, always; packets, unless they have to wait for the bell.
    pub(crate) fn takes_packets(&self) -> bool {
        self.punting.may_have_more()
    }

    pub(crate) fn tun(&self) -> &T {
        &self.tun
    }

    pub(crate) fn udp(&self) -> Option<&U> {
        self.udp.as_ref()
    }

    /// Rung when there is something else to look at than packets and datagrams.
    pub(crate) fn bell(&self) -> &Bell {
        self.punting.bell()
    }

    /// Tells the engine that nobody turns the queue any more.
    pub(crate) fn give_up(&self) {
        self.punting.punt(Punt::Ended);
    }
}
