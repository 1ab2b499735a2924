//! The in-memory twin of the network, for tests: datagrams between the ports of one process.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use wireloom_proto::Endpoint;

use super::{Network, Patience, Udp};
use crate::{
    batch::{InboundBatch, SealedBatch},
    packet::ecn::Ecn,
    path_mtu::outer_headers,
};

/// A host of a network in memory. Clones are the same host.
#[derive(Clone, Debug)]
pub(crate) struct MemoryNetwork {
    wire: Arc<Mutex<Wire>>,
    address: IpAddr,
}

#[derive(Debug, Default)]
struct Wire {
    ports: BTreeMap<SocketAddr, Port>,
    /// Every datagram that was ever sent, but for probes: source, destination, content.
    seen: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    /// The type of service, or traffic class, of each of these.
    classes: Vec<u8>,
    /// The congestion notification with which every datagram arrives, if the network changes it.
    marks: Option<Ecn>,
    /// The narrow paths, by their destinations.
    narrow: BTreeMap<IpAddr, NarrowPath>,
    /// How many datagrams had to be fragmented.
    fragmented: usize,
    /// How many probes have arrived at each port.
    probes: BTreeMap<SocketAddr, u64>,
    /// The path MTUs to be reported to each open port.
    path_mtus: VecDeque<(SocketAddr, (IpAddr, usize))>,
    /// How often a sender has waited in vain, once nothing is sent any more.
    stuck: Option<usize>,
}

/// The sockets that have opened one port; `None` once one is closed.
type Port = Vec<Option<Socket>>;

#[derive(Debug)]
struct Socket {
    arrived: VecDeque<(SocketAddr, Vec<u8>, Ecn)>,
    /// By how many [`MemoryUdp`] it is held: a sender holds the socket that it is made from.
    holders: usize,
}

impl Socket {
    fn open() -> Option<Self> {
        Some(Self { arrived: VecDeque::new(), holders: 1 })
    }
}

