//! Test vectors: a handshake, a data message and a cookie reply. `tests/vectors/generate.py` wrote them, an
//! implementation of the paper that shares nothing with this crate.

use std::net::SocketAddr;

use base16ct::mixed::decode_vec;
use wireloom_types::{PresharedKey, PrivateKey};

use crate::drop_reason::DropReason;
use crate::handshake::cookie::{CookieJar, CookieMaker, MacKeys, Proof};
use crate::handshake::noise::{ClaimedInitiation, Identity, InitiatorHandshake, StaticStatic};
use crate::handshake::timestamp::Tai64N;
use crate::message::{CookieReply, DataHeader, Initiation, Macs, Response};
use crate::randomness::Randomness;
use crate::time::Instant;
use crate::transport::role::Role;
use crate::transport::session::Session;

const INITIATOR_PUBLIC: &str = "\
     a4e09292b651c278b9772c569f5fa9bb13d906b46ab68c9df9dc2b4409f8a209";
const RESPONDER_PUBLIC: &str = "\
     ce8d3ad1ccb633ec7b70c17814a5c76ecd029685050d344745ba05870e587d59";
const INITIATION: &str = "\
     0100000044332211403e5376b7e466f103572da5ac47cab01c7226109925ffb2b20e12c3f3476a56\
     0a70204d5183b4b5700ed1d9a02cc7bbde46a73c09448d3f9a2aaa4c2c6505482a6ca972177ad45e\
     e1e87648e4af17fe11168f0349bef83f5f275ff655ede5ca2e6172b36452c22076575c9db02b57eb\
     2efcfa6b255ad2a63f7b237100000000000000000000000000000000";
const RESPONSE: &str = "\
     020000008877665544332211325420fcc13cc3a0f84d673c85f59c6c2764afa49e256068c04025fb\
     1855ef17a3d963b4fd0b69ebb64fc1b3f813c1e0db1323ca17e9fc1224c3bc5a1427feb500000000\
     000000000000000000000000";
const TO_RESPONDER: &str = "\
     a2dc6ab01e075ab65db7540d7a3cde58be4df0cf36910ecda67638de2908257d";
const TO_INITIATOR: &str = "\
     8749e2edb97205e2e5ebfd633c3e0355328f0e80a8784e505d060f7305807737";
const DATA: &str = "\
     04000000887766550100000000000000c02b1f71bbc9e4ab6be8054eb7f663a97e85343d7c8b453f\
     56bfffb301bab1609b265a1c5eca9ac85f63e26d8d41483f";
const COOKIE: &str = "\
     52d41068b27eb008ceb979396efda406";
const COOKIE_REPLY: &str = "\
     0300000044332211000102030405060708090a0b0c0d0e0f10111213141516174050875d36fbfa05\
     30b11be4d23cedeb8601d53bc3b97b0aba3453f8bdadd848";
const MAC2: &str = "\
     9cb372b928615424e73cf0bd843addf4";

const INITIATOR_INDEX: u32 = 0x1122_3344;
const RESPONDER_INDEX: u32 = 0x5566_7788;
const NOW: Instant = Instant::from_nanos(1_000_000_000);

fn bytes(hex: &str) -> Vec<u8> {
    decode_vec(hex).expect("hex")
}

fn identity(number: u8) -> Identity {
    Identity::new(PrivateKey::from_bytes([number; 32]))
}

fn psk() -> PresharedKey {
    PresharedKey::from_bytes([5; 32])
}

fn timestamp() -> Tai64N {
    let bytes = bytes("400000006855e40002000000");
    Tai64N::from_bytes(bytes.try_into().expect("12 bytes"))
}

#[test]
fn public_keys_match_the_vectors() {
    assert_eq!(identity(1).public_key.to_hex(), INITIATOR_PUBLIC);
    assert_eq!(identity(2).public_key.to_hex(), RESPONDER_PUBLIC);
}

#[test]
fn the_initiator_matches_the_vectors() {
    let (own, peer) = (identity(1), identity(2).public_key);
    let (mut randomness, mut static_static) = (Randomness::new(&[3; 32]), StaticStatic::default());
    let (handshake, noise) =
        InitiatorHandshake::begin(&own, &peer, &mut static_static, timestamp(), &mut randomness)
            .expect("a handshake");
    let macs = Macs { mac1: [0; 16], mac2: [0; 16] };
    let mut message = Initiation { sender: INITIATOR_INDEX, noise, macs }.to_bytes();
    CookieJar::default().sign(&MacKeys::of_receiver(&peer), NOW, &mut message);
    assert_eq!(message[..], bytes(INITIATION));

    let response = Response::parse(&bytes(RESPONSE)).expect("a response");
    assert_eq!((response.sender, response.receiver), (RESPONDER_INDEX, INITIATOR_INDEX));
    let keys = handshake.finish(&own, Some(&psk()), &response.noise).expect("an authentic response");
    assert_eq!(keys.sending[..], bytes(TO_RESPONDER));
    assert_eq!(keys.receiving[..], bytes(TO_INITIATOR));
}

