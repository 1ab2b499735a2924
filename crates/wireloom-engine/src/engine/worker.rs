//! A worker: a queue of the interface with UDP sockets of its own, for a thread of its own.

use std::io;

use wireloom_proto::Now;

use crate::{
    data_path::{DataPath, Turn},
    punt::Punter,
    runtime::{
        turn::{Backlog, Ready},
        wake_up::WakeUp,
    },
    tun::TunQueue,
    udp::{Patience, Udp},
};

/// Carries packets between one queue of the interface and one set of sockets, and punts to the control thread whatever
/// needs the device.
///
/// No call blocks, as with the [`Engine`](super::Engine). Settings are changed while no thread has the worker: see
/// [`Runner`].
pub(crate) struct Worker<T, U> {
    data_path: DataPath,
    punter: Punter,
    tun: T,
    /// The sockets, while the interface is up.
    udp: Option<U>,
    /// The interface's MTU, in bytes.
    mtu: usize,
    wake_up: WakeUp,
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
    pub(crate) fn new(data_path: DataPath, punter: Punter, tun: T) -> io::Result<Self> {
        Ok(Self { data_path, punter, tun, udp: None, mtu: 0, wake_up: WakeUp::new()? })
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

    /// Does the pending work, for a bounded time. Returns what is left.
    ///
    /// # Errors
    /// When the interface can no longer be used.
    pub(crate) fn turn(&mut self, now: Now, ready: Ready) -> io::Result<Backlog> {
        let Some(udp) = &mut self.udp else { return Ok(Backlog::Empty) };
        let (punter, tun) = (&mut self.punter, &mut self.tun);
        let mut turn = Turn { now, mtu: self.mtu, punter, tun, udp, patience: Patience::default() };
        let mut backlog = Backlog::Empty;
        if ready.datagrams {
            backlog = self.data_path.receive(&mut turn);
        }
        if ready.packets || self.data_path.has_unsent() {
            backlog = backlog.max(self.data_path.send(&mut turn)?);
        }
        Ok(backlog)
    }

    /// Sends the rest of a super-packet that was sent in part, and reads nothing more. Returns what patience is left.
    pub(crate) fn send_unsent(&mut self, now: Now, patience: Patience) -> Patience {
        let (Some(udp), punter, tun) = (&mut self.udp, &mut self.punter, &mut self.tun) else {
            return patience;
        };
        let mut turn = Turn { now, mtu: self.mtu, punter, tun, udp, patience };
        self.data_path.send_unsent(&mut turn);
        turn.patience
    }

    /// Delivers what has arrived by now at the sockets, which are about to be closed, in at most this many rounds.
    pub(crate) fn read_rest(&mut self, now: Now, rounds: usize) {
        let (Some(udp), punter, tun) = (&mut self.udp, &mut self.punter, &mut self.tun) else { return };
        let mut turn = Turn { now, mtu: self.mtu, punter, tun, udp, patience: Patience::default() };
        for _ in 0..rounds {
            if self.data_path.receive(&mut turn) != Backlog::More {
                break;
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn into_parts(self) -> (T, Option<U>) {
        (self.tun, self.udp)
    }

    pub(crate) fn tun(&self) -> &T {
        &self.tun
    }

    pub(crate) fn udp(&self) -> Option<&U> {
        self.udp.as_ref()
    }

    /// Signalled when the worker has to halt.
    pub(crate) fn wake_up(&self) -> &WakeUp {
        &self.wake_up
    }

    /// Tells the control thread that the worker's thread has ended without being told to.
    pub(crate) fn report_end(&self) {
        self.punter.report_end();
    }
}
