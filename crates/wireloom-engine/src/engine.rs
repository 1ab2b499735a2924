//! Ties the interface, the UDP port and the protocol together.

mod queues;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    time::Duration,
};

use wireloom_proto::{Device, DropReason, Instant, Now};
use wireloom_types::{LinkAddress, Mode, PeerLookup, PrivateKey, PublicKey, SourceCheck, limits::MAX_PEERS};

use self::queues::Queues;
use crate::{
    bell::Bell,
    cipher::Cipher,
    control::{
        AllowedIpChange, Errno, PeerChange, Reply, Request, Set,
        reply::{self, DeviceLines},
    },
    crew::Crew,
    drops::Drops,
    link::{Link, LinkEnd},
    punt::Punting,
    queue::{Queue, Runner},
    tun::{Tun, TunEvent, TunState},
    turn::{Ready, Rest},
    udp::{Network, Udp},
    worker::{Backlog, Worker},
};

/// How long to wait before the port is tried again that could not be opened when the interface came up.
const REBIND_INTERVAL: Duration = Duration::from_secs(1);

/// A WireGuard interface at work, on whatever interface and network it is given.
///
/// Nothing in it waits: [`Engine::turn`] does what there is to do and tells when to come again.
///
/// While the interface is down the port is closed, there are no sessions and nothing is due; persistent
/// keepalives, and with them handshakes, begin at the moment when it comes up.
///
/// It carries the packets of the interface's first queue. Those of others are carried on other threads,
/// while the port is open.
pub struct Engine<T: Tun, N: Network> {
    device: Device,
    mode: Mode,
    worker: Worker,
    drops: Arc<Drops>,
    tun: T,
    state: TunState,
    network: N,
    udp: Option<N::Udp>,
    queues: Option<Queues<T::Queue, N::Udp>>,
    /// As configured; 0 lets the system pick one.
    listen_port: u16,
    fwmark: u32,
    /// When to try again to open the port, which could not be opened.
    rebind_at: Option<Instant>,
}

impl<T: Tun, N: Network> Engine<T, N> {
    /// An engine without keys and peers. `seed` comes from the system's random generator. The interface
    /// has a link address if, and only if, the mode looks peers up by their link addresses.
    pub fn new(seed: [u8; 32], mode: Mode, tun: T, network: N) -> Self {
        let device = Device::new(seed);
        let drops = Arc::new(Drops::default());
        let link = tun.link_address().map(Link::new).map(LinkEnd::Whole);
        debug_assert_eq!(link.is_some(), mode.peer_lookup() == PeerLookup::Gateway);
        let check_sources = mode.source_check() == SourceCheck::AllowedIps;
        let worker = Worker::new(Arc::clone(device.transport()), Arc::clone(&drops), link, check_sources);
        Self {
            device,
            mode,
            worker,
            drops,
            tun,
            state: TunState::default(),
            network,
            udp: None,
            queues: None,
            listen_port: 0,
            fwmark: 0,
            rebind_at: None,
        }
    }

    /// Has further queues of the interface carried by whoever this runner is, and the crew help all queues.
    pub(crate) fn with_queues(
        mut self,
        queues: Vec<T::Queue>,
        runner: Box<dyn Runner<Queue<T::Queue, N::Udp>>>,
        crew: &Crew<Cipher>,
    ) -> io::Result<Self> {
        let check_sources = self.mode.source_check() == SourceCheck::AllowedIps;
        let (transport, drops) = (self.device.transport(), &self.drops);
        let table = self.worker.link_mut().map(Link::share);
        let worker = |punting: &Punting| {
            let link = table.as_ref().map(|table| LinkEnd::of_queue(table, punting));
            let mut worker = Worker::new(Arc::clone(transport), Arc::clone(drops), link, check_sources);
            worker.set_crew(crew.clone());
            worker
        };
        self.queues = Some(Queues::new(queues, worker, drops, runner)?);
        self.worker.set_crew(crew.clone());
        Ok(self)
    }

    /// Rung when other queues have something for the engine.
    pub(crate) fn bell(&self) -> Option<&Bell> {
        self.queues.as_ref().map(Queues::bell)
    }

    /// What was dropped so far.
    pub fn drops(&self) -> &Arc<Drops> {
        &self.drops
    }

    /// The interface.
    pub fn tun(&self) -> &T {
        &self.tun
    }

