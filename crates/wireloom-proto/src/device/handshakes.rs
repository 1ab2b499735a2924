//! Handshakes: beginning, answering and finishing them, and using their sessions.

use std::sync::Arc;

use wireloom_types::limits::REKEY_TIMEOUT;

use super::peer::{Attempt, PendingHandshake};
use super::sessions::Ended;
use super::{Device, HandshakeMessage};
use crate::drop_reason::DropReason;
use crate::endpoint::Endpoint;
use crate::handshake::cookie::Proof;
use crate::handshake::noise::{ClaimedInitiation, InitiatorHandshake};
use crate::limits::WIPE_AFTER_TIME;
use crate::message::{CookieReply, INITIATION_LEN, Initiation, Macs, RESPONSE_LEN, Response};
use crate::peer_id::PeerId;
use crate::time::Now;
use crate::transport::session::{Role, Session, SessionKeys};
use crate::wiped_stack::on_wiped_stack;

/// How many responses may claim to answer a handshake of ours, and not do so, before others need a cookie under load.
const FAILED_MAX: u32 = 2;

/// Stands for the codes until [`CookieJar::sign`](crate::handshake::cookie::CookieJar::sign) writes them.
const UNSIGNED: Macs = Macs { mac1: [0; 16], mac2: [0; 16] };

impl Device {
    /// Begins a handshake with a peer, or prolongs the attempt that is under way by another
    /// [`REKEY_ATTEMPT_TIME`](wireloom_types::limits::REKEY_ATTEMPT_TIME). Does nothing when the device has no
    /// private key or the peer has no endpoint.
    ///
    /// Staged packets and [`PeerPath::seek`](crate::PeerPath::seek) have the device do so by itself.
    pub fn begin_handshake(&mut self, now: Now, peer: PeerId) {
        let id = peer;
        let retry_at = now.monotonic + REKEY_TIMEOUT + self.jitter();
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if self.identity.is_none() || peer.path.endpoint().is_none() {
            peer.path.news.end_search();
            return;
        }
        let attempt = peer.attempt.get_or_insert(Attempt { since: now.monotonic, retry_at });
        attempt.since = now.monotonic;
        self.send_initiation(now, id);
        self.reschedule(now.monotonic, id);
    }

    /// Sends an initiation, unless the last handshake message to the peer was sent less than [`REKEY_TIMEOUT`] ago. The
    /// attempt goes on in both cases.
    pub(super) fn send_initiation(&mut self, now: Now, id: PeerId) {
        let jitter = self.jitter();
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let (Some(identity), Some(endpoint)) = (&self.identity, peer.path.endpoint()) else {
            peer.end_attempt();
            return;
        };
        let Some(attempt) = &mut peer.attempt else {
            return;
        };
        if let Some(sent) = peer.handshake_sent
            && now.monotonic.since(sent) < REKEY_TIMEOUT
        {
            attempt.retry_at = sent + REKEY_TIMEOUT + jitter;
            return;
        }
        attempt.retry_at = now.monotonic + REKEY_TIMEOUT + jitter;

        let timestamp = self.timestamps.next(now.unix, peer.timestamp_sent);
        let (public_key, static_static) = (peer.path.public_key(), &mut peer.static_static);
        let begun = on_wiped_stack(|| {
            InitiatorHandshake::begin(identity, public_key, static_static, timestamp, &mut self.randomness)
        });
        // This fails only for a public key of low order. The attempt goes on until it is given up.
        let Ok((noise, message)) = begun else {
            return;
        };
        if let Some(pending) = peer.pending.take() {
            self.indices.release(pending.index);
        }
        let index = self.indices.allocate(id);
        peer.pending = Some(PendingHandshake { noise, index, failed: 0 });
        peer.timestamp_sent = Some(timestamp);
        let mut bytes = Initiation { sender: index, noise: message, macs: UNSIGNED }.to_bytes();
        peer.cookies.sign(&peer.mac_keys, now.monotonic, &mut bytes);
        peer.handshake_sent = Some(now.monotonic);
        peer.path.note_sent(now.monotonic, bytes.len(), false);
        self.outbox.push_back(HandshakeMessage::new(endpoint, &bytes));
    }

