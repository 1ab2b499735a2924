//! Message authentication codes and cookies (paper, sections 5.4.4 and 5.4.7).
//!
//! MAC1 proves that the sender knows the receiver's public key. Under load, the receiver answers with a cookie and
//! demands MAC2, which proves that the sender received the cookie at its address.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use blake2::digest::consts::U16;
use blake2::digest::{Digest, FixedOutput, KeyInit as _, Update};
use blake2::{Blake2s256, Blake2sMac};
use chacha20poly1305::aead::{AeadInPlace, KeyInit as _};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use wireloom_types::PublicKey;
use zeroize::Zeroizing;

use crate::drop_reason::DropReason;
use crate::message::{COOKIE_NONCE_LEN, CookieReply, MAC_LEN, Macs, TAG_LEN};
use crate::randomness::Randomness;
use crate::time::Instant;

/// The age at which the secret that cookies are made from is replaced.
const SECRET_MAX_AGE: Duration = Duration::from_secs(120);
/// How long before that age a cookie is no longer used, because its maker may replace the secret before the message
/// arrives; the kernel's `COOKIE_SECRET_LATENCY`.
const SECRET_LATENCY: Duration = Duration::from_secs(5);

/// The keys for the codes and cookies of messages to one receiver. Everyone who knows its public key can derive them.
#[derive(Debug)]
pub(crate) struct MacKeys {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl MacKeys {
    /// The keys for messages to the owner of the public key.
    pub(crate) fn of_receiver(public_key: &PublicKey) -> Self {
        let labelled = |label: &[u8; 8]| {
            let hash = Blake2s256::new();
            Digest::chain_update(hash, label).chain_update(public_key.as_bytes()).finalize_fixed().into()
        };
        Self { mac1: labelled(b"mac1----"), cookie: labelled(b"cookie--") }
    }
}

/// What the codes of a message prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// MAC1 is valid: the sender knows our public key.
    Mac1,
    /// MAC2 is valid too: the sender receives at its source address.
    Cookie,
}

/// The receiver's side: checks codes and makes cookies.
pub(crate) struct CookieMaker {
    secret: Zeroizing<[u8; 32]>,
    /// When the secret was drawn; `None` before its first use.
    drawn: Option<Instant>,
}

impl CookieMaker {
    pub(crate) fn new() -> Self {
        Self { secret: Zeroizing::new([0; 32]), drawn: None }
    }

    /// The secret and when it was drawn, to be handed over.
    pub(crate) fn state(&self) -> Option<(Zeroizing<[u8; 32]>, Instant)> {
        self.drawn.map(|drawn| (self.secret.clone(), drawn))
    }

    /// The maker that was handed over.
    pub(crate) fn from_state(state: &Option<(Zeroizing<[u8; 32]>, Instant)>) -> Self {
        match state {
            Some((secret, drawn)) => Self { secret: secret.clone(), drawn: Some(*drawn) },
            None => Self::new(),
        }
    }

    #[cfg(test)]
    pub(crate) fn with_secret(secret: [u8; 32], drawn: Instant) -> Self {
        Self { secret: Zeroizing::new(secret), drawn: Some(drawn) }
    }

    /// Checks the codes at the end of an initiation or a response. MAC2 is checked under load only.
    pub(crate) fn check(
        &self,
        keys: &MacKeys,
        now: Instant,
        from: SocketAddr,
        message: &[u8],
        under_load: bool,
    ) -> Result<Proof, DropReason> {
        let (body, macs) = message.split_at(message.len() - Macs::LEN);
        let (mac1, mac2) = macs.split_at(MAC_LEN);
        if verify_slices_are_equal(&mac(&keys.mac1, body), mac1).is_err() {
            return Err(DropReason::BadMac1);
        }
        let before_mac2 = &message[..message.len() - MAC_LEN];
        let cookie = under_load.then(|| self.current_cookie(now, from)).flatten();
        match cookie {
            Some(cookie) if verify_slices_are_equal(&mac(&cookie, before_mac2), mac2).is_ok() => {
                Ok(Proof::Cookie)
            }
            _ => Ok(Proof::Mac1),
        }
    }

