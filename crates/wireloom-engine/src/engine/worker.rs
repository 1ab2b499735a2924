//! A worker: a queue of the interface with UDP sockets of its own, for a thread of its own.

use std::io;

use wireloom_proto::Now;

use crate::{
    data_path::{DataPath, Turn},
    punt::{Punt, Punter, SlowPath},
    runtime::{
        turn::{Backlog, NextTurn, Ready},
        wake_up::WakeUp,
    },
    tun::TunQueue,
    udp::{Patience, Udp},
};

/// Carries packets between one queue of the interface and one set of sockets, and punts to the engine whatever needs
/// the device.
///
/// No call blocks, as with the [`Engine`](super::Engine), which serves the first queue itself. Settings are changed
/// while no thread has the worker: see [`Runner`].
pub(crate) struct Worker<T, U> {
    data_path: DataPath,
    punter: Punter,
    tun: T,
    /// The sockets, while the interface is up.
    udp: Option<U>,
    /// The interface's MTU, in bytes.
    mtu: usize,
}

/// Runs workers, each on a thread of its own.
pub(crate) trait Runner<W> {
    /// Starts to run these workers.
    fn start(&mut self, workers: Vec<W>);

    /// Stops all workers at the end of their turns and gives them back, in their order.
    ///
    /// # Errors
    /// Why one of the threads has ended. No worker is given back then, and the engine cannot go on.
    fn stop(&mut self) -> io::Result<Vec<W>>;
}

impl<T: TunQueue, U: Udp> Worker<T, U> {
    pub(crate) fn new(data_path: DataPath, punter: Punter, tun: T) -> Self {
        Self { data_path, punter, tun, udp: None, mtu: 0 }
    }

    pub(crate) fn data_path_mut(&mut self) -> &mut DataPath {
        &mut self.data_path
    }

    pub(crate) fn set_udp(&mut self, udp: Option<U>) {
        self.udp = udp;
    }

    pub(crate) fn udp_mut(&mut self) -> Option<&mut U> {
        self.udp.as_mut()
    }

    /// Sets the interface's MTU, in bytes.
    pub(crate) fn set_mtu(&mut self, mtu: usize) {
        self.mtu = mtu;
    }

    /// Does the pending work, for a bounded time.
    ///
    /// # Errors
    /// When the interface can no longer be used.
    pub(crate) fn turn(&mut self, now: Now, ready: Ready) -> io::Result<NextTurn> {
        self.punter.wake_up().clear();
        let Some(udp) = &mut self.udp else { return Ok(NextTurn::Wait(None)) };
        let (slow_path, tun) = (&mut self.punter, &mut self.tun);
        let mut turn = Turn { now, mtu: self.mtu, slow_path, tun, udp, patience: Patience::default() };
        let mut backlog = Backlog::Empty;
        if ready.datagrams {
            backlog = self.data_path.receive(&mut turn);
        }
        if (ready.packets || self.data_path.has_unsent()) && turn.slow_path.may_have_more() {
            backlog = backlog.max(self.data_path.send(&mut turn)?);
        }
        Ok(backlog.next_turn(None))
    }

    /// Whether to wait for packets from the interface. If not, they have to wait until [`Self::wake_up`] is signalled.
    pub(crate) fn takes_packets(&self) -> bool {
        self.punter.may_have_more()
    }

    pub(crate) fn tun(&self) -> &T {
        &self.tun
    }

    pub(crate) fn udp(&self) -> Option<&U> {
        self.udp.as_ref()
    }

    /// Signalled when there is something to do besides packets and datagrams.
    pub(crate) fn wake_up(&self) -> &WakeUp {
        self.punter.wake_up()
    }

    /// Tells the engine that the worker's thread has ended without being told to.
    pub(crate) fn report_end(&self) {
        self.punter.punt(Punt::Ended);
    }
}
