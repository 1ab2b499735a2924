//! Handshakes with `snow`, an independent implementation of Noise, on the other side.

use proptest::prelude::*;
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use wireloom_types::{KEY_LEN, PresharedKey, PrivateKey, PublicKey};

use super::{ClaimedInitiation, Identity, InitiatorHandshake, StaticStatic};
use crate::drop_reason::DropReason;
use crate::handshake::timestamp::Tai64N;
use crate::message::{Initiation, Response};
use crate::randomness::Randomness;
use crate::transport::session::SessionKeys;

/// The position of the preshared key in IKpsk2: the end of the second message.
const PSK_POSITION: u8 = 2;

/// Gives `snow` the ephemeral key that our side draws from the same seed.
struct Ephemeral([u8; KEY_LEN]);

impl Random for Ephemeral {
    fn try_fill_bytes(&mut self, buffer: &mut [u8]) -> Result<(), snow::Error> {
        buffer.copy_from_slice(&self.0);
        Ok(())
    }
}

impl CryptoResolver for Ephemeral {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Self(self.0)))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// What goes into one handshake.
#[derive(Debug)]
struct Inputs {
    initiator: Identity,
    responder: Identity,
    preshared_key: Option<PresharedKey>,
    timestamp: Tai64N,
    seeds: [[u8; 32]; 2],
}

/// What comes out of it: the messages and the keys of both directions, to the responder first.
#[derive(Debug, PartialEq, Eq)]
struct Outputs {
    initiation: [u8; Initiation::NOISE_LEN],
    response: [u8; Response::NOISE_LEN],
    keys: [[u8; 32]; 2],
}

fn inputs() -> impl Strategy<Value = Inputs> {
    let private = || any::<[u8; 32]>().prop_map(|bytes| Identity::new(PrivateKey::from_bytes(bytes)));
    let preshared = prop::option::of(any::<[u8; 32]>().prop_map(PresharedKey::from_bytes));
    (private(), private(), preshared, any::<[u8; 12]>(), any::<[[u8; 32]; 2]>()).prop_map(
        |(initiator, responder, preshared_key, timestamp, seeds)| Inputs {
            initiator,
            responder,
            preshared_key,
            timestamp: Tai64N::from_bytes(timestamp),
            seeds,
        },
    )
}

impl Inputs {
    fn our_initiation(&self) -> (InitiatorHandshake, [u8; Initiation::NOISE_LEN]) {
        let mut randomness = Randomness::new(&self.seeds[0]);
        let (own, peer) = (&self.initiator, &self.responder.public_key);
        InitiatorHandshake::begin(own, peer, &mut StaticStatic::default(), self.timestamp, &mut randomness)
            .expect("no key of low order")
    }

    fn our_response(
        &self,
        initiation: &[u8; Initiation::NOISE_LEN],
    ) -> ([u8; Response::NOISE_LEN], SessionKeys) {
        let claimed = ClaimedInitiation::read(&self.responder, initiation).expect("it is for us");
        assert_eq!(claimed.peer, self.initiator.public_key);
        let handshake = claimed
            .authenticate(&self.responder, &mut StaticStatic::default())
            .expect("it is from whom it claims to be");
        assert_eq!(handshake.timestamp, self.timestamp);
        handshake
            .respond(self.preshared_key.as_ref(), &mut Randomness::new(&self.seeds[1]))
            .expect("no key of low order")
    }

    fn our_keys(
        &self,
        handshake: &InitiatorHandshake,
        response: &[u8; Response::NOISE_LEN],
    ) -> [[u8; 32]; 2] {
        let keys = handshake
            .finish(&self.initiator, self.preshared_key.as_ref(), response)
            .expect("an authentic response");
        [*keys.sending, *keys.receiving]
    }

    /// `snow`'s side, with the ephemeral key that ours draws from this seed.
    fn snow<'a>(&'a self, own: &'a Identity, seed: &[u8; 32]) -> snow::Builder<'a> {
        let parameters: NoiseParams = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s".parse().expect("a pattern");
        let ephemeral = Ephemeral(*Randomness::new(seed).draw_secret());
        let preshared_key = self.preshared_key.as_ref().map_or(&[0; 32], PresharedKey::expose_bytes);
        snow::Builder::with_resolver(parameters, Box::new(ephemeral))
            .local_private_key(own.private_key.expose_bytes())
            .and_then(|builder| builder.prologue(b"WireGuard v1 zx2c4 Jason@zx2c4.com"))
            .and_then(|builder| builder.psk(PSK_POSITION, preshared_key))
            .expect("each is set once")
    }