    /// Makes the reply to a message with this sender index: a cookie for the message's source.
    pub(crate) fn reply(
        &mut self,
        keys: &MacKeys,
        now: Instant,
        from: SocketAddr,
        message: &[u8],
        sender: u32,
        randomness: &mut Randomness,
    ) -> CookieReply {
        let mut encrypted = [0; MAC_LEN + TAG_LEN];
        let (cookie, tag) = encrypted.split_at_mut(MAC_LEN);
        cookie.copy_from_slice(&self.fresh_cookie(now, from, randomness));
        let mut nonce = [0; COOKIE_NONCE_LEN];
        randomness.fill(&mut nonce);
        let sealed = XChaCha20Poly1305::new(&keys.cookie.into())
            .encrypt_in_place_detached(XNonce::from_slice(&nonce), mac1_of(message), cookie)
            .expect("XChaCha20 encrypts more than 16 bytes");
        tag.copy_from_slice(&sealed);
        CookieReply { receiver: sender, nonce, encrypted_cookie: encrypted }
    }

    /// The cookie for a source, unless the secret is too old.
    fn current_cookie(&self, now: Instant, from: SocketAddr) -> Option<[u8; MAC_LEN]> {
        let alive = self.drawn.is_some_and(|at| now.since(at) < SECRET_MAX_AGE);
        alive.then(|| mac(&*self.secret, &source(from)))
    }

    /// The cookie for a source, from a new secret if the secret is too old.
    fn fresh_cookie(&mut self, now: Instant, from: SocketAddr, randomness: &mut Randomness) -> [u8; MAC_LEN] {
        if let Some(cookie) = self.current_cookie(now, from) {
            return cookie;
        }
        self.secret.copy_from_slice(&*randomness.draw_secret());
        self.drawn = Some(now);
        mac(&*self.secret, &source(from))
    }
}

impl fmt::Debug for CookieMaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CookieMaker").finish_non_exhaustive()
    }
}

/// The sender's side: signs messages to one receiver, and keeps the cookie that it gave us.
#[derive(Default)]
pub(crate) struct CookieJar {
    /// The cookie and when it arrived.
    cookie: Option<([u8; MAC_LEN], Instant)>,
    /// MAC1 of the last message sent, which a cookie reply must answer. One reply is accepted per message.
    last_mac1: Option<[u8; MAC_LEN]>,
}

impl CookieJar {
    /// The cookie and when it arrived, to be handed over.
    pub(crate) fn cookie(&self) -> Option<([u8; MAC_LEN], Instant)> {
        self.cookie
    }

    /// The code that a reply must answer, to be handed over.
    pub(crate) fn last_mac1(&self) -> Option<[u8; MAC_LEN]> {
        self.last_mac1
    }

    /// The jar that was handed over.
    pub(crate) fn from_state(
        cookie: Option<([u8; MAC_LEN], Instant)>,
        last_mac1: Option<[u8; MAC_LEN]>,
    ) -> Self {
        Self { cookie, last_mac1 }
    }

    /// Writes the codes at the end of an initiation or a response.
    pub(crate) fn sign(&mut self, keys: &MacKeys, now: Instant, message: &mut [u8]) {
        let mac1_at = message.len() - Macs::LEN;
        let mac2_at = message.len() - MAC_LEN;
        let mac1 = mac(&keys.mac1, &message[..mac1_at]);
        message[mac1_at..mac2_at].copy_from_slice(&mac1);
        self.last_mac1 = Some(mac1);
        if let Some((cookie, received)) = &self.cookie
            && now.since(*received) < SECRET_MAX_AGE - SECRET_LATENCY
        {
            let mac2 = mac(cookie, &message[..mac2_at]);
            message[mac2_at..].copy_from_slice(&mac2);
        }
    }

