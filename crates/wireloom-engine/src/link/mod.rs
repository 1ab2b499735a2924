//! Link mode: the peers are neighbours on an Ethernet link.
//!
//! ```text
//!   network stack: rules, tables, next hops ──▶ "who has 100.64.0.2?" ──▶ ARP or ND, answered here
//!                                          └──▶ frame to the next hop's link address ──▶ its peer
//!   peer ──▶ packet ──▶ frame from the peer's link address ──▶ network stack, firewall
//! ```
//!
//! The interface is a TAP. Routing has chosen the next hop of every packet that comes out of it, so the frame's
//! destination alone names the peer ([`Link::decide`]). The Ethernet header stays here: a plain packet crosses the
//! tunnel, and the peer may run any WireGuard implementation.
//!
//! The module is pure: bytes and times in, bytes and decisions out, without I/O. Nothing is learnt from frames or
//! peers: the keys and the allowed-IPs say who is where. When they change, `Link::announce` corrects what the network
//! stack was told before.
//!
//! All queues share the link. What most frames need is the [`NeighbourTable`], a snapshot that is replaced as a whole.
//! Only questions of the stack take a lock, of the memory of what it was told.

mod cache;
mod neighbour;
mod table;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::{ArcSwap, Guard};
use wireloom_proto::{Instant, Transport};
use wireloom_types::LinkAddress;

pub use self::table::NeighbourTable;
use self::{
    cache::{NeighbourCache, Unanswered},
    neighbour::Question,
    table::Obstacle,
};
use crate::{
    answer::Answer,
    drops::EngineDrop,
    forwarding::Decision,
    icmp::{Problem, Way},
    packet::{
        ethernet::Header,
        ipv4,
        ipv6::{self, Carried},
        protocol::ICMP,
    },
};

/// Of about how many addresses the stack is told at once when their peers are heard again. Each takes some
/// microseconds.
const LATE_AT_ONCE: usize = 64;

/// What is left of the stack's questions without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unheard {
    Nobody,
    /// Their peers are silent.
    Silent,
    /// Perhaps some whose peers are heard.
    Some,
}

/// The link: the neighbours, and what the network stack was told about them. One thread changes it, and any number of
/// threads use it.
#[derive(Debug)]
pub struct Link {
    transport: Arc<Transport>,
    table: ArcSwap<NeighbourTable>,
    /// Locked by whoever tells the stack something, before the table is read: so a change of the table either comes
    /// before an answer, or [`Self::announce`] corrects it.
    cache: Mutex<NeighbourCache>,
}

impl Link {
    /// A link without peers. `own` is the interface's link address, and the transport has the peers' allowed-IPs.
    #[must_use]
    pub fn new(own: LinkAddress, transport: &Arc<Transport>) -> Self {
        Self {
            transport: Arc::clone(transport),
            table: ArcSwap::from_pointee(NeighbourTable::new(own)),
            cache: Mutex::default(),
        }
    }

    /// The neighbours of this moment. Load them once per batch of packets.
    #[must_use]
    pub fn table(&self) -> Guard<Arc<NeighbourTable>> {
        self.table.load()
    }

    /// Changes the neighbours: all queues see all of it or nothing. Takes time for each neighbour.
    pub fn change(&self, change: impl FnOnce(&mut NeighbourTable)) {
        let mut table = NeighbourTable::clone(&self.table.load());
        change(&mut table);
        self.table.store(Arc::new(table));
    }

    fn cache(&self) -> MutexGuard<'_, NeighbourCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the network stack was told, to be handed over: the oldest question first.
    pub(crate) fn told(&self) -> Vec<(IpAddr, [u8; 6])> {
        self.cache().answers().map(|(address, location)| (address, location.to_bytes())).collect()
    }

    /// Remembers what the network stack was told by another process. It may have given up those whose peers are not
    /// reachable.
    pub(crate) fn remember(&self, told: &[(IpAddr, [u8; 6])]) {
        let mut cache = self.cache();
        let table = self.table();
        for (address, location) in told {
            let location = LinkAddress::from_bytes(*location);
            cache.note(*address, location);
            if let Some(path) = table.path_at(location).filter(|path| !path.is_reachable()) {
                let question = Question::of_interface(table.own(), *address);
                let unanswered = Unanswered { question, is_told: false, heard: path.last_heard() };
                cache.note_unanswered(location, unanswered);
            }
        }
    }

