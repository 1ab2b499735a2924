//! Answers the requests of the control socket: reads the engine's state, and changes its configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    io, process,
};

use wireloom_proto::{Now, on_wiped_stack};
use wireloom_types::{LinkAddress, Mode, PrivateKey, PublicKey, SourceCheck, limits::MAX_PEERS};

use super::{Engine, Sockets};
use crate::{
    control::{
        AllowedIpChange, Errno, PeerChange, Reply, Request, Set,
        reply::{self, DeviceLines},
    },
    tun::{Tun, tell_stack},
    udp::{Network, Udp},
};

impl<T: Tun, N: Network> Engine<T, N> {
    /// Answers a request of the control socket.
    pub(crate) fn handle(&mut self, now: Now, request: Request) -> Reply {
        match request {
            Request::Get => {
                let lines = DeviceLines {
                    private_key: self.device.private_key().map(PrivateKey::expose_hex),
                    listen_port: self.chosen_port.unwrap_or(self.listen_port),
                    fwmark: self.fwmark,
                };
                reply::device(lines, self.device.peers())
            }
            Request::GetDrops => reply::drops(&self.drops),
            Request::GetHandover => reply::handover(process::id(), self.waited),
            Request::GetLink => {
                reply::link(now.monotonic, self.mode, self.link.as_deref(), self.device.peers())
            }
            Request::GetPaths => reply::paths(now.monotonic, self.device.peers()),
            Request::Set(set) => match self.set(now, &set) {
                Ok(()) => Reply::Done,
                Err(errno) => Reply::Refused(errno),
            },
        }
    }

    /// Applies all changes or, when one of them is impossible, none.
    fn set(&mut self, now: Now, set: &Set) -> Result<(), Errno> {
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
        let own = set.private_key.as_ref().and_then(Option::as_ref).map(public_key_of);
        self.refuse_duplicate_link_address(set, own)?;
        // First what the system can refuse: the port, the mark and the link address.
        self.change_port_and_address(now, set, own.map(LinkAddress::of))?;

        if mode != self.mode {
            self.mode = mode;
            self.check_sources(mode.source_check() == SourceCheck::AllowedIps);
        }
        let all_are_replaced = set.replace_peers;
        // A peer that has our new key is removed.
        let mut touched: Vec<_> = own.into_iter().collect();
        touched.extend(set.peers.iter().map(|peer| peer.public_key));
        self.device.configure(now, |configuration| {
            // A copy, because what is moved out of the request would be left behind where it was.
            if let Some(private_key) = &set.private_key {
                configuration.set_private_key(private_key.clone());
            }
            if set.replace_peers {
                configuration.remove_all_peers();
            }
            for peer in &set.peers {
                apply(configuration, peer);
            }
        });
        if let (Some(own), Some(file)) = (own, &mut self.kept_timestamp) {
            file.take_up(own, &mut self.device, now);
        }
        self.count_forgotten();
        self.update_link(all_are_replaced, &touched);
        // With the next handshake message: nobody needs the addresses before, and a client may send thousands of
        // requests.
        self.publish_known_at = now.monotonic;
        Ok(())
    }

    /// Makes the link follow the device's peers after a change, which `touched` the peers with these keys.
    fn update_link(&mut self, all_are_replaced: bool, touched: &[PublicKey]) {
        let Some(link) = &self.link else { return };
        link.change(|table| {
            if all_are_replaced {
                table.clear();
            }
            for public_key in touched {
                match self.device.peer(public_key) {
                    Some(peer) => table.insert(peer.path),
                    None => table.remove(public_key),
                }
            }
        });
        // The network stack may use the new neighbours at once, by any queue.
        link.announce(|frame| tell_stack(&mut self.writer, frame));
    }

    fn check_sources(&mut self, check: bool) {
        self.workers.change(|worker| worker.data_path_mut().check_sources(check));
    }

