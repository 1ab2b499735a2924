//! Message authentication codes and cookies (paper, sections 5.4.4 and 5.4.7).
//!
//! MAC1 proves that a sender knows the receiver's public key. Under load a receiver answers with a
//! cookie, and then wants MAC2, which proves that the sender received the cookie at its address.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use blake2::digest::consts::U16;
use blake2::digest::{Digest, FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac};
use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng;
use wireloom_types::PublicKey;
use zeroize::Zeroizing;

use crate::drop_reason::DropReason;
use crate::message::{COOKIE_NONCE_LEN, CookieReply, MAC_LEN, Macs, TAG_LEN};
use crate::time::Instant;

/// The secret from which cookies are made is drawn anew after this.
const SECRET_MAX_AGE: Duration = Duration::from_secs(120);
/// A cookie is not used when its maker's secret may change before the message arrives; the kernel's
/// `COOKIE_SECRET_LATENCY`.
const SECRET_LATENCY: Duration = Duration::from_secs(5);

/// What everyone who knows a public key can derive from it, to write to its owner.
#[derive(Debug)]
pub(crate) struct MacKeys {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl MacKeys {
    /// The keys for messages to the owner of this public key.
    pub(crate) fn of_receiver(public_key: &PublicKey) -> Self {
        let labelled = |label: &[u8; 8]| {
            let hash = Blake2s256::new();
            Digest::chain_update(hash, label).chain_update(public_key.as_bytes()).finalize_fixed().into()
        };
        Self { mac1: labelled(b"mac1----"), cookie: labelled(b"cookie--") }
    }
}

/// What a receiver learns from the codes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// The sender knows our public key.
    Mac1,
    /// It also receives what is sent to its address.
    Cookie,
}

/// The receiver's half: checks codes and makes cookies.
pub(crate) struct CookieMaker {
    secret: Zeroizing<[u8; 32]>,
    /// `None` before the first use.
    drawn: Option<Instant>,
}

impl CookieMaker {
    pub(crate) fn new() -> Self {
        Self { secret: Zeroizing::new([0; 32]), drawn: None }
    }

    #[cfg(test)]
    pub(crate) fn with_secret(secret: [u8; 32], drawn: Instant) -> Self {
        Self { secret: Zeroizing::new(secret), drawn: Some(drawn) }
    }

    /// Checks the codes at the end of an initiation or response. MAC2 is looked at only when it can
    /// matter, that is, under load.
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

    /// Answers a message, whose sender index this is, with a cookie for its source.
    pub(crate) fn reply(
        &mut self,
        keys: &MacKeys,
        now: Instant,
        from: SocketAddr,
        message: &[u8],
        sender: u32,
        rng: &mut ChaCha20Rng,
    ) -> CookieReply {
        let mut encrypted = [0; MAC_LEN + TAG_LEN];
        let (cookie, tag) = encrypted.split_at_mut(MAC_LEN);
        cookie.copy_from_slice(&self.fresh_cookie(now, from, rng));
        let mut nonce = [0; COOKIE_NONCE_LEN];
        rng.fill_bytes(&mut nonce);
        let sealed = XChaCha20Poly1305::new(&keys.cookie.into())
            .encrypt_in_place_detached(XNonce::from_slice(&nonce), mac1_of(message), cookie)
            .expect("a cookie is shorter than the limit of the cipher");
        tag.copy_from_slice(&sealed);
        CookieReply { receiver: sender, nonce, encrypted_cookie: encrypted }
    }

    /// The cookie of a source while the secret lives.
    fn current_cookie(&self, now: Instant, from: SocketAddr) -> Option<[u8; MAC_LEN]> {
        let alive = self.drawn.is_some_and(|at| now.since(at) < SECRET_MAX_AGE);
        alive.then(|| mac(&*self.secret, &source(from)))
    }

    fn fresh_cookie(&mut self, now: Instant, from: SocketAddr, rng: &mut ChaCha20Rng) -> [u8; MAC_LEN] {
        if let Some(cookie) = self.current_cookie(now, from) {
            return cookie;
        }
        rng.fill_bytes(&mut *self.secret);
        self.drawn = Some(now);
        mac(&*self.secret, &source(from))
    }
}

impl fmt::Debug for CookieMaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CookieMaker").finish_non_exhaustive()
    }
}

/// The sender's half: the cookie that one receiver gave us.
#[derive(Default)]
pub(crate) struct CookieJar {
    cookie: Option<([u8; MAC_LEN], Instant)>,
    /// MAC1 of the last message sent, which a cookie reply must answer; taken by the reply.
    last_mac1: Option<[u8; MAC_LEN]>,
}

impl CookieJar {
    /// Writes the codes at the end of an initiation or response.
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

    /// Takes the cookie out of a reply, to be used in the messages that follow.
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

/// Keyed BLAKE2s with 16 bytes of output.
fn mac(key: &[u8], data: &[u8]) -> [u8; MAC_LEN] {
    let mut mac = Blake2sMac::<U16>::new_from_slice(key).expect("BLAKE2s keys have up to 32 bytes");
    mac.update(data);
    mac.finalize_fixed().into()
}

/// What a cookie is bound to: the bytes of the source's address and port.
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
    use rand_chacha::rand_core::SeedableRng;

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
    fn a_cookie_goes_round_and_is_bound_to_its_source() {
        let now = Instant::from_nanos(0);
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let keys = MacKeys::of_receiver(&PublicKey::from_bytes([1; 32]));
        let sources = ["192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:1", "[2001:db8::1]:1", "[2001:db8::2]:1"];
        let sources = sources.map(|source| source.parse::<SocketAddr>().unwrap());
        let mut maker = CookieMaker::new();
        for own in sources {
            let (mut jar, mut message) = (CookieJar::default(), [7; 92]);
            message[76..].fill(0);
            jar.sign(&keys, now, &mut message);
            assert_eq!(maker.check(&keys, now, own, &message, true), Ok(Proof::Mac1));
            let reply = maker.reply(&keys, now, own, &message, 9, &mut rng);
            assert_eq!(reply.receiver, 9);
            jar.accept(&keys, now, &reply).unwrap();
            jar.sign(&keys, now, &mut message);
            for source in sources {
                let expected = if source == own { Proof::Cookie } else { Proof::Mac1 };
                assert_eq!(maker.check(&keys, now, source, &message, true), Ok(expected), "{source}");
            }
            // Without load nobody asks.
            assert_eq!(maker.check(&keys, now, own, &message, false), Ok(Proof::Mac1));
        }
    }
}