    fn ours(&self) -> Outputs {
        let (handshake, initiation) = self.our_initiation();
        let (response, keys) = self.our_response(&initiation);
        let ours = self.our_keys(&handshake, &response);
        assert_eq!(ours, [*keys.receiving, *keys.sending], "both sides have the same keys");
        Outputs { initiation, response, keys: ours }
    }

    fn with_snow_as_responder(&self) -> Outputs {
        let (handshake, initiation) = self.our_initiation();
        let mut snow = self.snow(&self.responder, &self.seeds[1]).build_responder().expect("a responder");
        let mut timestamp = [0; Tai64N::LEN];
        snow.read_message(&initiation, &mut timestamp).expect("our initiation");
        assert_eq!(&timestamp, self.timestamp.as_bytes());
        assert_eq!(snow.get_remote_static(), Some(&self.initiator.public_key.as_bytes()[..]));
        let mut response = [0; Response::NOISE_LEN];
        snow.write_message(&[], &mut response).expect("a response");
        let keys = self.our_keys(&handshake, &response);
        assert_eq!(keys, <[_; 2]>::from(snow.dangerously_get_raw_split()));
        Outputs { initiation, response, keys }
    }

    fn with_snow_as_initiator(&self) -> Outputs {
        let builder = self.snow(&self.initiator, &self.seeds[0]);
        let builder = builder.remote_public_key(self.responder.public_key.as_bytes()).expect("set once");
        let mut snow = builder.build_initiator().expect("an initiator");
        let mut initiation = [0; Initiation::NOISE_LEN];
        snow.write_message(self.timestamp.as_bytes(), &mut initiation).expect("an initiation");
        let (response, keys) = self.our_response(&initiation);
        snow.read_message(&response, &mut []).expect("our response");
        let keys = [*keys.receiving, *keys.sending];
        assert_eq!(keys, <[_; 2]>::from(snow.dangerously_get_raw_split()));
        Outputs { initiation, response, keys }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// With the same keys each of the three pairs writes the same bytes.
    #[test]
    fn handshakes_with_snow_on_either_side_are_the_same_to_the_byte(inputs in inputs()) {
        let ours = inputs.ours();
        prop_assert_eq!(&inputs.with_snow_as_responder(), &ours);
        prop_assert_eq!(&inputs.with_snow_as_initiator(), &ours);
    }

    /// Any damaged byte of either message is found, and the handshake can go on with the true one.
    #[test]
    fn damaged_messages_are_refused(inputs in inputs(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let (handshake, initiation) = inputs.our_initiation();
        let mut damaged = initiation;
        damaged[at.index(Initiation::NOISE_LEN)] ^= 1 << bit;
        let read = ClaimedInitiation::read(&inputs.responder, &damaged);
        let outcome = read.and_then(|read| read.authenticate(&inputs.responder, &mut StaticStatic::default()));
        // The highest bit of an ephemeral key is ignored on the curve (RFC 7748, section 5), but it is hashed.
        prop_assert_eq!(outcome.map(drop), Err(DropReason::BadCiphertext));

        let (response, _) = inputs.our_response(&initiation);
        let mut damaged = response;
        damaged[at.index(Response::NOISE_LEN)] ^= 1 << bit;
        let finish = |response| handshake.finish(&inputs.initiator, inputs.preshared_key.as_ref(), response);
        prop_assert_eq!(finish(&damaged).map(drop), Err(DropReason::BadCiphertext));
        prop_assert!(finish(&response).is_ok());
    }
}

/// The points whose multiples are zero, or whose multiples by a clamped scalar are (RFC 7748, section 6.1, and
/// <https://cr.yp.to/ecdh.html#validate>): 0, 1, two of order 8, and p - 1, p and p + 1.
const LOW_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

#[test]
fn points_of_low_order_are_refused_as_static_and_as_ephemeral_keys() {
    let own = Identity::new(PrivateKey::from_bytes([1; 32]));
    for hex in LOW_ORDER {
        let point = PublicKey::from_hex(hex).expect("hex");
        let timestamp = Tai64N::from_bytes([0; 12]);
        let mut static_static = StaticStatic::default();
        for _ in 0..2 {
            let mut randomness = Randomness::new(&[2; 32]);
            let begun =
                InitiatorHandshake::begin(&own, &point, &mut static_static, timestamp, &mut randomness);
            assert!(begun.is_err(), "a static key, also when the secret is known already: {hex}");
        }
        let mut initiation = [0; Initiation::NOISE_LEN];
        initiation[..32].copy_from_slice(point.as_bytes());
        let read = ClaimedInitiation::read(&own, &initiation);
        assert_eq!(read.map(drop), Err(DropReason::BadCiphertext), "an initiator's ephemeral key: {hex}");
    }
}