    /// Refuses changes after which two nodes would have the same link address.
    fn refuse_duplicate_link_address(&self, set: &Set, own: Option<PublicKey>) -> Result<(), Errno> {
        let Some(link) = &self.link else { return Ok(()) };
        let table = link.table();
        let own = own.or_else(|| self.device.private_key().map(public_key_of));
        let removed: BTreeSet<PublicKey> =
            set.peers.iter().filter(|peer| peer.remove).map(|peer| peer.public_key).collect();
        let here = |address| table.key_at(address).filter(|key| !set.replace_peers && !removed.contains(key));
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

    /// Changes the port, the mark and the link address. Nothing has changed after an error.
    fn change_port_and_address(
        &mut self,
        now: Now,
        set: &Set,
        own: Option<LinkAddress>,
    ) -> Result<(), Errno> {
        let port = set.listen_port.unwrap_or(self.listen_port);
        let mark = set.fwmark.unwrap_or(self.fwmark);
        let refused = |error: io::Error| {
            tracing::warn!("cannot use UDP port {port} with mark {mark}: {error}");
            error.raw_os_error().map_or(Errno::EIO, Errno)
        };
        let sockets = self.sockets_for(set.listen_port, mark).map_err(refused)?;
        let marks_present = sockets.is_none() && self.udp.is_some() && mark != self.fwmark;
        if marks_present {
            // Some sockets may have the new mark already.
            self.set_mark(mark).inspect_err(|_| self.restore_mark()).map_err(refused)?;
        }
        // Last, because taking it back would make the network stack forget its neighbours twice.
        if let Some(own) = own
            && let Err(errno) = self.change_link_address(own)
        {
            if marks_present {
                self.restore_mark();
            }
            return Err(errno);
        }

        self.fwmark = mark;
        if port != self.listen_port {
            (self.listen_port, self.chosen_port) = (port, None);
        }
        if let Some(sockets) = sockets.filter(|_| self.udp.is_some()) {
            self.workers.read_rest(now);
            self.use_sockets(sockets);
        }
        // An attempt that failed may succeed now.
        self.rebind_at = None;
        Ok(())
    }

    /// Opens the sockets of the port that a request asks for, unless the open ones will do. While the interface is
    /// down, it does so only to tell the client now, and not when the interface comes up, that the port is taken.
    fn sockets_for(&self, asked: Option<u16>, mark: u32) -> io::Result<Option<Sockets<N::Udp>>> {
        let Some(port) = asked else { return Ok(None) };
        let is_wanted = match &self.udp {
            // 0 leaves the choice to the system, which has chosen already.
            Some(udp) => port != udp.port() && (port, self.listen_port) != (0, 0),
            None => port != 0,
        };
        is_wanted.then(|| self.bind(port, mark)).transpose()
    }

    /// Gives the interface the link address that follows from our key.
    fn change_link_address(&mut self, own: LinkAddress) -> Result<(), Errno> {
        let Some(link) = &self.link else { return Ok(()) };
        if self.tun.link_address() != Some(own) {
            self.tun.set_link_address(own).map_err(|error| {
                tracing::warn!("cannot set the interface's link address to {own}: {error}");
                error.raw_os_error().map_or(Errno::EIO, Errno)
            })?;
        }
        link.set_own(own);
        Ok(())
    }

    /// Gives the sockets the mark that they had before a request that failed.
    fn restore_mark(&mut self) {
        if let Err(error) = self.set_mark(self.fwmark) {
            tracing::error!("cannot set the mark {} again: {error}; set it anew", self.fwmark);
        }
    }

    /// Sets the firewall mark of all sockets. After an error, some may have it.
    fn set_mark(&mut self, mark: u32) -> io::Result<()> {
        let mut outcome = self.udp.as_mut().map_or(Ok(()), |udp| udp.set_mark(mark));
        self.workers.change(|worker| {
            if let (Some(udp), Ok(())) = (worker.udp_mut(), &outcome) {
                outcome = udp.set_mark(mark);
            }
        });
        outcome
    }
}

/// Computes a public key, and leaves nothing of the private one on the stack: the request may be refused.
fn public_key_of(private_key: &PrivateKey) -> PublicKey {
    on_wiped_stack(|| private_key.public_key())
}

/// Applies the changes to one peer.
fn apply(configuration: &mut wireloom_proto::Configuration<'_>, change: &PeerChange) {
    if change.remove {
        configuration.remove_peer(&change.public_key);
        return;
    }
    let peer = if change.update_only {
        configuration.peer(&change.public_key)
    } else {
        // Like the kernel, skip our own key: one configuration may serve a whole mesh.
        configuration.add_peer(change.public_key).ok()
    };
    let Some(mut peer) = peer else { return };
    if let Some(preshared_key) = &change.preshared_key {
        peer.set_preshared_key(preshared_key.as_ref());
    }
    if let Some(endpoint) = change.endpoint {
        peer.set_endpoint(endpoint);
    }
    if let Some(path_mtu) = change.path_mtu {
        peer.set_path_mtu(path_mtu);
    }
    if change.replace_allowed_ips {
        peer.clear_allowed_ips();
    }
    for allowed_ip in &change.allowed_ips {
        match *allowed_ip {
            AllowedIpChange::Add(network) => peer.add_allowed_ip(network),
            AllowedIpChange::Remove(network) => peer.remove_allowed_ip(network),
        };
    }
    if let Some(interval) = change.persistent_keepalive {
        peer.set_persistent_keepalive(interval);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr},
        time::Duration,
    };