/// A path that carries IP packets of at most `mtu` bytes without fragments.
#[derive(Debug)]
struct NarrowPath {
    mtu: usize,
    /// Whether ICMP errors come back from it.
    reports: bool,
    /// Whether one has: the sender's kernel knows the path MTU then, and tells it when it is asked to send more.
    is_known: bool,
}

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

    /// Every datagram that was ever sent, but for probes, as an eavesdropper sees it: source, destination, content.
    pub(crate) fn seen(&self) -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
        self.wire().seen.clone()
    }

    /// The type of service, or traffic class, of each datagram that [`Self::seen`] returns.
    pub(crate) fn classes(&self) -> Vec<u8> {
        self.wire().classes.clone()
    }

    /// Has every datagram arrive with this congestion notification, whatever it was sent with; `None` has the network
    /// leave it alone.
    pub(crate) fn mark(&self, ecn: Option<Ecn>) {
        self.wire().marks = ecn;
    }

    /// The same since the last call, which are forgotten.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn take_seen(&self) -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
        std::mem::take(&mut self.wire().seen)
    }

    /// Reports to a socket that has `port` open on this host that the path to `remote` carries packets of this many
    /// bytes.
    pub(crate) fn tell_path_mtu(&self, port: u16, remote: IpAddr, path_mtu: usize) {
        let to = SocketAddr::new(self.address, port);
        self.wire().path_mtus.push_back((to, (remote, path_mtu)));
    }

    /// Makes the path to `remote` narrow: it carries IP packets of at most `mtu` bytes. With `reports`, ICMP errors
    /// come back from it.
    pub(crate) fn narrow(&self, remote: IpAddr, mtu: usize, reports: bool) {
        self.wire().narrow.insert(remote, NarrowPath { mtu, reports, is_known: false });
    }

    /// How many datagrams had to be fragmented so far.
    pub(crate) fn fragmented(&self) -> usize {
        self.wire().fragmented
    }

    /// How many probes have arrived at `port` of this host: copies, which count as replays.
    pub(crate) fn probes_to(&self, port: u16) -> u64 {
        self.wire().probes.get(&SocketAddr::new(self.address, port)).copied().unwrap_or(0)
    }

    /// Makes the send buffers of all hosts full for good.
    pub(crate) fn get_stuck(&self) {
        self.wire().stuck = Some(0);
    }

    /// How often a sender has waited for room since then.
    pub(crate) fn waits(&self) -> usize {
        self.wire().stuck.unwrap_or(0)
    }

    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wire {
    /// The path of a datagram, if it does not carry the datagram without fragments.
    fn excess(&mut self, to: SocketAddr, datagram: &[u8]) -> Option<&mut NarrowPath> {
        let len = outer_headers(to) + datagram.len();
        self.narrow.get_mut(&to.ip()).filter(|path| len > path.mtu)
    }

    /// Brings a datagram to its destination. One to a port that nobody has open is lost on the way, without the
    /// sender's knowledge.
    fn carry(&mut self, from: SocketAddr, to: SocketAddr, datagram: &[u8], class: u8) {
        let ecn = self.marks.unwrap_or(Ecn::of_class(class));
        if let Some(port) = self.ports.get_mut(&to) {
            let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(from);
            let mut open: Vec<_> = port.iter_mut().flatten().collect();
            let position = (hash % open.len() as u64) as usize;
            open[position].arrived.push_back((from, datagram.to_vec(), ecn));
        }
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
        wire.ports.insert(SocketAddr::new(self.address, port), vec![Socket::open()]);
        Ok(MemoryUdp { network: self.clone(), port, position: 0 })
    }

    fn join(&self, first: &MemoryUdp, _mark: u32) -> io::Result<MemoryUdp> {
        let mut wire = self.wire();
        let port = wire.ports.get_mut(&first.address()).ok_or(io::ErrorKind::NotConnected)?;
        port.push(Socket::open());
        Ok(MemoryUdp { network: self.clone(), port: first.port, position: port.len() - 1 })
    }

    fn sender(&self, first: &mut MemoryUdp) -> io::Result<MemoryUdp> {
        let mut wire = self.wire();
        let port = wire.ports.get_mut(&first.address()).ok_or(io::ErrorKind::NotConnected)?;
        let socket = port[first.position].as_mut().ok_or(io::ErrorKind::NotConnected)?;
        socket.holders += 1;
        Ok(MemoryUdp { network: self.clone(), port: first.port, position: first.position })
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
        let Some(socket) = port.and_then(|port| port[self.position].as_mut()) else { return };
        loop {
            let Some(room) = batch.rooms().next() else { return };
            let Some((from, datagram, ecn)) = socket.arrived.pop_front() else { return };
            room[..datagram.len()].copy_from_slice(&datagram);
            batch.push(Endpoint::from(from), datagram.len(), datagram.len(), ecn);
        }
    }

    fn send(&mut self, batch: SealedBatch<'_>, patience: &mut Patience) -> u64 {
        let from = self.address();
        let mut wire = self.network.wire();
        if let Some(waits) = &mut wire.stuck {
            patience.wait(|| {
                *waits += 1;
                false
            });
            let lost = batch.datagrams().count() as u64;
            batch.clear();
            return lost;
        }
        for (position, (to, datagram, class)) in batch.datagrams().enumerate() {
            if batch.is_lone_probe(position) {
                continue;
            }
            wire.seen.push((from, to.remote, datagram.to_vec()));
            wire.classes.push(class);
            wire.fragmented += usize::from(wire.excess(to.remote, datagram).is_some());
            wire.carry(from, to.remote, datagram, class);
        }
        for position in batch.probes() {
            let (to, probe, class) = batch.datagrams().nth(position).expect("a datagram of the batch");
            match wire.excess(to.remote, probe) {
                None => {
                    *wire.probes.entry(to.remote).or_default() += 1;
                    wire.carry(from, to.remote, probe, class);
                }
                Some(path) if path.is_known => {
                    let report = (from, (to.remote.ip(), path.mtu));
                    wire.path_mtus.push_back(report);
                }
                Some(path) => path.is_known = path.reports,
            }
        }
        drop(wire);
        batch.clear();
        0
    }

    fn follow_routes(&mut self, _endpoints: impl FnOnce() -> Vec<Endpoint>) -> bool {
        false
    }

    fn path_mtus(&mut self, at_most: usize, mut take: impl FnMut(IpAddr, usize)) {
        let own = self.address();
        let mut wire = self.network.wire();
        for _ in 0..at_most {
            let Some(position) = wire.path_mtus.iter().position(|(to, _)| *to == own) else { return };
            if let Some((_, (remote, path_mtu))) = wire.path_mtus.remove(position) {
                take(remote, path_mtu);
            }
        }
    }
}

impl Drop for MemoryUdp {
    fn drop(&mut self) {
        let address = self.address();
        let mut wire = self.network.wire();
        if let Some(port) = wire.ports.get_mut(&address) {
            if let Some(socket) = &mut port[self.position] {
                socket.holders -= 1;
            }
            port[self.position].take_if(|socket| socket.holders == 0);
            if port.iter().all(Option::is_none) {
                wire.ports.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use wireloom_proto::Transmit;

    use super::*;
    use crate::batch::OutboundBatch;

    fn send(udp: &mut MemoryUdp, to: SocketAddr) {
        let mut batch = OutboundBatch::default();
        batch.push_transmit(&Transmit { endpoint: Endpoint::from(to), datagram: b"hello", ecn: 0 });
        assert_eq!(udp.send(batch.seal(), &mut Patience::default()), 0);
    }

    #[test]
    fn a_sender_sends_from_the_port_and_keeps_it_open_and_what_arrives_is_the_first_ones() {
        let network = MemoryNetwork::new([192, 0, 2, 1].into());
        let mut first = network.bind(0, 0).unwrap();
        let mut sender = network.sender(&mut first).unwrap();
        let own = first.address();
        send(&mut sender, own);
        let mut batch = InboundBatch::default();
        first.receive(&mut batch);
        assert_eq!(batch.sources().map(|from| from.remote).collect::<Vec<_>>(), [own]);
        drop(first);
        assert!(network.bind(own.port(), 0).is_err(), "the sender has it");
        drop(sender);
        network.bind(own.port(), 0).expect("it is closed");
    }
}