    /// Changes the interface's link address. The network stack then forgets its neighbours, and asks again; what was
    /// told before is remembered all the same, because a correction of what it does not have changes nothing.
    pub(crate) fn set_own(&self, own: LinkAddress) {
        if own != self.table().own() {
            self.change(|table| table.set_own(own));
        }
    }

    /// Corrects what the network stack was told about addresses that have moved since: passes a frame for each to
    /// `tell`. Call it after changes of peers and allowed-IPs.
    pub(crate) fn announce(&self, mut tell: impl FnMut(&[u8])) {
        let (table, routes) = (self.table(), self.transport.routes());
        self.cache().move_unanswered(|address| table.owner(address, &routes));
        let moved = self.moved(|address| table.owner(address, &routes).unwrap_or(LinkAddress::NOBODY));
        let mut frame = Vec::new();
        for (address, location) in moved {
            neighbour::announce(address, location, table.own(), &mut frame);
            tell(&frame);
            frame.clear();
        }
    }

    /// Tells the stack that peers are heard again about which it had asked in vain: passes frames for each address that
    /// it had asked for to `tell`. Returns what is left.
    pub(crate) fn answer_late(&self, mut tell: impl FnMut(&[u8])) -> Unheard {
        let (due, left) = self.take_heard();
        let mut frame = Vec::new();
        for (question, location) in due {
            // The first counts while the stack still asks, the second once it has given up.
            for write in [neighbour::answer, neighbour::ask_back] {
                write(&question, location, &mut frame);
                if !frame.is_empty() {
                    tell(&frame);
                }
                frame.clear();
            }
        }
        left
    }

    /// The questions without an answer about peers that were heard since, with their link addresses.
    fn take_heard(&self) -> (Vec<(Question, LinkAddress)>, Unheard) {
        let mut cache = self.cache();
        let table = self.table();
        let asked: Vec<_> = cache.unanswered().collect();
        let (mut due, mut left) = (Vec::new(), Unheard::Nobody);
        for location in asked {
            let Some(path) = table.path_at(location) else { continue };
            if due.len() >= LATE_AT_ONCE {
                left = Unheard::Some;
                break;
            }
            let heard = path.last_heard().filter(|_| path.is_reachable());
            for unanswered in cache.take_unanswered(location, |before| heard > before) {
                if !unanswered.is_told {
                    cache.note(unanswered.question.target, location);
                }
                due.push((unanswered.question, location));
            }
            if cache.has_unanswered(location) {
                left = Unheard::Silent;
            }
        }
        (due, left)
    }

    /// The addresses whose locations are `now` others than the stack was told, and these locations, which count as told
    /// from now on. Workers answer questions meanwhile, for the comparison may take milliseconds. Whoever asks gets the
    /// same answers: only this thread changes the table.
    fn moved(&self, now: impl Fn(IpAddr) -> LinkAddress) -> Vec<(IpAddr, LinkAddress)> {
        let told = self.cache().copy();
        let compare = |(address, answer)| Some((address, now(address))).filter(|(_, now)| *now != answer);
        let mut moved: Vec<_> = told.into_iter().filter_map(compare).collect();
        let mut cache = self.cache();
        moved.retain(|(address, location)| cache.correct(*address, *location));
        moved
    }