    /// The UDP port, while it is open.
    pub fn udp(&self) -> Option<&N::Udp> {
        self.udp.as_ref()
    }

    /// Does what there is to do, for a bounded time.
    ///
    /// # Errors
    /// When the interface can no longer be used.
    pub fn turn(&mut self, now: Now, ready: Ready) -> io::Result<Rest> {
        if ready.events {
            while let Some(event) = self.tun.poll_event()? {
                match event {
                    TunEvent::State(state) => self.follow(state),
                    TunEvent::Gone => return Ok(Rest::Forever),
                }
            }
        }
        self.open_port(now.monotonic);
        let Some(udp) = &mut self.udp else { return Ok(Rest::Until(self.rebind_at)) };
        let (device, tun, mtu) = (&mut self.device, self.tun.first(), self.state.mtu);
        let mut backlog = Backlog::Empty;
        if ready.datagrams {
            backlog = self.worker.receive(now, device, tun, udp);
        }
        let mut datagrams_wait = backlog == Backlog::More;
        if ready.packets || self.worker.is_amid_a_packet() {
            backlog = backlog.max(self.worker.send(now, mtu, device, tun, udp)?);
        }
        if let Some(queues) = &mut self.queues {
            let worker = &mut self.worker;
            let link = |device: &mut Device, punt| worker.take_over(now, mtu, punt, device, tun, udp);
            let left = queues.serve(now, device, mtu, &self.drops, link)?;
            datagrams_wait |= left == Backlog::More;
            backlog = backlog.max(left);
        }
        device.note_backlog(now, datagrams_wait);
        if device.poll_timeout().is_some_and(|at| at <= now.monotonic) {
            device.handle_timeout(now);
            self.drops.set(DropReason::HandshakeTimedOut, device.timed_out_packets());
        }
        self.worker.transmit(now, device, udp);
        if let Some(queues) = &mut self.queues {
            // What was learnt of path MTUs.
            self.worker.link().into_iter().for_each(Link::publish);
            queues.packets_are_sent();
        }
        Ok(match backlog {
            Backlog::More => Rest::None,
            Backlog::Expected => Rest::Light(self.device.poll_timeout()),
            Backlog::Empty => Rest::Until(self.device.poll_timeout()),
        })
    }

    fn follow(&mut self, state: TunState) {
        if state.up != self.state.up {
            tracing::info!("the interface is {}", if state.up { "up" } else { "down" });
        }
        if !state.up && self.state.up {
            self.close_port();
            self.device.handle_down();
        }
        if state.mtu != self.state.mtu
            && let Some(queues) = &mut self.queues
        {
            queues.change(|queue| queue.set_mtu(state.mtu));
        }
        self.state = state;
        self.rebind_at = None;
    }

    /// Opens the port if the interface is up and it is not open. Nobody waits for the outcome, so a
    /// failure is logged and the attempt repeated.
    fn open_port(&mut self, now: Instant) {
        let wanted = self.state.up && self.udp.is_none() && self.rebind_at.is_none_or(|at| at <= now);
        if !wanted {
            return;
        }
        match self.bind(self.listen_port, self.fwmark) {
            Ok(sockets) => {
                self.use_sockets(sockets);
                self.rebind_at = None;
                self.device.handle_up();
            }
            Err(error) => {
                let port = self.listen_port;
                tracing::error!("cannot open UDP port {port}: {error}; free it or set another listen-port");
                self.rebind_at = Some(now + REBIND_INTERVAL);
            }
        }
    }

    /// Opens a port for all queues.
    fn bind(&self, port: u16, mark: u32) -> io::Result<Sockets<N::Udp>> {
        let first = self.network.bind(port, mark)?;
        let others = 0..self.queues.as_ref().map_or(0, Queues::len);
        let others = others.map(|_| self.network.join(&first, mark)).collect::<io::Result<_>>()?;
        Ok(Sockets { first, others })
    }

    /// Uses these from now on; those before are closed.
    fn use_sockets(&mut self, sockets: Sockets<N::Udp>) {
        tracing::info!("listening on UDP port {}", sockets.first.port());
        self.close_port();
        self.udp = Some(sockets.first);
        if let Some(queues) = &mut self.queues {
            queues.open(sockets.others, self.state.mtu);
        }
    }

    fn close_port(&mut self) {
        if let Some(queues) = &mut self.queues {
            queues.close();
        }
        self.udp = None;
    }