    /// Reads the cookie in a reply, to sign the next messages with it.
    pub(crate) fn accept(
        &mut self,
        keys: &MacKeys,
        now: Instant,
        reply: &CookieReply,
    ) -> Result<(), DropReason> {
        let mac1 = self.last_mac1.ok_or(DropReason::UnexpectedCookie)?;
        let (encrypted, tag) = reply.encrypted_cookie.split_at(MAC_LEN);
        let mut cookie = [0; MAC_LEN];
        cookie.copy_from_slice(encrypted);
        XChaCha20Poly1305::new(&keys.cookie.into())
            .decrypt_in_place_detached(XNonce::from_slice(&reply.nonce), &mac1, &mut cookie, tag.into())
            .map_err(|_| DropReason::BadCiphertext)?;
        self.last_mac1 = None;
        self.cookie = Some((cookie, now));
        Ok(())
    }
}

impl fmt::Debug for CookieJar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CookieJar").finish_non_exhaustive()
    }
}

fn mac1_of(message: &[u8]) -> &[u8] {
    &message[message.len() - Macs::LEN..message.len() - MAC_LEN]
}

/// BLAKE2s with a key and 16 bytes of output.
fn mac(key: &[u8], data: &[u8]) -> [u8; MAC_LEN] {
    let mut mac = Blake2sMac::<U16>::new_from_slice(key).expect("the key has at most 32 bytes");
    mac.update(data);
    mac.finalize_fixed().into()
}

/// What a cookie authenticates: the source's address and port.
fn source(from: SocketAddr) -> [u8; 18] {
    let mut bytes = [0; 18];
    match from.ip() {
        IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => bytes[..16].copy_from_slice(&address.octets()),
    }
    bytes[16..].copy_from_slice(&from.port().to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_used_for_115_seconds() {
        let received = Instant::from_nanos(0);
        let mut jar = CookieJar { cookie: Some(([1; MAC_LEN], received)), last_mac1: None };
        let keys = MacKeys::of_receiver(&PublicKey::from_bytes([1; 32]));
        let mut uses_cookie = |seconds| {
            let mut message = [0; 92];
            jar.sign(&keys, received + Duration::from_secs(seconds), &mut message);
            message[76..] != [0; MAC_LEN]
        };
        assert!(uses_cookie(0));
        assert!(uses_cookie(114));
        assert!(!uses_cookie(115));
    }

    #[test]
    fn a_cookie_is_valid_for_its_own_address_and_port_only() {
        let now = Instant::from_nanos(0);
        let mut randomness = Randomness::new(&[1; 32]);
        let keys = MacKeys::of_receiver(&PublicKey::from_bytes([1; 32]));
        let sources = ["192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:1", "[2001:db8::1]:1", "[2001:db8::2]:1"];
        let sources = sources.map(|source| source.parse::<SocketAddr>().unwrap());
        let mut maker = CookieMaker::new();
        for own in sources {
            let (mut jar, mut message) = (CookieJar::default(), [7; 92]);
            message[76..].fill(0);
            jar.sign(&keys, now, &mut message);
            assert_eq!(maker.check(&keys, now, own, &message, true), Ok(Proof::Mac1));
            let reply = maker.reply(&keys, now, own, &message, 9, &mut randomness);
            assert_eq!(reply.receiver, 9);
            jar.accept(&keys, now, &reply).unwrap();
            jar.sign(&keys, now, &mut message);
            for source in sources {
                let expected = if source == own { Proof::Cookie } else { Proof::Mac1 };
                assert_eq!(maker.check(&keys, now, source, &message, true), Ok(expected), "{source}");
            }
            // Without load, cookies are not checked.
            assert_eq!(maker.check(&keys, now, own, &message, false), Ok(Proof::Mac1));
        }
    }
}