    /// Decides what is done with a frame from the network stack.
    ///
    /// `table` is [`Self::table`] of this batch. `longest` is the length in bytes of the longest packet in the frame,
    /// which may be a super-packet; `mtu` is the interface's, in bytes. An answer that the stack has to get at once is
    /// written to `answer`, as a frame.
    pub fn decide<'t>(
        &self,
        table: &'t NeighbourTable,
        now: Instant,
        frame: &[u8],
        longest: usize,
        mtu: usize,
        answer: &mut Answer,
    ) -> Decision<'t> {
        let Some((header, packet)) = Header::split(frame) else {
            return Decision::Drop(EngineDrop::NotIp.into());
        };
        let obstacle = match table.path_of(now, header, packet, longest, mtu) {
            Ok(path) => return Decision::Peer(path),
            Err(obstacle) => obstacle,
        };
        let mut report = |problem, from| {
            answer.report(now, problem, packet, Some(Way { from, to: header.source }));
        };
        match obstacle {
            Obstacle::NotIp => Decision::Drop(EngineDrop::NotIp.into()),
            Obstacle::NotForTheLink => Decision::Drop(EngineDrop::NotForTheLink.into()),
            Obstacle::Group => Decision::AllPeers,
            Obstacle::NeighbourProtocol => self.answer(header, packet, answer),
            Obstacle::NoNeighbour => {
                report(Problem::Unreachable, LinkAddress::NOBODY);
                Decision::Drop(EngineDrop::NoNeighbour.into())
            }
            Obstacle::Unreachable(path) => {
                report(Problem::Unreachable, header.destination);
                Decision::Unreachable(path.seek())
            }
            Obstacle::TooBig(room) => {
                report(Problem::TooBig(room), header.destination);
                Decision::Drop(EngineDrop::TooBig.into())
            }
        }
    }

    /// Answers a question of the network stack, if the packet is one.
    fn answer<'t>(&self, header: Header, packet: &[u8], answer: &mut Answer) -> Decision<'t> {
        let Some(question) = neighbour::question(header, packet) else { return Decision::Local };
        let mut cache = self.cache();
        let (table, routes) = (self.table(), self.transport.routes());
        let owner = table.owner(question.target, &routes);
        // Something else told the stack that a peer has the address. It is asking whether that is still so.
        let told = owner.is_none() && table.path_at(header.destination).is_some();
        // Without an answer the sender would wait for seconds. With the address of nobody, its packets come back as
        // errors at once.
        let location = if told { header.destination } else { owner.unwrap_or(LinkAddress::NOBODY) };
        // A peer that has stopped answering does not answer here either, so that the stack uses others.
        // When it was heard is read first: a message may come meanwhile.
        let path = table.path_at(location).map(|path| (path, path.last_heard()));
        if let Some((path, heard)) = path.filter(|(path, _)| !path.is_reachable()) {
            let unanswered = Unanswered { question, is_told: told, heard };
            cache.note_unanswered(location, unanswered);
            return Decision::Unreachable(path.seek());
        }
        if !told {
            cache.note(question.target, location);
        }
        neighbour::answer(&question, location, &mut answer.bytes);
        Decision::Local
    }
}

/// How far a packet may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Anywhere,
    /// It is neighbour discovery, which stays between the network stack and the device.
    Neighbours,
    /// It would tell somebody by which peer to send, which only routing decides, or it may be any of these: it is a
    /// first fragment that ends before its type. A router whose interface's `send_redirects` is 0 sends redirects all
    /// the same while that of `all` is 1 (`IN_DEV_TX_REDIRECTS` in include/linux/inetdevice.h).
    Nowhere,
}

impl Scope {
    /// The scope of an IPv6 packet.
    fn of_v6(packet: &[u8]) -> Self {
        match ipv6::carried(packet) {
            Carried::Icmpv6([neighbour::REDIRECT, ..] | []) | Carried::Cut => Self::Nowhere,
            Carried::Icmpv6([kind, ..]) if neighbour::NEIGHBOUR_TYPES.contains(kind) => Self::Neighbours,
            Carried::Icmpv6(_) | Carried::Other => Self::Anywhere,
        }
    }

    /// The scope of an IPv4 packet.
    fn of_v4(packet: &[u8]) -> Self {
        const REDIRECT: u8 = 5;
        let Some(header) = ipv4::Header::read(packet) else { return Self::Nowhere };
        if header.protocol() != ICMP || header.is_later_fragment() {
            return Self::Anywhere;
        }
        match packet.get(header.len()) {
            None | Some(&REDIRECT) => Self::Nowhere,
            Some(_) => Self::Anywhere,
        }
    }
}

#[cfg(test)]
mod tests;