    /// Answers a request of the control socket.
    pub(crate) fn handle(&mut self, now: Now, request: Request) -> Reply {
        match request {
            Request::Get => {
                let lines = DeviceLines {
                    private_key: self.device.private_key().map(PrivateKey::expose_hex),
                    listen_port: self.udp.as_ref().map_or(self.listen_port, Udp::port),
                    fwmark: self.fwmark,
                };
                reply::device(&lines, self.device.peers())
            }
            Request::GetDrops => reply::drops(&self.drops),
            Request::GetLink => {
                reply::link(now.monotonic, self.mode, self.worker.link(), self.device.peers())
            }
            Request::Set(set) => match self.set(now, set) {
                Ok(()) => Reply::Done,
                Err(errno) => Reply::Refused(errno),
            },
        }
    }

    /// Applies all of the changes or, when one of them is impossible, none.
    fn set(&mut self, now: Now, set: Set) -> Result<(), Errno> {
        let present = if set.replace_peers { 0 } else { self.device.peer_count() };
        if present + set.peers.len() > MAX_PEERS {
            tracing::warn!("a control request was refused: a device has at most {MAX_PEERS} peers");
            return Err(Errno::E2BIG);
        }
        let mode = match set.source_check {
            Some(check) => Mode::new(self.mode.peer_lookup(), check).map_err(|error| {
                tracing::warn!("a control request was refused: {error}");
                Errno::EINVAL
            })?,
            None => self.mode,
        };
        if self.worker.link().is_none() && set.peers.iter().any(|peer| peer.path_mtu.flatten().is_some()) {
            tracing::warn!(
                "a control request was refused: only a link (--peer-lookup gateway) minds path_mtu"
            );
            return Err(Errno::EINVAL);
        }
        let own = set.private_key.as_ref().and_then(Option::as_ref).map(PrivateKey::public_key);
        self.refuse_same_link_address(&set, own)?;
        // The system can refuse the port and the link address, so they come first.
        self.change_port(set.listen_port, set.fwmark)?;
        if let Some(own) = own {
            self.change_link_address(LinkAddress::of(own))?;
        }

        if mode != self.mode {
            self.mode = mode;
            self.check_sources(mode.source_check() == SourceCheck::AllowedIps);
        }
        let none_stays = set.replace_peers;
        // Who has our own key is no peer any more.
        let mut touched: Vec<_> = own.map(|own| (own, None)).into_iter().collect();
        touched.extend(set.peers.iter().map(|peer| (peer.public_key, peer.path_mtu)));
        self.device.configure(now, |configuration| {
            if let Some(private_key) = set.private_key {
                configuration.set_private_key(private_key);
            }
            if set.replace_peers {
                configuration.remove_all_peers();
            }
            for peer in set.peers {
                apply(configuration, peer);
            }
        });
        self.update_link(none_stays, touched);
        Ok(())
    }

    /// Makes the link follow the device's peers, some of which, or all, were touched by a change: their
    /// keys, and their path MTUs where the change speaks of them.
    fn update_link(&mut self, none_stays: bool, touched: Vec<(PublicKey, Option<Option<u16>>)>) {
        let Some(link) = self.worker.link_mut() else { return };
        if none_stays {
            link.clear();
        }
        for (public_key, path_mtu) in touched {
            let Some(peer) = self.device.peer(&public_key) else {
                link.remove(&public_key);
                continue;
            };
            link.insert(peer.path);
            if let Some(path_mtu) = path_mtu {
                link.set_path_mtu(peer.id, path_mtu);
            }
        }
        // Before the stack is told, so that nobody is surprised at what it sends.
        link.publish();
        self.worker.announce(self.tun.first());
    }

    fn check_sources(&mut self, check: bool) {
        self.worker.check_sources(check);
        if let Some(queues) = &mut self.queues {
            queues.change(|queue| queue.worker_mut().check_sources(check));
        }
    }