    use wireloom_proto::{Instant, Transmit, UnixTime};

    use super::*;
    use crate::{
        batch::OutboundBatch,
        control::Parser,
        engine::by_hand::ByHand,
        tun::{TunEvent, TunState, memory_tun},
        udp::{MemoryNetwork, Patience},
    };

    #[test]
    fn the_addresses_of_all_peers_are_collected_for_the_next_handshake_message_and_not_for_each_request() {
        let elapsed = Duration::from_secs(1000);
        let now = Now { monotonic: Instant::from_origin(elapsed), unix: UnixTime::from_epoch(elapsed) };
        let address = |last| IpAddr::from(Ipv4Addr::new(192, 0, 2, last));
        let (tun, queues, stack) = memory_tun();
        let (network, workers) = (MemoryNetwork::new(address(1)), ByHand::default());
        let runner = Box::new(workers.clone());
        let mut engine =
            Engine::new(&[1; 32], Mode::STANDARD, (tun, queues), network.clone(), runner, None).unwrap();
        stack.tell(TunEvent::State(TunState { up: true, mtu: 1420 }));
        engine.turn(now, true).unwrap();
        let set = |engine: &mut Engine<_, _>, lines: String| {
            let (mut parser, lines) = (Parser::default(), format!("set=1\n{lines}\n"));
            let mut requests = lines.split('\n').map(|line| parser.line(line.as_bytes(), &|_| None).unwrap());
            assert_eq!(engine.handle(now, requests.find_map(|request| request).unwrap()), Reply::Done);
        };
        set(&mut engine, "listen_port=51820".into());
        let before = engine.known_addresses.load_full();
        for last in 2..10 {
            set(&mut engine, format!("public_key={last:064x}\nendpoint={}:51820", address(last)));
        }
        assert!(std::sync::Arc::ptr_eq(&before, &engine.known_addresses.load_full()));

        let mut stranger = network.host(address(99)).bind(0, 0).unwrap();
        let mut batch = OutboundBatch::default();
        let endpoint = std::net::SocketAddr::new(address(1), 51820).into();
        batch.push_transmit(&Transmit {
            endpoint,
            datagram: &[&[1, 0, 0, 0][..], &[0; 144]].concat(),
            ecn: 0,
        });
        stranger.send(batch.seal(), &mut Patience::default());
        workers.turn(now, 0);
        engine.turn(now, true).unwrap();
        assert_eq!(*engine.known_addresses.load_full(), (2..10).map(address).collect());
    }
}