#[test]
fn the_responder_matches_the_vectors() {
    let own = identity(2);
    let initiation = Initiation::parse(&bytes(INITIATION)).expect("an initiation");
    let mut randomness = Randomness::new(&[4; 32]);
    let claimed = ClaimedInitiation::read(&own, &initiation.noise).expect("it is for us");
    assert_eq!(claimed.peer, identity(1).public_key);
    let peer = MacKeys::of_receiver(&claimed.peer);
    let handshake = claimed.authenticate(&own, &mut StaticStatic::default()).expect("an authentic one");
    assert_eq!(handshake.timestamp, timestamp());
    let (noise, keys) = handshake.respond(Some(&psk()), &mut randomness).expect("a response");
    assert_eq!(keys.sending[..], bytes(TO_INITIATOR));
    assert_eq!(keys.receiving[..], bytes(TO_RESPONDER));
    let macs = Macs { mac1: [0; 16], mac2: [0; 16] };
    let (sender, receiver) = (RESPONDER_INDEX, initiation.sender);
    let mut message = Response { sender, receiver, noise, macs }.to_bytes();
    CookieJar::default().sign(&peer, NOW, &mut message);
    assert_eq!(message[..], bytes(RESPONSE));
}

#[test]
fn a_sealed_message_matches_the_vectors_and_opens() {
    let keys = |sending, receiving| crate::transport::session::SessionKeys {
        sending: <[u8; 32]>::try_from(bytes(sending)).expect("32 bytes").into(),
        receiving: <[u8; 32]>::try_from(bytes(receiving)).expect("32 bytes").into(),
    };
    let initiator = Session::new(
        &keys(TO_RESPONDER, TO_INITIATOR),
        Role::Initiator,
        INITIATOR_INDEX,
        RESPONDER_INDEX,
        NOW,
    );
    let packet: Vec<u8> = (0..32).collect();
    let mut messages = [[0; 64], [0; 64]];
    messages[1][16..48].copy_from_slice(&packet);
    initiator.seal(NOW, messages.iter_mut().map(|message| &mut message[..])).expect("sealed");
    assert_eq!(messages[1][..], bytes(DATA));
    let header = DataHeader::parse(&messages[1]).expect("a data message");
    assert_eq!(header, DataHeader { receiver: RESPONDER_INDEX, counter: 1 });

    let responder = Session::new(
        &keys(TO_INITIATOR, TO_RESPONDER),
        Role::Responder,
        RESPONDER_INDEX,
        INITIATOR_INDEX,
        NOW,
    );
    let mut opened = Err(DropReason::BadLength);
    responder.open(NOW, std::iter::once(&mut messages[1][..]), |outcome| opened = outcome);
    assert_eq!(opened.map(|payload| payload.to_vec()), Ok(packet));
}

#[test]
fn cookies_match_the_vectors() {
    let responder = MacKeys::of_receiver(&identity(2).public_key);
    let reply = CookieReply::parse(&bytes(COOKIE_REPLY)).expect("a cookie reply");
    assert_eq!(reply.receiver, INITIATOR_INDEX);
    assert_eq!(reply.to_bytes()[..], bytes(COOKIE_REPLY));
    let mut jar = CookieJar::default();
    let mut message = bytes(INITIATION);
    jar.sign(&responder, NOW, &mut message);
    jar.accept(&responder, NOW, &reply).expect("an authentic reply");
    jar.sign(&responder, NOW, &mut message);
    assert_eq!(message[132..], bytes(MAC2));

    // Signing the message again allows one more reply, and no other.
    let again = jar.accept(&responder, NOW, &reply);
    assert_eq!(again, Ok(()), "MAC1 of the message is the same");
    assert_eq!(jar.accept(&responder, NOW, &reply), Err(DropReason::UnexpectedCookie));

    let maker = CookieMaker::with_secret([6; 32], NOW);
    let from: SocketAddr = ([192, 0, 2, 1], 51820).into();
    let proof = maker.check(&responder, NOW, from, &message, true);
    assert_eq!(proof, Ok(Proof::Cookie), "our own cookie for that address: {COOKIE}");
}