    /// Refuses changes after which two would have one address on the link.
    fn refuse_same_link_address(&self, set: &Set, own: Option<PublicKey>) -> Result<(), Errno> {
        let Some(link) = self.worker.link() else { return Ok(()) };
        let own = own.or_else(|| self.device.private_key().map(PrivateKey::public_key));
        let removed: BTreeSet<PublicKey> =
            set.peers.iter().filter(|peer| peer.remove).map(|peer| peer.public_key).collect();
        let here = |address| link.key_at(address).filter(|key| !set.replace_peers && !removed.contains(key));
        let stay = set.peers.iter().filter(|peer| !peer.remove).map(|peer| peer.public_key);
        let mut added = BTreeMap::new();
        for key in own.into_iter().chain(stay) {
            let address = LinkAddress::of(key);
            let other = added.insert(address, key).or_else(|| here(address));
            if address == LinkAddress::NOBODY || other.is_some_and(|other| other != key) {
                tracing::warn!(
                    "a control request was refused: the link address {address} of {key} is taken; give that \
                     node another key"
                );
                return Err(Errno::EEXIST);
            }
        }
        Ok(())
    }

    /// Gives the interface the address that goes with our key.
    fn change_link_address(&mut self, own: LinkAddress) -> Result<(), Errno> {
        let Some(link) = self.worker.link_mut() else { return Ok(()) };
        if self.tun.link_address() != Some(own) {
            self.tun.set_link_address(own).map_err(|error| {
                tracing::warn!("cannot set the interface's link address to {own}: {error}");
                error.raw_os_error().map_or(Errno::EIO, Errno)
            })?;
        }
        link.set_own(own);
        Ok(())
    }

    /// Moves to another port or mark; on an error everything is as it was.
    fn change_port(&mut self, listen_port: Option<u16>, fwmark: Option<u32>) -> Result<(), Errno> {
        let (port, mark) = (listen_port.unwrap_or(self.listen_port), fwmark.unwrap_or(self.fwmark));
        let changed = match &self.udp {
            // 0 leaves the choice to the system, which has made it already.
            Some(udp) if port != udp.port() && (port, self.listen_port) != (0, 0) => {
                self.bind(port, mark).map(|sockets| self.use_sockets(sockets))
            }
            Some(_) if mark != self.fwmark => self.set_mark(mark).inspect_err(|_| {
                // Those that have the new mark are to have the old one again.
                let _ = self.set_mark(self.fwmark);
            }),
            Some(_) => Ok(()),
            // Whoever asks for a port should hear at once, not when the interface comes up, that it is
            // taken.
            None if listen_port.is_some() && port != 0 => self.bind(port, mark).map(drop),
            None => Ok(()),
        };
        changed.map_err(|error| {
            tracing::warn!("cannot use UDP port {port} with mark {mark}: {error}");
            error.raw_os_error().map_or(Errno::EIO, Errno)
        })?;
        (self.listen_port, self.fwmark) = (port, mark);
        // An attempt that failed before may succeed now.
        self.rebind_at = None;
        Ok(())
    }

    fn set_mark(&mut self, mark: u32) -> io::Result<()> {
        let mut outcome = self.udp.as_mut().map_or(Ok(()), |udp| udp.set_mark(mark));
        if let Some(queues) = &mut self.queues {
            queues.change(|queue| {
                if let (Some(udp), Ok(())) = (queue.udp_mut(), &outcome) {
                    outcome = udp.set_mark(mark);
                }
            });
        }
        outcome
    }
}

/// A port that is open for all queues.
struct Sockets<U> {
    first: U,
    others: Vec<U>,
}

fn apply(configuration: &mut wireloom_proto::Configuration<'_>, change: PeerChange) {
    if change.remove {
        configuration.remove_peer(&change.public_key);
        return;
    }
    let peer = if change.update_only {
        configuration.peer(&change.public_key)
    } else {
        // Our own key is passed over, as the kernel does: one configuration may serve all of a mesh.
        configuration.add_peer(change.public_key).ok()
    };
    let Some(mut peer) = peer else { return };
    if let Some(preshared_key) = change.preshared_key {
        peer.set_preshared_key(preshared_key);
    }
    if let Some(endpoint) = change.endpoint {
        peer.set_endpoint(endpoint);
    }
    if change.replace_allowed_ips {
        peer.clear_allowed_ips();
    }
    for allowed_ip in change.allowed_ips {
        match allowed_ip {
            AllowedIpChange::Add(network) => peer.add_allowed_ip(network),
            AllowedIpChange::Remove(network) => peer.remove_allowed_ip(network),
        };
    }
    if let Some(interval) = change.persistent_keepalive {
        peer.set_persistent_keepalive(interval);
    }
}

#[cfg(test)]
mod tests;