    pub(super) fn handle_initiation(
        &mut self,
        now: Now,
        from: Endpoint,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        let initiation = Initiation::parse(datagram)?;
        self.admit(now, from, datagram, initiation.sender)?;
        on_wiped_stack(|| self.answer(now, from, &initiation))
    }

    /// Answers an initiation, if it is a new one of a peer.
    fn answer(&mut self, now: Now, from: Endpoint, initiation: &Initiation) -> Result<(), DropReason> {
        let identity = self.identity.as_ref().ok_or(DropReason::NoPrivateKey)?;
        let claimed = ClaimedInitiation::read(identity, &initiation.noise)?;
        let id = *self.ids.get(&claimed.peer).ok_or(DropReason::UnknownPeer)?;
        let peer = self.peers.get_mut(&id).ok_or(DropReason::UnknownPeer)?;
        let handshake = claimed.authenticate(identity, &mut peer.static_static)?;
        peer.initiations.pass(now.monotonic, handshake.timestamp)?;
        let (noise, keys) = handshake.respond(peer.preshared_key.as_ref(), &mut self.randomness)?;

        peer.path.note_received(now.monotonic, from, INITIATION_LEN, false);
        let local_index = self.indices.allocate(id);
        let mut bytes =
            Response { sender: local_index, receiver: initiation.sender, noise, macs: UNSIGNED }.to_bytes();
        peer.cookies.sign(&peer.mac_keys, now.monotonic, &mut bytes);
        peer.handshake_sent = Some(now.monotonic);
        peer.path.note_sent(now.monotonic, bytes.len(), false);
        self.outbox.push_back(HandshakeMessage::new(from, &bytes));
        // The peer may have confirmed the session before this one, and use it, and the news are still on their way.
        self.promote_confirmed(now, id);
        self.begin_session(now, id, &keys, Role::Responder, local_index, initiation.sender);
        self.reschedule(now.monotonic, id);
        Ok(())
    }

    pub(super) fn handle_response(
        &mut self,
        now: Now,
        from: Endpoint,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        let response = Response::parse(datagram)?;
        if self.is_awaited(response.receiver) {
            let keys = self.own_mac_keys.as_ref().ok_or(DropReason::NoPrivateKey)?;
            self.cookies.check(keys, now.monotonic, from.remote, datagram, false)?;
        } else {
            self.admit(now, from, datagram, response.sender)?;
        }
        on_wiped_stack(|| self.finish(now, from, &response))
    }

    /// Whether a response with this receiver index is one that we have asked for. It needs no cookie, and is no sign of
    /// load: nobody can guess the index, and there are no more of them than we have begun handshakes. Who has seen the
    /// index on its way gets only a few responses answered for nothing.
    fn is_awaited(&self, receiver: u32) -> bool {
        let peer = self.indices.owner(receiver).and_then(|id| self.peers.get(&id));
        let pending = peer.and_then(|peer| peer.pending.as_ref());
        pending.is_some_and(|pending| pending.index == receiver && pending.failed < FAILED_MAX)
    }

    /// Ends the handshake that a response answers.
    fn finish(&mut self, now: Now, from: Endpoint, response: &Response) -> Result<(), DropReason> {
        let identity = self.identity.as_ref().ok_or(DropReason::NoPrivateKey)?;
        let id = self.indices.owner(response.receiver).ok_or(DropReason::UnknownIndex)?;
        let peer = self.peers.get_mut(&id).ok_or(DropReason::UnknownIndex)?;
        let pending = peer
            .pending
            .as_mut()
            .filter(|pending| pending.index == response.receiver)
            .ok_or(DropReason::UnknownIndex)?;
        let finished = pending.noise.finish(identity, peer.preshared_key.as_ref(), &response.noise);
        let keys = finished.inspect_err(|_| pending.failed += 1)?;

        peer.path.note_received(now.monotonic, from, RESPONSE_LEN, false);
        // The session takes over its index.
        peer.pending = None;
        peer.keepalive_wanted = true;
        self.begin_session(now, id, &keys, Role::Initiator, response.receiver, response.sender);
        self.finish_attempt(now, id);
        self.ready.push_back(id);
        self.reschedule(now.monotonic, id);
        Ok(())
    }

