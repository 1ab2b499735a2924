//! The in-memory twin of the network, for tests: datagrams between the ports of one process.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use wireloom_proto::Endpoint;

use super::{Network, Udp};
use crate::batch::{InboundBatch, SealedBatch};

/// A host of a network in memory. Clones are the same host.
#[derive(Clone, Debug)]
pub(crate) struct MemoryNetwork {
    wire: Arc<Mutex<Wire>>,
    address: IpAddr,
}

#[derive(Debug, Default)]
struct Wire {
    ports: BTreeMap<SocketAddr, Port>,
    /// Every datagram that was ever sent: source, destination, content.
    seen: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    /// The path MTUs to be reported to each open port.
    path_mtus: VecDeque<(SocketAddr, (IpAddr, usize))>,
}

/// The sockets that have opened one port, each with the datagrams that have arrived; `None` once it is closed.
type Port = Vec<Option<VecDeque<(SocketAddr, Vec<u8>)>>>;

/// An open port of a [`MemoryNetwork`].
#[derive(Debug)]
pub(crate) struct MemoryUdp {
    network: MemoryNetwork,
    port: u16,
    /// The position among the sockets of the port.
    position: usize,
}

/// The first port that is chosen when 0 is asked for.
const EPHEMERAL: u16 = 49_152;

impl MemoryNetwork {
    /// A new network with one host.
    pub(crate) fn new(address: IpAddr) -> Self {
        Self { wire: Arc::default(), address }
    }

    /// Another host on the same network.
    pub(crate) fn host(&self, address: IpAddr) -> Self {
        Self { wire: Arc::clone(&self.wire), address }
    }

    /// Every datagram that was ever sent, as an eavesdropper sees it: source, destination, content.
    pub(crate) fn seen(&self) -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
        self.wire().seen.clone()
    }

    /// Reports to a socket that has `port` open on this host that the path to `remote` carries packets of this many
    /// bytes.
    pub(crate) fn tell_path_mtu(&self, port: u16, remote: IpAddr, path_mtu: usize) {
        let to = SocketAddr::new(self.address, port);
        self.wire().path_mtus.push_back((to, (remote, path_mtu)));
    }

    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Network for MemoryNetwork {
    type Udp = MemoryUdp;

    fn bind(&self, port: u16, _mark: u32) -> io::Result<MemoryUdp> {
        let mut wire = self.wire();
        let free = |port: &u16| !wire.ports.contains_key(&SocketAddr::new(self.address, *port));
        let port = match port {
            0 => (EPHEMERAL..).find(free),
            port => Some(port).filter(free),
        };
        let port = port.ok_or_else(|| io::Error::from_raw_os_error(libc::EADDRINUSE))?;
        wire.ports.insert(SocketAddr::new(self.address, port), vec![Some(VecDeque::new())]);
        Ok(MemoryUdp { network: self.clone(), port, position: 0 })
    }

    fn join(&self, first: &MemoryUdp, _mark: u32) -> io::Result<MemoryUdp> {
        let mut wire = self.wire();
        let port = wire.ports.get_mut(&first.address()).ok_or(io::ErrorKind::NotConnected)?;
        port.push(Some(VecDeque::new()));
        Ok(MemoryUdp { network: self.clone(), port: first.port, position: port.len() - 1 })
    }
}

impl MemoryUdp {
    fn address(&self) -> SocketAddr {
        SocketAddr::new(self.network.address, self.port)
    }
}

impl Udp for MemoryUdp {
    fn port(&self) -> u16 {
        self.port
    }

    fn set_mark(&mut self, _mark: u32) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self, batch: &mut InboundBatch) {
        batch.clear();
        let mut wire = self.network.wire();
        let port = wire.ports.get_mut(&self.address());
        let Some(queue) = port.and_then(|port| port[self.position].as_mut()) else { return };
        loop {
            let Some(room) = batch.rooms().next() else { return };
            let Some((from, datagram)) = queue.pop_front() else { return };
            room[..datagram.len()].copy_from_slice(&datagram);
            batch.push(Endpoint::from(from), datagram.len(), datagram.len());
        }
    }

    fn send(&mut self, batch: SealedBatch<'_>) -> u64 {
        let from = self.address();
        let mut wire = self.network.wire();
        for (to, datagram) in batch.datagrams() {
            wire.seen.push((from, to.remote, datagram.to_vec()));
            // A datagram to a port that nobody has open is lost on the way, without the sender's knowledge.
            if let Some(port) = wire.ports.get_mut(&to.remote) {
                let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(from);
                let mut open: Vec<_> = port.iter_mut().flatten().collect();
                let position = (hash % open.len() as u64) as usize;
                open[position].push_back((from, datagram.to_vec()));
            }
        }
        drop(wire);
        batch.clear();
        0
    }

    fn poll_path_mtu(&mut self) -> Option<(IpAddr, usize)> {
        let own = self.address();
        let mut wire = self.network.wire();
        let position = wire.path_mtus.iter().position(|(to, _)| *to == own)?;
        wire.path_mtus.remove(position).map(|(_, reported)| reported)
    }
}

impl Drop for MemoryUdp {
    fn drop(&mut self) {
        let address = self.address();
        let mut wire = self.network.wire();
        if let Some(port) = wire.ports.get_mut(&address) {
            port[self.position] = None;
            if port.iter().all(Option::is_none) {
                wire.ports.remove(&address);
            }
        }
    }
}