    pub(super) fn handle_cookie_reply(&mut self, now: Now, datagram: &[u8]) -> Result<(), DropReason> {
        let reply = CookieReply::parse(datagram)?;
        let id = self.indices.owner(reply.receiver).ok_or(DropReason::UnknownIndex)?;
        let peer = self.peers.get_mut(&id).ok_or(DropReason::UnknownIndex)?;
        peer.cookies.accept(&peer.mac_keys, now.monotonic, &reply)
    }

    /// Uses the session of which the peer has now proved that it has the keys.
    pub(super) fn promote_confirmed(&mut self, now: Now, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let own = self.identity.as_ref();
        let we_yield = own.is_some_and(|own| own.public_key > *peer.path.public_key());
        let Some(ended) = peer.sessions.promote_confirmed(we_yield) else {
            return;
        };
        self.end_sessions(ended);
        self.use_current(id);
        self.finish_attempt(now, id);
        self.send_staged(now, id);
    }

    /// Drops a peer's sessions, its handshake and its staged packets.
    pub(super) fn forget_sessions(&mut self, id: PeerId) {
        self.end_attempt(id);
        self.wipe_sessions(id);
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        // First: what a worker stages or sends after the rest has been forgotten is news.
        peer.path.news.take();
        peer.path.news.end_search();
        peer.handshake_sent = None;
        peer.wipe_at = None;
        peer.keepalive_wanted = false;
        self.forgotten_packets += self.transport.staging.clear(id);
        peer.path.set_reachable(true);
        peer.path.activity.reset();
    }

    /// Ends a peer's sessions. Their keys are wiped when nobody uses them any more.
    pub(super) fn wipe_sessions(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let ended = peer.sessions.end();
        self.end_sessions(ended);
        self.use_current(id);
    }

    /// Checks the codes of an initiation or a response, and under load its cookie and its source's rate. Under load, a
    /// message without a cookie is answered with one.
    fn admit(&mut self, now: Now, from: Endpoint, datagram: &[u8], sender: u32) -> Result<(), DropReason> {
        let keys = self.own_mac_keys.as_ref().ok_or(DropReason::NoPrivateKey)?;
        let now = now.monotonic;
        let under_load = self.load.is_under_load(now);
        let proof = self.cookies.check(keys, now, from.remote, datagram, under_load)?;
        self.load.count(now);
        match proof {
            _ if !under_load => Ok(()),
            Proof::Cookie if self.limiter.allows(now, from.remote.ip()) => Ok(()),
            Proof::Cookie => Err(DropReason::RateLimited),
            Proof::Mac1 => {
                let reply =
                    self.cookies.reply(keys, now, from.remote, datagram, sender, &mut self.randomness);
                self.outbox.push_back(HandshakeMessage::new(from, &reply.to_bytes()));
                Err(DropReason::CookieRequired)
            }
        }
    }

    fn begin_session(
        &mut self,
        now: Now,
        id: PeerId,
        keys: &SessionKeys,
        role: Role,
        local_index: u32,
        remote_index: u32,
    ) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let session = Arc::new(Session::new(keys, role, local_index, remote_index, now.monotonic));
        self.transport.insert(Arc::clone(&session), Arc::clone(&peer.path));
        peer.wipe_at = Some(now.monotonic + WIPE_AFTER_TIME);
        match role {
            Role::Initiator => {
                let ended = peer.sessions.use_initiated(session);
                self.end_sessions(ended);
                self.use_current(id);
            }
            // The current session is the same as before.
            Role::Responder => {
                let ended = peer.sessions.keep_answered(session);
                self.end_sessions(ended);
            }
        }
    }

    fn end_sessions(&mut self, ended: Ended) {
        for session in ended.into_iter().flatten() {
            self.transport.remove(session.local_index());
            self.indices.release(session.local_index());
        }
    }

    /// Ends the attempt, because there is a session now.
    fn finish_attempt(&mut self, now: Now, id: PeerId) {
        self.end_attempt(id);
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.last_handshake = Some(now.unix);
        }
    }

    /// Ends the attempt to get a session, and forgets the initiation under way.
    pub(super) fn end_attempt(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.end_attempt();
        if let Some(pending) = peer.pending.take() {
            self.indices.release(pending.index);
        }
    }
}

impl HandshakeMessage {
    fn new(endpoint: Endpoint, message: &[u8]) -> Self {
        let mut bytes = [0; INITIATION_LEN];
        bytes[..message.len()].copy_from_slice(message);
        Self { endpoint, bytes, len: message.len() }
    }
}
